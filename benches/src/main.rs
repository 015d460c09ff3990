//! `logweir-bench`: measures the whole pipeline and bare limits in one run.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use logweir_benches::report::Report;
use logweir_benches::scenario::peer::Peer;
use logweir_benches::scenario::{Options, backlog, intake, latency, read, store, timescale};
use logweir_benches::subject::Setup;
use logweir_tests::process::build_logweir;

/// Measures logweir from the first byte sent to the last row committed, and bare limits in the same run.
///
/// Starts its own PostgreSQL and Redis from the installed packages, on free ports and in temporary directories.
#[derive(Parser)]
#[command(name = "logweir-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Scenarios to run, in this order (default: all except the longest ones)
    #[arg(long, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// What `postgres` and `read` measure: `timescale` compares TimescaleDB with daily partitions
    /// (LOGWEIR_TEST_PG_BIN names the programs of a server that has it)
    #[arg(long, default_value = "postgres")]
    store: Store,
    /// Number of rounds, the first of which is dropped
    #[arg(long, default_value_t = 5, global = true)]
    rounds: usize,
    /// Events per round
    #[arg(long, default_value_t = 2_000_000, global = true)]
    events: u64,
    /// Size of an event, in bytes
    #[arg(long, default_value_t = 300, global = true)]
    event_bytes: usize,
    /// Size of a request body, in bytes
    #[arg(long, default_value_t = 64 << 10, global = true, conflicts_with = "events_per_request")]
    body_bytes: usize,
    /// Events per request, instead of --body-bytes
    #[arg(long, global = true)]
    events_per_request: Option<usize>,
    /// Connections of the load generator
    #[arg(long, default_value_t = 8, global = true)]
    connections: usize,
    /// Number of lanes of logweir
    #[arg(long)]
    lanes: Option<u16>,
    /// Acknowledgment level: received, journal or committed
    #[arg(long, default_value = "journal")]
    ack: String,
    /// Rows per batch of logweir and per transaction of the bare COPY
    #[arg(long, default_value_t = 20_000)]
    batch_rows: u64,
    /// Any other configuration setting of logweir, as KEY=VALUE
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Path of the binary under test (default: built from this checkout)
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Also write the results as JSON to this file
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Measures another log shipper with the same load
    Peer {
        /// Command line that starts it
        #[arg(long, conflicts_with = "pid")]
        command: Option<String>,
        /// Its process id, if it is already running
        #[arg(long)]
        pid: Option<u32>,
        /// URL that accepts NDJSON
        #[arg(long)]
        url: String,
        /// URL of the database that it writes to
        #[arg(long)]
        database_url: String,
        /// Table that it writes to
        #[arg(long)]
        table: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    /// Daily partitions
    Postgres,
    /// TimescaleDB
    Timescale,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// HTTP to PostgreSQL, compared with a bare COPY; then a drain
    Postgres,
    /// Parse, journal, acknowledge, without a database
    Intake,
    /// One event per request
    Small,
    /// Latency at 50 k and 200 k events/s, and at the maximum rate
    Latency,
    /// Cost of the cache writer with Redis
    Redis,
    /// The embedded default, SQLite
    Sqlite,
    /// A backlog with the database down, a kill and a restart
    Backlog,
    /// Queries over a day of events, live tail latency, and the effect of ten querying clients on intake
    Read,
}

impl Scenario {
    fn run(self, store: Store, options: &Options, report: &mut Report) {
        match self {
            Self::Postgres if store == Store::Timescale => timescale::ingest(options, report),
            Self::Read if store == Store::Timescale => timescale::read(options, report),
            Self::Postgres => store::postgres(options, report),
            Self::Intake => intake::large(options, report),
            Self::Small => intake::small(options, report),
            Self::Latency => latency::open_loop(options, report),
            Self::Redis => store::redis(options, report),
            Self::Sqlite => store::sqlite(options, report),
            Self::Backlog => backlog::backlog(options, report),
            Self::Read => read::read(options, report),
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    let binary = match (&arguments.binary, &arguments.command) {
        (Some(binary), _) => binary.clone(),
        (None, Some(_)) => PathBuf::new(),
        (None, None) => build_logweir(&["--profile", "dist"]),
    };
    let mut setup = Setup::default().with("batch.rows_max", arguments.batch_rows);
    if let Some(lanes) = arguments.lanes {
        setup = setup.with("lanes", lanes);
    }
    for setting in &arguments.settings {
        let (key, value) = setting.split_once('=').expect("--set KEY=VALUE");
        setup = setup.with(key, value);
    }
    let options = Options {
        binary,
        rounds: arguments.rounds.max(2),
        events: arguments.events,
        event_bytes: arguments.event_bytes,
        body_bytes: arguments.events_per_request.map_or(arguments.body_bytes, |events| events * arguments.event_bytes),
        connections: arguments.connections,
        ack: arguments.ack,
        setup,
        batch_rows: arguments.batch_rows,
        base_us: logweir_engine::clock::wall_us(),
    };
    let mut report = Report::new();
    report.note("events per round", options.events);
    report.note("event", format!("{} B", options.event_bytes));
    report.note("body", format!("{} B, {} connections", options.body_bytes, options.connections));
    if let Some(Command::Peer { command, pid, url, database_url, table }) = arguments.command {
        Peer { command, pid, url, database_url, table }.measure(&options, &mut report);
    } else {
        let all = Scenario::value_variants().to_vec();
        for scenario in if arguments.only.is_empty() { all } else { arguments.only } {
            scenario.run(arguments.store, &options, &mut report);
        }
    }
    println!("\n{report}");
    if let Some(path) = arguments.json {
        std::fs::write(&path, report.json()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
