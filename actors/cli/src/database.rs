//! `logweir database`: creates and maintains the tables without a server, makes a hypertable of daily partitions, and
//! prints the statements for administrators who want to run them themselves.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use logweir_engine::clock;
use logweir_store::postgres::{PostgresStore, Purpose};
use logweir_store::{self as store, AnyStore, LogStore, MaintenanceStep, StoreError};
use serde_json::json;

use crate::args::{ConfigArgs, StoreArgs};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Output};
use crate::print::escaped;
use crate::store::block_on;

/// How often, and after which pause, a step is tried that fails temporarily.
const ROUNDS_MAX: u32 = 4;
const PAUSE: Duration = Duration::from_secs(10);

/// How long records move before the command says what is left, and how often in a row a lock may be in the way.
const MOVE_FOR: Duration = Duration::from_secs(10);
const LOCKED_MAX: u32 = 60;
const LOCKED_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum DatabaseCommand {
    /// Create or upgrade the tables and maintain them once, printing each step
    ///
    /// A server does both by itself. Use this with a role of its own if the server's may only read and write rows
    /// (database.maintenance = false), once a day. A step that fails temporarily, for example because of a lock, is
    /// tried again for half a minute. Exits with 1 if a step failed.
    Prepare(PrepareArgs),
    /// Make a hypertable of daily partitions, after TimescaleDB was installed
    ///
    /// Servers go on meanwhile: lanes wait for a second or two while the tables are exchanged, intake does not, and
    /// queries find all records at any time. Then the records of the former partitions move in small transactions, the
    /// newest first. The servers' maintenance moves them, too, so that this can be interrupted, and run again to see
    /// what is left. The database needs space for the largest partition once more.
    Migrate(MigrateArgs),
    /// Print the GRANT statements that a role needs
    ///
    /// Connects to database.url to find the schema. Pipe them to psql as the owner of the tables.
    Grants(GrantsArgs),
    /// Print the statements that create the tables
    ///
    /// For PostgreSQL. After them, `logweir database prepare` has no table left to create.
    Schema(SchemaArgs),
}

#[derive(Debug, Args)]
pub(super) struct PrepareArgs {
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub(super) struct GrantsArgs {
    /// The role that gets the privileges
    #[arg(long, value_name = "ROLE")]
    role: String,
    /// What the role is to do
    #[arg(long = "for", value_name = "PURPOSE", default_value = "storing")]
    purpose: PurposeArg,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PurposeArg {
    /// Store records: database.url of a server with database.maintenance = false
    Storing,
    /// Answer queries: database.read_url
    Reading,
    /// Create and maintain the tables: database.url of any other server, and of `logweir database prepare`
    Maintenance,
}

#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

impl DatabaseCommand {
    pub(super) fn config_mut(&mut self) -> &mut ConfigArgs {
        match self {
            Self::Prepare(args) => &mut args.store.config,
            Self::Migrate(args) => &mut args.store.config,
            Self::Grants(args) => &mut args.store.config,
            Self::Schema(args) => &mut args.config,
        }
    }
}

pub(super) fn database(command: &DatabaseCommand) -> Outcome {
    match command {
        DatabaseCommand::Prepare(args) => prepare(args),
        DatabaseCommand::Migrate(args) => migrate(args),
        DatabaseCommand::Grants(args) => grants(args),
        DatabaseCommand::Schema(_) => {
            let mut out = io::stdout().lock();
            out.write_all(PostgresStore::schema_sql().as_bytes())?;
            out.flush()?;
            Ok(exit::OK.into())
        }
    }
}

fn prepare(args: &PrepareArgs) -> Outcome {
    let database = args.store.load()?.config.database;
    let (maintained, steps) = block_on(async {
        let store = store::open(&database).map_err(Failure::store)?.store();
        store.prepare().await.map_err(Failure::store)?;
        Ok::<_, Failure>(maintain(&*store).await)
    })??;
    let mut out = io::stdout().lock();
    if args.output == Output::Json {
        let step = |step: &MaintenanceStep| json!({ "step": step.name, "error": step.result.as_ref().err().map(ToString::to_string) });
        output::json(&mut out, &json!({ "steps": steps.iter().map(step).collect::<Vec<_>>() }))?;
    } else {
        writeln!(out, "{:<22}ok", "tables")?;
        // Only the connection, if another process has the lock.
        if matches!(&steps[..maintained], [only] if only.name == "connection" && only.result.is_ok()) {
            writeln!(out, "another process maintains the tables at the moment")?;
        }
        for MaintenanceStep { name, result } in &steps {
            match result {
                Ok(()) => writeln!(out, "{name:<22}ok")?,
                Err(error) => writeln!(out, "{name:<22}failed: {}", escaped(&error.to_string()))?,
            }
        }
    }
    out.flush()?;
    let failed = steps.iter().any(|step| step.result.is_err());
    Ok(if failed { exit::FAILED } else { exit::OK }.into())
}

/// Maintains the tables, also those that another session has locked for a moment. Returns the steps, and how many of
/// them are not indexes.
async fn maintain(store: &dyn LogStore) -> (usize, Vec<MaintenanceStep>) {
    let mut rounds = 0;
    loop {
        let mut steps = store.maintain(clock::wall_us()).await;
        let maintained = steps.len();
        steps.extend(store.build_indexes().await);
        rounds += 1;
        let passes = |step: &MaintenanceStep| matches!(step.result, Err(StoreError::Transient(_)));
        if rounds == ROUNDS_MAX || !steps.iter().any(passes) {
            return (maintained, steps);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn migrate(args: &MigrateArgs) -> Outcome {
    let database = args.store.load()?.config.database;
    let AnyStore::Postgres(store) = store::open(&database).map_err(Failure::store)? else {
        let message = "database.url does not name PostgreSQL: only PostgreSQL can have TimescaleDB";
        return Err(Failure::new(exit::CONFIG, message));
    };
    let say = |line: &str| {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush())
    };
    block_on(async {
        let exchanged = patiently(async || store.migrate().await).await.map_err(Failure::store)?;
        say(if exchanged { "table logs is a hypertable now" } else { "table logs is a hypertable" })?;
        let mut before = None;
        loop {
            let left = patiently(async || store.move_partitions(MOVE_FOR).await).await.map_err(Failure::store)?;
            if left.partitions == 0 {
                say("all records are in it")?;
                return Ok(exit::OK.into());
            }
            say(&format!("{} former partitions with {} MiB are left", left.partitions, left.bytes >> 20))?;
            if before.replace(left) == Some(left) {
                // Another process moves them.
                tokio::time::sleep(LOCKED_PAUSE).await;
            }
        }
    })?
}

/// Tries again what others keep from being done for a moment.
async fn patiently<T>(work: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut attempt = 1;
    loop {
        match work().await {
            Err(StoreError::Transient(why)) if attempt < LOCKED_MAX => {
                attempt += 1;
                let _ = writeln!(io::stderr(), "trying again: {}", escaped(&why));
            }
            done => return done,
        }
        tokio::time::sleep(LOCKED_PAUSE).await;
    }
}

fn grants(args: &GrantsArgs) -> Outcome {
    let database = args.store.load()?.config.database;
    let purpose = match args.purpose {
        PurposeArg::Storing => Purpose::Storing,
        PurposeArg::Reading => Purpose::Reading,
        PurposeArg::Maintenance => Purpose::Maintenance,
    };
    let AnyStore::Postgres(store) = store::open(&database).map_err(Failure::store)? else {
        let message = "database.url does not name PostgreSQL: only PostgreSQL has privileges";
        return Err(Failure::new(exit::CONFIG, message));
    };
    let statements = block_on(async { store.grants(&args.role, purpose).await })?.map_err(Failure::store)?;
    let mut out = io::stdout().lock();
    statements.iter().try_for_each(|statement| writeln!(out, "{statement}"))?;
    out.flush()?;
    Ok(exit::OK.into())
}
