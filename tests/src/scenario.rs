//! One story: a volume, a store, servers that come and go on it, senders, and in the end the question
//! whether everything that was promised is there.
//!
//! Where a story fails, its directory (journal, logs of every start, SQLite) is kept and named with the seed.

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::accounting::{Totals, memory_bound};
use crate::client::{Client, Load, Running};
use crate::ledger::{Ledger, Outcome};
use crate::oracle::{Violation, examine};
use crate::postgres::{Options, Server as Postgres};
use crate::process::{Exit, Server, Settings, free_addr, run};
use crate::proxy::Proxy;
use crate::store::Store;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// How long something that has no bound of its own may take on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The smallest segment that the configuration allows: it holds one frame of the largest payload.
pub const SEGMENT_BYTES: u64 = 17 << 20;

/// Every story on PostgreSQL has a server of its own, so any database will do.
const DATABASE: &str = "postgres";

/// What a story happens to.
pub struct Scenario {
    /// Everything that is random follows from it; `LOGWEIR_SEED` sets it.
    pub random: StdRng,
    /// Its directory.
    pub dir: PathBuf,
    /// The configuration of the next start.
    pub settings: Settings,
    /// Where the records go.
    pub store: Store,
    /// What the senders know.
    pub ledger: Arc<Ledger>,
    server: Option<Server>,
    proxy: Option<Proxy>,
    postgres: Option<Arc<Postgres>>,
    starts: u32,
}

/// A story with SQLite.
pub fn on_sqlite(name: &str, story: impl FnOnce(&mut Scenario)) {
    scenario(name, |dir| (Store::Sqlite(dir.join("store.db")), None, None), story);
}

/// A story with PostgreSQL, reached directly.
pub fn on_postgres(name: &str, story: impl FnOnce(&mut Scenario)) {
    scenario(
        name,
        |_| {
            let postgres = Postgres::start(&Options::default());
            (Store::Postgres(postgres.url(DATABASE)), Some(postgres), None)
        },
        story,
    );
}

/// A story with PostgreSQL behind a proxy, [`Scenario::proxy`].
pub fn behind_proxy(name: &str, story: impl FnOnce(&mut Scenario)) {
    scenario(
        name,
        |_| {
            let postgres = Postgres::start(&Options::default());
            let proxy = Proxy::start((Ipv4Addr::LOCALHOST, postgres.port()).into()).expect("a proxy");
            (Store::Postgres(postgres.url(DATABASE)), Some(postgres), Some(proxy))
        },
        story,
    );
}

type Place = (Store, Option<Postgres>, Option<Proxy>);

fn scenario(name: &str, place: impl FnOnce(&Path) -> Place, story: impl FnOnce(&mut Scenario)) {
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
        dir: dir.path().to_owned(),
        store,
        ledger: Arc::default(),
        server: None,
        proxy,
        postgres: postgres.map(Arc::new),
        starts: 0,
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| story(&mut scenario))) {
        drop(scenario);
        eprintln!("{name} failed with LOGWEIR_SEED={seed}; journal and logs are kept in {}", dir.keep().display());
        resume_unwind(panic);
    }
}

/// What every server of these tests has in common: small, quick, and on ports of its own.
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
    ] {
        settings.insert(key.to_owned(), value.to_owned());
    }
    settings
}

impl Scenario {
    /// Sets a key for the next start.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.settings.insert(key.to_owned(), value.to_string());
    }

    /// Starts a server with `faults` armed; returns at once, what ran before is killed.
    pub fn launch(&mut self, faults: &str) -> &mut Server {
        self.server = None;
        self.starts += 1;
        let log = self.dir.join(format!("server-{}.log", self.starts));
        self.server.insert(Server::start(&self.settings, faults, log))
    }

    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    /// It ends instead.
    pub fn start(&mut self) -> &mut Server {
        self.start_with("")
    }

    /// Starts a server with `faults` armed and waits until it is ready.
    ///
    /// # Panics
    /// It ends instead.
    pub fn start_with(&mut self, faults: &str) -> &mut Server {
        let server = self.launch(faults);
        server.ready().unwrap_or_else(|exit| panic!("{exit:?} before it was ready: {}", server.log_text()));
        server
    }

    /// A second server: same store, own ports, another data directory.
    pub fn launch_beside(&mut self, data_dir: &Path) -> Server {
        let mut settings = self.settings.clone();
        settings.insert("data_dir".to_owned(), data_dir.to_string_lossy().into_owned());
        for listener in ["http.listen", "admin.listen"] {
            settings.insert(listener.to_owned(), free_addr().to_string());
        }
        self.starts += 1;
        Server::start(&settings, "", self.dir.join(format!("server-{}.log", self.starts)))
    }

    /// The server.
    ///
    /// # Panics
    /// None was started.
    pub fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("a server was started")
    }

    /// The proxy before PostgreSQL.
    ///
    /// # Panics
    /// There is none in this story.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the story is told behind_proxy")
    }

    /// The PostgreSQL server.
    ///
    /// # Panics
    /// There is none in this story.
    #[must_use]
    pub fn postgres(&self) -> &Postgres {
        self.postgres.as_ref().expect("the story is told on_postgres")
    }

    /// As [`Scenario::postgres`], for something that goes on beside the story.
    ///
    /// # Panics
    /// There is none in this story.
    #[must_use]
    pub fn postgres_shared(&self) -> Arc<Postgres> {
        self.postgres.clone().expect("the story is told on_postgres")
    }

    /// The server's volume.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(&self.settings["data_dir"])
    }

    /// Starts senders to the server's address, whether it runs or not.
    #[must_use]
    pub fn load(&self, load: Load) -> Running {
        load.start(&self.ledger, self.settings["http.listen"].parse().expect("an address"))
    }

    /// Waits until `records` more records are acknowledged than now.
    ///
    /// # Panics
    /// They are not in time.
    pub fn acknowledged(&self, records: u64) {
        let target = self.ledger.records(Outcome::Acknowledged) + records;
        self.wait(&format!("{records} more records acknowledged"), |s| {
            s.ledger.records(Outcome::Acknowledged) >= target
        });
    }

    /// Waits until the store has rows: from then on a COMMIT is one of records, not of the start-up.
    ///
    /// # Panics
    /// It has none in time.
    pub fn stored(&self) {
        self.wait("the first rows", |s| s.store.count().is_ok_and(|count| count > 0));
    }

    /// Looks until `holds`.
    ///
    /// # Panics
    /// It does not in time.
    pub fn wait(&self, what: &str, holds: impl FnMut(&Self) -> bool) {
        self.wait_within(what, PATIENCE, holds);
    }

    /// As [`Scenario::wait`], for what may take minutes by its mere size.
    ///
    /// # Panics
    /// It has not happened within a quarter of an hour.
    pub fn wait_long(&self, what: &str, holds: impl FnMut(&Self) -> bool) {
        self.wait_within(what, PATIENCE * 15, holds);
    }

    fn wait_within(&self, what: &str, within: Duration, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + within;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within {within:?}: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and the exit that must follow: code 0 and a last line whose numbers add up.
    ///
    /// # Panics
    /// They do not.
    pub fn stop(&mut self) -> Totals {
        let server = self.server();
        server.signal(libc::SIGTERM);
        let exit = server.wait(PATIENCE);
        let log = server.log_text();
        assert_eq!(exit.code(), Some(0), "{exit:?}: {log}");
        let totals = Totals::at_the_end_of(&log).unwrap_or_else(|| panic!("no last line in {log}"));
        assert!(totals.add_up(), "{totals:?}");
        totals
    }

    /// Everything that is wrong now. Ends with a fault-free phase: the server is started afresh without faults
    /// (unless one runs), a new record must reach the store, and the backlog must become empty.
    pub fn findings(&mut self) -> Vec<Violation> {
        if let Some(stuck) = self.come_to_rest() {
            return vec![stuck];
        }
        let mut violations = match self.store.contents() {
            Ok(contents) => examine(&self.ledger.posts(), &contents),
            Err(what) => vec![Violation::Stuck(what)],
        };
        violations.extend(self.ledger.offences().into_iter().map(Violation::Answer));
        violations.extend(self.account());
        violations.extend(self.verify());
        violations
    }

    /// The contract is kept.
    ///
    /// # Panics
    /// It is not; says how.
    pub fn conserve(&mut self) {
        let violations = self.findings();
        let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "the contract is broken:\n{}", told.join("\n"));
    }

    fn come_to_rest(&mut self) -> Option<Violation> {
        let running = self.server.as_mut().is_some_and(|server| server.exited().is_none());
        if !running && let Err(exit) = self.launch("").ready() {
            return Some(Violation::Stuck(format!("{exit:?} at start: {}", self.server().log_text())));
        }
        let ledger = self.ledger.clone();
        let mut fresh = Client::new(&ledger, self.server().http);
        let fresh_one = Load { records: 1, ack: "committed", ..Load::default() };
        let deadline = Instant::now() + PATIENCE;
        while fresh.post(fresh_one) != Outcome::Acknowledged {
            if Instant::now() > deadline {
                let (status, log) = (self.server().status(), self.server().log_text());
                return Some(Violation::Stuck(format!("a fresh record does not reach the store: {status}\n{log}")));
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

    /// Keeps everybody else from writing to SQLite until the guard is dropped: a database that is down.
    ///
    /// # Panics
    /// The story is not told on SQLite, or the lock is not given.
    #[must_use]
    pub fn lock_store(&self) -> rusqlite::Connection {
        let Store::Sqlite(path) = &self.store else { panic!("the story is told on_sqlite") };
        let lock = rusqlite::Connection::open(path).expect("the store's file");
        lock.busy_timeout(PATIENCE).expect("a timeout");
        lock.execute_batch("BEGIN IMMEDIATE").expect("the store's lock");
        lock
    }

    /// Bytes of all files of the journal.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        files(&self.data_dir().join("journal")).iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Ends the server without ceremony, where a story goes on without it.
    pub fn kill_server(&mut self) {
        self.server = None;
    }

    /// The most memory that the server said at its start that it would take, in bytes.
    ///
    /// # Panics
    /// It said nothing of the kind.
    pub fn memory_bound(&mut self) -> u64 {
        let log = self.server().log_text();
        memory_bound(&log).unwrap_or_else(|| panic!("no bound of memory in {log}"))
    }

    /// Sends a file by `logweir produce`.
    #[must_use]
    pub fn produce(&self, file: &Path) -> std::process::Output {
        let url = format!("http://{}/ingest", self.settings["http.listen"]);
        self.run(&["produce", "--url", &url, &file.to_string_lossy()])
    }

    /// Runs a subcommand with the story's configuration.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> std::process::Output {
        run(&self.settings, arguments, PATIENCE)
    }

    /// How the server ended, where it must end by itself.
    pub fn ended(&mut self) -> Exit {
        self.server().wait(PATIENCE)
    }
}

/// Every file below `dir` with its contents, in order.
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

/// Copies a volume as a snapshot would.
///
/// # Panics
/// The disk refuses.
pub fn copy_volume(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success(), "{} is not copied", from.display());
}
