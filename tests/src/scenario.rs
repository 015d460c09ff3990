//! A scenario: a volume, a store, servers that are started and stopped on it, clients, and finally a check that every
//! acknowledged record is stored.
//!
//! If a scenario fails, its directory (journal, logs of every start, SQLite file) is kept and printed with the seed.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::accounting::{Totals, memory_bound};
pub use crate::client::PATIENCE;
use crate::client::{Client, Load, Running};
use crate::ledger::{Key, Ledger, Outcome};
use crate::oracle::{Contents, Violation, examine_damaged};
use crate::postgres::{Options, Server as Postgres};
use crate::process::{Exit, Server, Settings, command, free_addr, limit, run};
use crate::proxy::Proxy;
use crate::store::Store;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The smallest segment size that the configuration allows: it fits one frame with the largest payload.
pub const SEGMENT_BYTES: u64 = 17 << 20;

/// Every scenario on PostgreSQL has its own server, so it can use the default database.
const DATABASE: &str = "postgres";

/// State of a scenario.
pub struct Scenario {
    /// Seed of all randomness; `LOGWEIR_SEED` sets it.
    pub random: StdRng,
    /// The scenario's directory.
    pub dir: PathBuf,
    /// The configuration of the next start.
    pub settings: Settings,
    /// Environment variables of the next start that are no configuration.
    pub environment: Vec<(String, String)>,
    /// Limit of open files of the next start.
    pub open_files_max: Option<u64>,
    /// The store.
    pub store: Store,
    /// What the clients sent and which responses they got.
    pub ledger: Arc<Ledger>,
    server: Option<Server>,
    proxy: Option<Proxy>,
    postgres: Option<Arc<Postgres>>,
    starts: u32,
}

/// Runs a scenario on SQLite.
pub fn on_sqlite(name: &str, run: impl FnOnce(&mut Scenario)) {
    run_scenario(name, |dir| (Store::Sqlite(dir.join("store.db")), None, None), run);
}

/// Runs a scenario on PostgreSQL with a direct connection.
pub fn on_postgres(name: &str, run: impl FnOnce(&mut Scenario)) {
    on_postgres_with(name, &Options::default(), run);
}

/// As [`on_postgres`], with options of the server.
pub fn on_postgres_with(name: &str, options: &Options, run: impl FnOnce(&mut Scenario)) {
    run_scenario(
        name,
        |_| {
            let postgres = Postgres::start(options);
            (Store::Postgres(postgres.url(DATABASE)), Some(postgres), None)
        },
        run,
    );
}

/// Runs a scenario on PostgreSQL behind a proxy, [`Scenario::proxy`].
pub fn behind_proxy(name: &str, run: impl FnOnce(&mut Scenario)) {
    run_scenario(
        name,
        |_| {
            let postgres = Postgres::start(&Options::default());
            let proxy = Proxy::start((Ipv4Addr::LOCALHOST, postgres.port()).into()).expect("a proxy");
            (Store::Postgres(postgres.url(DATABASE)), Some(postgres), Some(proxy))
        },
        run,
    );
}

type Place = (Store, Option<Postgres>, Option<Proxy>);

fn run_scenario(name: &str, place: impl FnOnce(&Path) -> Place, run: impl FnOnce(&mut Scenario)) {
    let seed = std::env::var("LOGWEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let dir = tempfile::Builder::new().prefix("logweir-test-").tempdir().expect("a temporary directory");
    let (store, postgres, proxy) = place(dir.path());
    let url = match (&store, &proxy) {
        (Store::Sqlite(path), _) => format!("sqlite:{}", path.display()),
        (Store::Postgres(_), Some(proxy)) => format!("postgres://postgres@{}/{DATABASE}", proxy.addr()),
        (Store::Postgres(url), None) => url.clone(),
    };
    let mut scenario = Scenario {
        random: StdRng::seed_from_u64(seed),
        settings: settings(&dir.path().join("data"), &url),
        environment: Vec::new(),
        open_files_max: None,
        dir: dir.path().to_owned(),
        store,
        ledger: Arc::default(),
        server: None,
        proxy,
        postgres: postgres.map(Arc::new),
        starts: 0,
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&mut scenario))) {
        drop(scenario);
        eprintln!("{name} failed with LOGWEIR_SEED={seed}; journal and logs are kept in {}", dir.keep().display());
        resume_unwind(panic);
    }
}

/// Settings of all test servers: small limits, short intervals, own ports. Where the program would give up after some
/// seconds, it waits as long as the tests' clients do, so that a machine that stalls fails no test of something else.
fn settings(data_dir: &Path, url: &str) -> Settings {
    let mut settings = Settings::new();
    for (key, value) in [
        ("data_dir", data_dir.to_string_lossy().as_ref()),
        ("database.url", url),
        ("http.listen", &free_addr().to_string()),
        ("admin.listen", &free_addr().to_string()),
        ("journal.segment_bytes", &SEGMENT_BYTES.to_string()),
        ("journal.quota_bytes", "268435456"),
        ("journal.ballast_bytes", "1048576"),
        ("journal.retain_segments", "0"),
        ("shutdown.linger_ms", "0"),
        ("shutdown.deadline_ms", "2m"),
        ("http.ack_timeout_ms", "50s"),
    ] {
        settings.insert(key.to_owned(), value.to_owned());
    }
    settings
}

impl Scenario {
    /// Sets a configuration key for the next start.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.settings.insert(key.to_owned(), value.to_string());
    }

    /// Starts a server with `faults` armed, without waiting. Kills the previous server.
    pub fn launch(&mut self, faults: &str) -> &mut Server {
        self.server = None;
        self.starts += 1;
        let log = self.dir.join(format!("server-{}.log", self.starts));
        let addr = |key: &str| self.settings[key].parse().expect("an address");
        let mut command = command(&self.settings, faults, &["run"]);
        command.envs(self.environment.iter().cloned());
        if let Some(max) = self.open_files_max {
            limit(&mut command, libc::RLIMIT_NOFILE, max, max);
        }
        self.server.insert(Server::spawn(command, addr("http.listen"), addr("admin.listen"), log))
    }

    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    /// If the server exits instead.
    pub fn start(&mut self) -> &mut Server {
        self.start_with("")
    }

    /// Starts a server with `faults` armed and waits until it is ready.
    ///
    /// # Panics
    /// If the server exits instead.
    pub fn start_with(&mut self, faults: &str) -> &mut Server {
        let server = self.launch(faults);
        server.ready().unwrap_or_else(|exit| panic!("{exit:?} before it was ready: {}", server.log_text()));
        server
    }

    /// Starts a second server: same store, own ports, another data directory.
    pub fn launch_beside(&mut self, data_dir: &Path) -> Server {
        let mut settings = self.settings.clone();
        settings.insert("data_dir".to_owned(), data_dir.to_string_lossy().into_owned());
        for listener in ["http.listen", "admin.listen"] {
            settings.insert(listener.to_owned(), free_addr().to_string());
        }
        self.starts += 1;
        Server::start(&settings, "", self.dir.join(format!("server-{}.log", self.starts)))
    }

    /// The running server.
    ///
    /// # Panics
    /// If none was started.
    pub fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("a server was started")
    }

    /// The proxy in front of PostgreSQL.
    ///
    /// # Panics
    /// If this scenario has none.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the scenario must run behind_proxy")
    }

    /// The PostgreSQL server.
    ///
    /// # Panics
    /// If this scenario has none.
    #[must_use]
    pub fn postgres(&self) -> &Postgres {
        self.postgres.as_ref().expect("the scenario must run on_postgres")
    }

    /// As [`Scenario::postgres`], for a task that runs in parallel.
    ///
    /// # Panics
    /// If this scenario has none.
    #[must_use]
    pub fn postgres_shared(&self) -> Arc<Postgres> {
        self.postgres.clone().expect("the scenario must run on_postgres")
    }

    /// The server's volume.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(&self.settings["data_dir"])
    }

    /// Starts clients that send to the server's address, whether or not it is running.
    #[must_use]
    pub fn load(&self, load: Load) -> Running {
        load.start(&self.ledger, self.settings["http.listen"].parse().expect("an address"))
    }

    /// Waits until another `records` records are acknowledged.
    ///
    /// # Panics
    /// On timeout.
    pub fn acknowledged(&self, records: u64) {
        let target = self.ledger.records(Outcome::Acknowledged) + records;
        self.wait(&format!("{records} more records acknowledged"), |s| {
            s.ledger.records(Outcome::Acknowledged) >= target
        });
    }

    /// Waits until the store has rows: from then on, a COMMIT is one of records, not of the startup.
    ///
    /// # Panics
    /// On timeout.
    pub fn stored(&self) {
        self.wait("the first rows", |s| s.store.count().is_ok_and(|count| count > 0));
    }

    /// Polls until `holds`.
    ///
    /// # Panics
    /// On timeout.
    pub fn wait(&self, what: &str, holds: impl FnMut(&Self) -> bool) {
        self.wait_within(what, PATIENCE, holds);
    }

    /// As [`Scenario::wait`], for large amounts of data that can take minutes.
    ///
    /// # Panics
    /// On timeout.
    pub fn wait_long(&self, what: &str, holds: impl FnMut(&Self) -> bool) {
        self.wait_within(what, PATIENCE * 5, holds);
    }

    /// As [`Scenario::wait`], with a time limit.
    ///
    /// # Panics
    /// On timeout.
    pub fn wait_within(&self, what: &str, within: Duration, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + within;
        while !holds(self) {
            assert!(Instant::now() < deadline, "timed out after {within:?}: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGTERM and expects exit code 0 and a final log line with consistent totals.
    ///
    /// # Panics
    /// If either is wrong.
    pub fn stop(&mut self) -> Totals {
        let server = self.server();
        server.signal(libc::SIGTERM);
        let exit = server.wait(PATIENCE);
        let log = server.log_text();
        assert_eq!(exit.code(), Some(0), "{exit:?}: {log}");
        let totals = Totals::at_the_end_of(&log).unwrap_or_else(|| panic!("no final line in {log}"));
        assert!(totals.add_up(), "{totals:?}");
        totals
    }

    /// Returns all violations. Starts with a fault-free phase: a server is started without faults (unless one is
    /// running), a new record must reach the store, and the backlog must become empty.
    pub fn findings(&mut self) -> Vec<Violation> {
        self.findings_with(Contents::default())
    }

    /// As [`Scenario::findings`], with the records that were stored before somebody removed them.
    pub fn findings_with(&mut self, removed: Contents) -> Vec<Violation> {
        self.findings_damaged(removed, &HashSet::new())
    }

    /// As [`Scenario::findings_with`], with the records that somebody has damaged in the journal.
    pub fn findings_damaged(&mut self, removed: Contents, damaged: &HashSet<Key>) -> Vec<Violation> {
        if let Some(stuck) = self.settle_down() {
            return vec![stuck];
        }
        let mut violations = match self.store.contents() {
            Ok(mut contents) => {
                contents.rows.extend(removed.rows);
                contents.dead.extend(removed.dead);
                examine_damaged(&self.ledger.posts(), &contents, damaged)
            }
            Err(what) => vec![Violation::Stuck(what)],
        };
        violations.extend(self.ledger.violations().into_iter().map(Violation::Answer));
        violations.extend(self.account());
        violations.extend(self.verify());
        violations
    }

    /// Asserts that the contract holds.
    ///
    /// # Panics
    /// If it does not, with all violations.
    pub fn assert_contract(&mut self) {
        let violations = self.findings();
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "contract violations:\n{}", lines.join("\n"));
    }

    fn settle_down(&mut self) -> Option<Violation> {
        let running = self.server.as_mut().is_some_and(|server| server.exited().is_none());
        if !running && let Err(exit) = self.launch("").ready() {
            return Some(Violation::Stuck(format!("{exit:?} at startup: {}", self.server().log_text())));
        }
        let ledger = self.ledger.clone();
        let mut fresh = Client::new(&ledger, self.server().http);
        let fresh_one = Load { records: 1, ack: "committed", ..Load::default() };
        let deadline = Instant::now() + PATIENCE;
        while fresh.post(fresh_one) != Outcome::Acknowledged {
            if Instant::now() > deadline {
                let (status, log) = (self.server().status(), self.server().log_text());
                return Some(Violation::Stuck(format!("a new record does not reach the store: {status}\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let empty = self.server().until("without backlog", PATIENCE, |server| {
            Totals::of(&server.status()).is_some_and(|totals| totals.backlog == 0)
        });
        empty.err().map(|exit| Violation::Stuck(format!("{exit:?} while the backlog was being stored")))
    }

    fn account(&mut self) -> Option<Violation> {
        let status = self.server().status();
        Totals::of(&status).is_none().then(|| Violation::Accounting(status.to_string()))
    }

    fn verify(&mut self) -> Option<Violation> {
        let output = run(&self.settings, &["verify"], PATIENCE);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &*String::from_utf8_lossy(&output.stderr);
        (!output.status.success()).then(|| Violation::Verify(format!("{:?} {text}", output.status)))
    }

    /// Blocks all other writers to SQLite until the guard is dropped, to simulate an unavailable database.
    ///
    /// # Panics
    /// If the scenario does not run on SQLite, or the lock cannot be acquired.
    #[must_use]
    pub fn lock_store(&self) -> rusqlite::Connection {
        let Store::Sqlite(path) = &self.store else { panic!("the scenario must run on_sqlite") };
        let lock = rusqlite::Connection::open(path).expect("the store's file");
        lock.busy_timeout(PATIENCE).expect("a timeout");
        lock.execute_batch("BEGIN IMMEDIATE").expect("the store's lock");
        lock
    }

    /// Size of all journal files, in bytes.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        files(&self.data_dir().join("journal")).iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Kills the server, for scenarios that continue without it.
    pub fn kill_server(&mut self) {
        self.server = None;
    }

    /// The server's memory bound as printed at startup, in bytes.
    ///
    /// # Panics
    /// If it was not printed.
    pub fn memory_bound(&mut self) -> u64 {
        let log = self.server().log_text();
        memory_bound(&log).unwrap_or_else(|| panic!("no memory bound in {log}"))
    }

    /// Sends a file with `logweir produce`.
    #[must_use]
    pub fn produce(&self, file: &Path) -> std::process::Output {
        let url = format!("http://{}/ingest", self.settings["http.listen"]);
        self.run(&["produce", "--url", &url, &file.to_string_lossy()])
    }

    /// Runs a subcommand with the scenario's configuration.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> std::process::Output {
        run(&self.settings, arguments, PATIENCE)
    }

    /// Waits for the server to exit on its own and returns its exit status.
    pub fn ended(&mut self) -> Exit {
        self.server().wait(PATIENCE)
    }
}

/// Returns every file below `dir` with its contents, sorted.
#[must_use]
pub fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// Copies a volume, like a snapshot.
///
/// # Panics
/// If copying fails.
pub fn copy_volume(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success(), "cannot copy {}", from.display());
}
