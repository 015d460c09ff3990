//! The world that acts change: a PostgreSQL, the way to it, the disk of its tables, the disk of the journal, the clocks,
//! the secret and the CA of the program, and how many files it may open.
//!
//! ```text
//! logweir (role logweir, URL and CA from files) ──> proxy ──> [PgBouncer] ──> PostgreSQL (faked clock) ──> small, slow disk
//!    └──> small, failing disk; faked clock; few descriptors
//! ```
//!
//! [`World::begin`] and [`World::end`] change it. Both report what they could not do: an operator's statement that waits
//! too long for a lock fails, as it does in life, and an end is tried again.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::chaos::act::{Abilities, Act};
use crate::chaos::certificate::Identity;
use crate::chaos::damage::{Harm, damage};
use crate::chaos::held::Held;
use crate::chaos::operator::{DROPPED_DEAD_LETTERS, DROPPED_LOGS, DROPPED_SQL};
use crate::client::{PATIENCE, idle_connections};
use crate::clock::Clock;
use crate::disk::{Disk, FailingDisk, Failure, SlowDisk, may_mount};
use crate::ledger::{Key, Outcome};
use crate::oracle::Contents;
use crate::pooler::{self, Pooler};
use crate::postgres::{Options, Server as Postgres, give_to_server};
use crate::process::{Exit, free_addr};
use crate::proxy::{Mode, Proxy};
use crate::scenario::Scenario;
use crate::store::Store;

/// The database and its owner.
const DATABASE: &str = "logs";
const ROLE: &str = "logweir";
/// Size of the disk for the tables; the image is sparse.
const DISK_BYTES: u64 = 3 << 30;
/// Size of the disk of the journal, which has a quota of half of that.
const DATA_DISK_BYTES: u64 = 512 << 20;
/// Few, so that they can be used up.
const OPEN_FILES_MAX: u64 = 600;
/// So many records are in the journal alone when it is damaged, and time to accept them.
const JOURNALED: u64 = 100;
const ACCEPTED_WITHIN: Duration = Duration::from_secs(5);
/// As above, with a start of the program.
const STARTED_WITHIN: Duration = Duration::from_secs(20);
/// Exit code of a program whose disk failed.
pub const DISK_FAILED: i32 = 74;
/// Time that a program has to end after SIGTERM.
const TERM_WITHIN: Duration = PATIENCE;
/// Time limit of a failover's steps.
const FAILOVER_WITHIN: Duration = PATIENCE;
/// Time that the program has to connect with TLS, or to store something that a restore removes.
const BRIEFLY: Duration = Duration::from_secs(3);
/// About as many records are removed by a restore.
const RESTORED: u64 = 300;
/// Longer ago than a restore can be: what it removes is still in the journal.
const RETAIN_S: u32 = 300;

/// What is loaded into processes, to fake how the machine behaves.
pub struct Fakes {
    slow_disk: Result<SlowDisk, String>,
    failing_disk: Result<FailingDisk, String>,
    /// Of the server and of the program; a machine has one.
    clocks: Result<[Clock; 2], String>,
}

impl Fakes {
    /// Nothing is wrong yet.
    #[must_use]
    pub fn new() -> Self {
        let clocks = Clock::new().and_then(|server| Ok([server, Clock::new()?]));
        Self { slow_disk: SlowDisk::new(), failing_disk: FailingDisk::new(), clocks }
    }

    fn of_server(&self) -> Vec<(String, String)> {
        let disk = self.slow_disk.as_ref().ok().map(|disk| (disk.library(), disk.environment()));
        environment(disk, self.clocks.as_ref().ok().map(|[server, _]| server))
    }

    fn of_program(&self, files: &Path) -> Vec<(String, String)> {
        let disk = self.failing_disk.as_ref().ok().map(|disk| (disk.library(), disk.environment(files)));
        environment(disk, self.clocks.as_ref().ok().map(|[_, program]| program))
    }

    fn set_clocks(&self, server: &str, program: &str) {
        for (clock, offset) in self.clocks.iter().flatten().zip([server, program]) {
            clock.set(offset);
        }
    }
}

fn environment(disk: Option<(PathBuf, Vec<(String, String)>)>, clock: Option<&Clock>) -> Vec<(String, String)> {
    let clock = clock.map(|clock| (clock.library(), clock.environment()));
    let (libraries, variables): (Vec<_>, Vec<_>) = disk.into_iter().chain(clock).unzip();
    let libraries: Vec<String> = libraries.iter().map(|path| path.display().to_string()).collect();
    let mut variables = variables.concat();
    variables.push(("LD_PRELOAD".to_owned(), libraries.join(":")));
    variables
}

/// Options of the server of a world.
#[must_use]
pub fn options(fakes: &Fakes) -> Options {
    Options {
        // Few, so that they can be exhausted.
        settings: vec![("max_connections", "60".to_owned()), ("wal_keep_size", "64MB".to_owned())],
        // Only the program has a password.
        hba: vec!["host all logweir 127.0.0.1/32 scram-sha-256"],
        environment: fakes.of_server(),
        ..Options::default()
    }
}

/// What can be done here; prints what cannot, and why.
#[must_use]
pub fn abilities(pooler: bool, fakes: &Fakes) -> Abilities {
    let skip = |possible: bool, what: &str, why: &str| {
        if !possible {
            eprintln!("skipped: {what} ({why})");
        }
        possible
    };
    let why = |error: Option<&String>| error.cloned().unwrap_or_default();
    let (slow, failing, clocks) = (fakes.slow_disk.as_ref(), fakes.failing_disk.as_ref(), fakes.clocks.as_ref());
    Abilities {
        disk: skip(may_mount(), "full disks and power cuts", "mounting needs root"),
        clock: skip(clocks.is_ok(), "steps of the clocks", &why(clocks.err())),
        slow_disk: skip(slow.is_ok(), "a slow disk of the server", &why(slow.err())),
        failing_disk: skip(failing.is_ok(), "a failing disk of the journal", &why(failing.err())),
        pooler: skip(pooler, "PgBouncer", "only seeds that are multiples of 3 have one")
            && skip(pooler::program().is_some(), "PgBouncer", "it is not installed"),
    }
}

/// Everything that acts change.
pub struct World<'a> {
    /// The program, its settings, the ledger and the store.
    pub scenario: &'a mut Scenario,
    faults: String,
    postgres: Arc<Postgres>,
    proxy: Proxy,
    pooler: Option<Pooler>,
    disk: Option<Disk>,
    /// Of the journal.
    data_disk: Option<Arc<Disk>>,
    fakes: Fakes,
    /// Directory of the tablespace on the disk; each failover makes another.
    tablespace: PathBuf,
    /// Servers that took the place of another.
    successors: u32,
    passwords: u32,
    /// The password that the program knows.
    known_password: u32,
    /// The CA of the server's certificate.
    ca: String,
    /// Whether the program uses TLS.
    tls: bool,
    held: Option<Held>,
    filler: Option<Held>,
    pulses: Option<Pulses>,
    shrinking: Option<Pulses>,
    idle: Vec<TcpStream>,
    /// Records that were damaged in the journal.
    damaged: HashSet<Key>,
    /// The program may have ended because of its disk since the round began.
    pub disk_failed: bool,
}

/// A thread that goes on until told to end.
type Pulses = (Arc<AtomicBool>, JoinHandle<()>);

impl<'a> World<'a> {
    /// Makes the world around the server of `scenario`, and starts the program with `faults` armed.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(scenario: &'a mut Scenario, abilities: Abilities, faults: &str, fakes: Fakes) -> Self {
        let postgres = scenario.postgres_shared();
        postgres.execute(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD 'chaos-0'"));
        postgres.execute("CREATE ROLE filler LOGIN");
        postgres.execute(&format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"));
        let disk = abilities.disk.then(|| Disk::ext4(&postgres.socket_dir().join("disk"), DISK_BYTES));
        let tablespace =
            disk.as_ref().map(|disk| directory(&disk.path().join("0")).expect("an empty disk")).unwrap_or_default();
        if disk.is_some() {
            postgres.execute(&format!("CREATE TABLESPACE chaos LOCATION '{}'", tablespace.display()));
            postgres.execute(&format!("GRANT CREATE ON TABLESPACE chaos TO {ROLE}"));
            postgres.execute(&format!("ALTER DATABASE {DATABASE} SET default_tablespace = chaos"));
        }
        let pooler = abilities.pooler.then(|| Pooler::start(postgres.port(), "session", &[(ROLE, "chaos-0")]));
        let target = pooler.as_ref().map_or(postgres.port(), Pooler::port);
        let proxy = Proxy::start(local(target)).expect("a proxy");
        scenario.store = Store::Postgres(postgres.url(DATABASE));
        let mut world = Self {
            scenario,
            faults: faults.to_owned(),
            postgres,
            proxy,
            pooler,
            disk,
            data_disk: None,
            fakes,
            tablespace,
            successors: 0,
            passwords: 0,
            known_password: 0,
            ca: String::new(),
            tls: false,
            held: None,
            filler: None,
            pulses: None,
            shrinking: None,
            idle: Vec::new(),
            damaged: HashSet::new(),
            disk_failed: false,
        };
        world.sql("CREATE SCHEMA chaos AUTHORIZATION logweir").expect("a schema");
        world.sql(DROPPED_SQL).expect("tables for dropped records");
        world.new_certificate().expect("a certificate");
        world.sql("ALTER SYSTEM SET ssl = on").and_then(|_| world.sql("SELECT pg_reload_conf()")).expect("TLS");
        let data_dir = world.scenario.data_dir();
        world.data_disk = abilities.disk.then(|| Arc::new(Disk::ext4(&data_dir, DATA_DISK_BYTES)));
        world.configure();
        world.scenario.start_with(&world.faults.clone());
        world
    }

    fn configure(&mut self) {
        let s = &mut *self.scenario;
        s.settings.remove("database.url");
        s.set("database.url_file", s.dir.join("url").display());
        s.set("database.connect_timeout_ms", 2000);
        s.set("database.statement_timeout_ms", 5000);
        // No record is that old: whatever retention deletes, it may not delete.
        s.set("database.retention_days", 30);
        s.set("shutdown.deadline_ms", 3000);
        s.set("journal.retain_s", RETAIN_S);
        s.open_files_max = Some(OPEN_FILES_MAX);
        let variables = self.fakes.of_program(&s.data_dir());
        s.environment.extend(variables);
        self.write_ca();
        self.write_url();
    }

    fn write_url(&self) {
        let tls = if self.tls {
            format!("sslmode=verify-full&sslrootcert={}", self.ca_file().display())
        } else {
            "sslmode=disable".to_owned()
        };
        let url = format!("postgres://{ROLE}:chaos-{}@{}/{DATABASE}?{tls}", self.known_password, self.proxy.addr());
        replace(&self.scenario.dir.join("url"), &url);
    }

    fn ca_file(&self) -> PathBuf {
        self.scenario.dir.join("ca.pem")
    }

    fn write_ca(&self) {
        replace(&self.ca_file(), &self.ca);
    }

    /// Runs a statement as the superuser in the program's database, who waits only briefly for a lock.
    ///
    /// # Errors
    /// The database's error.
    pub fn sql(&self, text: &str) -> Result<Vec<Vec<String>>, String> {
        self.admin(1).rows(text)
    }

    fn admin(&self, lock_timeout_s: u32) -> Store {
        let options = format!(
            "-c%20default_transaction_read_only%3Doff%20-c%20lock_timeout%3D{lock_timeout_s}s%20-c%20statement_timeout%3D30s"
        );
        Store::Postgres(format!("{}?connect_timeout=5&options={options}", self.postgres.url(DATABASE)))
    }

    /// Begins an act. Returns what its name does not say.
    ///
    /// # Errors
    /// Why it could not be done; it may have been done in part.
    pub fn begin(&mut self, act: Act) -> Result<String, String> {
        self.disk_failed |= act.may_end_program();
        match act {
            Act::Statements(statements, n) => {
                let texts = statements.doing.iter().map(|text| text.replace("{n}", &n.to_string()));
                texts.into_iter().try_for_each(|text| self.sql(&text).map(drop))?;
            }
            Act::Held(_, sql) => {
                let url = format!("{}?options=-c%20lock_timeout%3D1s", self.postgres.url(DATABASE));
                self.held = Some(Held::open(&url, sql, 1)?);
            }
            Act::Terminate(percent) => self.terminate(percent)?,
            Act::Connections => {
                let url = self.postgres.url(DATABASE).replace("postgres@", "filler@");
                self.terminate(100)?;
                self.filler = Some(Held::open(&url, "SELECT 1", 200)?);
            }
            Act::Stopped(_, libc::SIGINT) => self.postgres.stop(),
            Act::Stopped(_, libc::SIGQUIT) => self.postgres.stop_immediately(),
            Act::Stopped(..) => self.postgres.kill(),
            Act::Frozen(all) => self.postgres.freeze(all),
            Act::Slow => self.pulses = Some(pulses(self.postgres.clone())),
            Act::ReadOnly => self.read_only(true)?,
            Act::Failover(_) => self.fail_over()?,
            Act::Restored => return self.restore(),
            Act::Network(mode) => {
                self.proxy.set(mode);
                if matches!(mode, Mode::Pass | Mode::Refuse) {
                    self.proxy.cut();
                }
            }
            Act::Commits(what, times) => {
                self.use_tls(false)?;
                self.proxy.cut_at_commit(what, times);
            }
            Act::Pooler(command, _) => self.pooler.as_ref().map_or(Ok(()), |pooler| pooler.command(command))?,
            Act::DiskFull => self.table_disk()?.fill(0).map_err(|error| error.to_string())?,
            Act::SlowDisk(flush) => self.slow_down(flush)?,
            Act::Clock(offset) => self.fakes.set_clocks("+0s", offset),
            Act::MachineClock(offset) => self.fakes.set_clocks(offset, offset),
            Act::JournalFull(at_start) => {
                self.data_disk()?.fill(0).map_err(|error| error.to_string())?;
                if at_start {
                    self.runs()?;
                    self.scenario.server().kill();
                    self.launch();
                }
            }
            Act::JournalShrinks => self.shrinking = Some(shrinking(self.data_disk()?)),
            Act::JournalFails(_, failure) => self.failing_disk()?.set(failure),
            Act::PowerLost => self.lose_power()?,
            Act::Damaged(harm, choice) => return self.damage(harm, choice),
            Act::Descriptors => {
                self.runs()?;
                let server = self.scenario.server();
                // A program that is still starting cannot go on without any, and says so as it ends.
                if !server.admin("/startupz").is_some_and(|answer| answer.status == 200) {
                    return Err("the program is starting".to_owned());
                }
                let open = server.open_files();
                server.limit_open_files(open);
                return Ok(format!("at {open}"));
            }
            Act::Idle(count) => {
                self.idle = idle_connections(self.scenario.server().http, count);
                if self.idle.is_empty() {
                    return Err("no connection is accepted".to_owned());
                }
                return Ok(format!("{} connected", self.idle.len()));
            }
            Act::Secret => self.rotate()?,
            Act::Certificate => self.rotate_certificate()?,
            Act::Ended(_, signal) => self.end_program(signal)?,
            Act::Suspended => self.scenario.server().freeze(),
        }
        Ok(String::new())
    }

    /// Ends an act; more than once if it fails.
    ///
    /// # Errors
    /// Why it could not be ended.
    pub fn end(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Statements(statements, _) => {
                // Longer than a flush may take.
                let admin = self.admin(10);
                statements.undoing.iter().try_for_each(|text| admin.rows(text).map(drop))?;
            }
            Act::Held(..) => self.held = None,
            Act::Connections => self.filler = None,
            // It does not recover on a full disk.
            Act::Stopped(..) => self.postgres.try_restart()?,
            Act::Frozen(_) => self.postgres.thaw(),
            Act::Slow => end_pulses(&mut self.pulses),
            Act::ReadOnly => self.read_only(false)?,
            Act::Network(_) => self.proxy.set(Mode::Pass),
            Act::Commits(what, _) => self.proxy.cut_at_commit(what, 0),
            Act::Pooler(_, command) => match self.pooler.as_ref().map_or(Ok(()), |pooler| pooler.command(command)) {
                // It was started again.
                Err(error) if error.contains("is not paused") => {}
                ended => ended?,
            },
            Act::DiskFull => self.table_disk()?.free(),
            Act::Clock(_) | Act::MachineClock(_) => self.fakes.set_clocks("+0s", "+0s"),
            Act::JournalFull(_) => self.data_disk()?.free(),
            Act::JournalShrinks => {
                end_pulses(&mut self.shrinking);
                self.data_disk()?.free();
            }
            Act::JournalFails(..) => self.failing_disk()?.set(Failure::default()),
            Act::Damaged(Harm::Page, _) => self.failing_disk()?.make_unreadable(None),
            Act::Descriptors => self.scenario.server().limit_open_files(OPEN_FILES_MAX),
            Act::Idle(_) => self.idle.clear(),
            Act::SlowDisk(_) => self.slow_down(Duration::ZERO)?,
            Act::Secret => {
                self.known_password = self.passwords;
                self.write_url();
            }
            Act::Certificate => self.write_ca(),
            Act::Ended(..) => self.launch(),
            Act::Suspended => self.scenario.server().signal(libc::SIGCONT),
            Act::Terminate(_) | Act::Failover(_) | Act::Restored | Act::PowerLost | Act::Damaged(..) => {}
        }
        Ok(())
    }

    fn terminate(&self, percent: u32) -> Result<(), String> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'logweir' AND pid % 100 < ";
        self.sql(&format!("{sql}{percent}")).map(drop)
    }

    fn read_only(&self, on: bool) -> Result<(), String> {
        self.sql(&format!("ALTER SYSTEM SET default_transaction_read_only = {}", if on { "on" } else { "off" }))?;
        self.sql("SELECT pg_reload_conf()").map(drop)
    }

    /// The program gets the new password only when the act ends.
    fn rotate(&mut self) -> Result<(), String> {
        let password = format!("chaos-{}", self.passwords + 1);
        self.sql(&format!("ALTER ROLE {ROLE} PASSWORD '{password}'"))?;
        self.passwords += 1;
        if let Some(pooler) = &self.pooler {
            pooler.set_users(&[(ROLE, &password)])?;
        }
        self.terminate(50)
    }

    /// The program gets the new CA only when the act ends.
    fn rotate_certificate(&mut self) -> Result<(), String> {
        self.use_tls(true)?;
        self.until("a session with TLS", BRIEFLY, |world| match &world.pooler {
            Some(pooler) => Ok(pooler.encrypted_clients(ROLE)? > 0),
            None => world
                .holds("SELECT 1 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'logweir'"),
        })?;
        self.new_certificate()?;
        self.terminate(50)
    }

    /// Gives a certificate of a new CA to who the program connects to.
    fn new_certificate(&mut self) -> Result<(), String> {
        let Identity { certificate, key, ca } = Identity::new();
        self.ca = ca;
        for (name, text) in [("server.crt", &certificate), ("server.key", &key)] {
            let path = self.postgres.data().join(name);
            let written = std::fs::write(&path, text)
                .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)));
            written.map_err(|error| format!("{name}: {error}"))?;
            give_to_server(&path);
        }
        self.sql("SELECT pg_reload_conf()")?;
        self.pooler.as_ref().map_or(Ok(()), |pooler| pooler.set_certificate(&certificate, &key))
    }

    fn use_tls(&mut self, tls: bool) -> Result<(), String> {
        if self.tls == tls {
            return Ok(());
        }
        self.tls = tls;
        self.write_url();
        self.terminate(100)
    }

    /// Without the setting, the server does not flush its files at all.
    fn slow_down(&self, flush: Duration) -> Result<(), String> {
        let slow_disk = self.fakes.slow_disk.as_ref().map_err(Clone::clone)?;
        slow_disk.set(flush);
        self.sql(&format!("ALTER SYSTEM SET fsync = {}", if flush.is_zero() { "off" } else { "on" }))?;
        self.sql("SELECT pg_reload_conf()").map(drop)
    }

    fn end_program(&mut self, signal: i32) -> Result<(), String> {
        let disk_failed = self.disk_failed;
        let server = self.scenario.server();
        if signal == libc::SIGKILL {
            server.kill();
            return Ok(());
        }
        server.signal(signal);
        let exit = server.wait(TERM_WITHIN);
        // A wrong exit is a violation, and no act that could not be done.
        let log = server.log_text();
        // A program that has said nothing yet may not handle signals yet.
        let was_starting = exit.signal() == Some(signal) && log.is_empty();
        let is_right = exit.code() == Some(0) || disk_failed && exit.code() == Some(DISK_FAILED) || was_starting;
        assert!(is_right, "SIGTERM: {exit:?}: {log}");
        Ok(())
    }

    /// Starts the program, as what supervises it does.
    pub fn launch(&mut self) {
        self.scenario.launch(&self.faults);
    }

    fn table_disk(&self) -> Result<&Disk, String> {
        self.disk.as_ref().ok_or_else(|| "mounting a disk needs root".to_owned())
    }

    fn data_disk(&self) -> Result<Arc<Disk>, String> {
        self.data_disk.clone().ok_or_else(|| "mounting a disk needs root".to_owned())
    }

    fn failing_disk(&self) -> Result<&FailingDisk, String> {
        self.fakes.failing_disk.as_ref().map_err(Clone::clone)
    }

    fn runs(&mut self) -> Result<(), String> {
        self.scenario.server().exited().map_or(Ok(()), |_| Err("the program does not run".to_owned()))
    }

    fn lose_power(&mut self) -> Result<(), String> {
        self.runs()?;
        let disk = self.data_disk()?;
        disk.power_off();
        self.scenario.server().kill();
        disk.power_on();
        self.launch();
        Ok(())
    }

    /// Damages records that are only in the journal.
    fn damage(&mut self, harm: Harm, choice: usize) -> Result<String, String> {
        self.runs()?;
        self.proxy.set(Mode::Refuse);
        self.proxy.cut();
        let damaged = self.accepted(JOURNALED, ACCEPTED_WITHIN).and_then(|()| {
            self.scenario.server().kill();
            self.launch();
            // The next segment.
            self.accepted(1, STARTED_WITHIN)?;
            self.scenario.server().kill();
            damage(&self.scenario.data_dir().join("journal"), harm, choice)
        });
        if damaged.as_ref().is_ok_and(|damaged| damaged.unreadable.is_some()) {
            let unreadable = damaged.as_ref().ok().and_then(|damaged| damaged.unreadable.clone());
            self.failing_disk()?.make_unreadable(unreadable);
        }
        if self.scenario.server().exited().is_some() {
            self.launch();
        }
        self.proxy.set(Mode::Pass);
        let damaged = damaged?;
        self.damaged.extend(damaged.keys);
        Ok(damaged.place)
    }

    /// Waits until the program has accepted so many records more.
    fn accepted(&self, records: u64, within: Duration) -> Result<(), String> {
        let target = self.scenario.ledger.records(Outcome::Acknowledged) + records;
        self.until("more records are acknowledged", within, |world| {
            Ok(world.scenario.ledger.records(Outcome::Acknowledged) >= target)
        })
    }

    /// The records that were damaged in the journal: they may be missing.
    #[must_use]
    pub fn damaged(&self) -> &HashSet<Key> {
        &self.damaged
    }

    /// Loses the server while a synchronous standby has everything that was committed, and promotes the standby.
    fn fail_over(&mut self) -> Result<(), String> {
        let standby = self.standby()?;
        if let Err(error) = self.replicate() {
            self.sql("ALTER SYSTEM RESET synchronous_standby_names")?;
            self.sql("SELECT pg_reload_conf()")?;
            return Err(error);
        }
        self.postgres.kill();
        standby.postgres.execute("SELECT pg_promote(true, 30)");
        self.succeed(standby)
    }

    /// Goes back to a copy of the database from which something is missing that was stored after it. The program finds
    /// that in its journal. Nothing else happens between the two moments, so that acts that are in force remain so.
    fn restore(&mut self) -> Result<String, String> {
        let copy = self.standby()?;
        copy.postgres.execute("SELECT pg_promote(true, 30)");
        // Nothing more is stored if another act prevents it.
        let (since, then) = (Instant::now(), stored(&copy.postgres));
        while since.elapsed() < BRIEFLY && stored(&self.postgres) < then + RESTORED {
            std::thread::sleep(Duration::from_millis(50));
        }
        let removed = stored(&self.postgres).saturating_sub(then);
        self.postgres.kill();
        self.succeed(copy)?;
        Ok(format!("{removed} records removed"))
    }

    /// A standby of the server.
    fn standby(&self) -> Result<Successor, String> {
        let moved = match &self.disk {
            Some(disk) => {
                let to = directory(&disk.path().join((self.successors + 1).to_string()))?;
                vec![(self.tablespace.clone(), to)]
            }
            None => Vec::new(),
        };
        Ok(Successor { postgres: self.postgres.standby(free_addr().port(), "chaos", &moved)?, moved })
    }

    /// Lets another server take the place of the one that is lost.
    fn succeed(&mut self, successor: Successor) -> Result<(), String> {
        let Successor { postgres, moved } = successor;
        let port = postgres.port();
        self.postgres = Arc::new(postgres);
        self.scenario.store = Store::Postgres(self.postgres.url(DATABASE));
        self.successors += 1;
        for (from, to) in moved {
            let _ = std::fs::remove_dir_all(from);
            self.tablespace = to;
        }
        match &self.pooler {
            Some(pooler) => pooler.move_to(DATABASE, port),
            None => {
                self.proxy.move_to(local(port));
                self.proxy.cut();
                Ok(())
            }
        }
    }

    fn replicate(&self) -> Result<(), String> {
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'chaos'")?;
        self.sql("SELECT pg_reload_conf()")?;
        let standby = "FROM pg_stat_replication WHERE application_name = 'chaos' AND sync_state = 'sync'";
        let standby = |and: &str| format!("SELECT 1 {standby} {and}");
        self.until("a synchronous standby", FAILOVER_WITHIN, |world| world.holds(&standby("")))?;
        // The checkpointer tells the sessions that they must wait for the standby, before it makes a checkpoint.
        self.sql("CHECKPOINT")?;
        let position = self.sql("SELECT pg_current_wal_flush_lsn()")?;
        let has_all = standby(&format!("AND flush_lsn >= '{}'", position[0][0]));
        self.until("a standby that has everything", FAILOVER_WITHIN, |world| world.holds(&has_all))
    }

    /// Whether a query returns a row.
    fn holds(&self, sql: &str) -> Result<bool, String> {
        self.sql(sql).map(|rows| !rows.is_empty())
    }

    fn until(&self, what: &str, within: Duration, holds: impl Fn(&Self) -> Result<bool, String>) -> Result<(), String> {
        let deadline = Instant::now() + within;
        while !holds(self)? {
            if Instant::now() > deadline {
                return Err(format!("not within {within:?}: {what}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Starts PgBouncer again if it crashed; returns whether it had.
    #[must_use]
    pub fn pooler_crashed(&self) -> bool {
        self.pooler.as_ref().is_some_and(Pooler::start_if_ended)
    }

    /// The exit of the program, if it ended.
    pub fn exited(&mut self) -> Option<Exit> {
        self.scenario.server().exited()
    }

    /// Ends the program's sessions: a dropped table that it has not needed since is created when it connects again.
    ///
    /// # Errors
    /// The database's error.
    pub fn end_sessions(&self) -> Result<(), String> {
        self.terminate(100)
    }

    /// The records that were stored when an operator dropped the table that they were in.
    ///
    /// # Errors
    /// The database's error.
    pub fn dropped(&self) -> Result<Contents, String> {
        self.scenario.store.records(DROPPED_LOGS, DROPPED_DEAD_LETTERS)
    }

    /// What the sessions of the server do, for a report.
    #[must_use]
    pub fn sessions(&self) -> String {
        let sql = "SELECT pid, usename, application_name, state, wait_event_type, wait_event, left(query, 100) \
                   FROM pg_stat_activity WHERE datname = current_database()";
        match self.sql(sql) {
            Ok(rows) => rows.iter().map(|row| row.join(" | ") + "\n").collect(),
            Err(error) => error,
        }
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        end_pulses(&mut self.pulses);
        end_pulses(&mut self.shrinking);
        self.held = None;
        self.filler = None;
        // Its files are on the disk, which is unmounted next.
        self.scenario.kill_server();
        self.postgres.stop_immediately();
    }
}

/// A server that takes the place of another one, and where it has its tablespaces.
struct Successor {
    postgres: Postgres,
    moved: Vec<(PathBuf, PathBuf)>,
}

/// Records that were stored, by the lanes' counts; 0 if they cannot be read.
fn stored(postgres: &Postgres) -> u64 {
    let lanes = Store::Postgres(postgres.url(DATABASE)).rows("SELECT coalesce(sum(rows + dead), 0) FROM logweir_lane");
    lanes.unwrap_or_default().concat().concat().parse().unwrap_or(0)
}

/// Stops and continues the server until told to end.
fn pulses(postgres: Arc<Postgres>) -> Pulses {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            postgres.freeze(true);
            std::thread::sleep(Duration::from_millis(80));
            postgres.thaw();
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    (stop, thread)
}

/// Takes the space of a disk step by step until told to end.
fn shrinking(disk: Arc<Disk>) -> Pulses {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        for left_mib in [96, 64, 48, 32, 24, 16, 8, 4, 2, 1, 0] {
            if told.load(Ordering::Relaxed) {
                return;
            }
            // What others took meanwhile need not be taken.
            let _ = disk.fill(left_mib << 20);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    (stop, thread)
}

fn end_pulses(pulses: &mut Option<Pulses>) {
    if let Some((stop, thread)) = pulses.take() {
        stop.store(true, Ordering::Relaxed);
        let _ = thread.join();
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn directory(path: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(path).map_err(|error| format!("a directory on the disk: {error}"))?;
    give_to_server(path);
    Ok(path.to_owned())
}

/// Replaces a file as secrets are: a reader never sees a part of it.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("the file is writable");
    std::fs::rename(new, path).expect("the file is writable");
}
