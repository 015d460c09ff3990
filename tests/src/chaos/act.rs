//! An act: one thing that happens to the database, to the way to it, or to the program, with its parameters.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;

use crate::chaos::damage::Harm;
use crate::chaos::operator::{HELD, STATEMENTS, Statements};
use crate::chaos::slot::Slot;
use crate::disk::Failure;
use crate::proxy::{AtCommit, Mode};

/// What this machine and this run allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Small disks can be mounted, for the tables and for the journal.
    pub disk: bool,
    /// Clocks can be wrong.
    pub clock: bool,
    /// PgBouncer is between the program and the server.
    pub pooler: bool,
    /// The server's files can be slow.
    pub slow_disk: bool,
    /// The program's files can fail.
    pub failing_disk: bool,
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// An operator's statements, with the number for `{n}`.
    Statements(&'static Statements, u32),
    /// Another session's open transaction: its kind and its statements.
    Held(&'static str, &'static str),
    /// `pg_terminate_backend` for this share of logweir's sessions, in percent.
    Terminate(u32),
    /// Other sessions take all connections, and logweir's are ended.
    Connections,
    /// The server is stopped by this signal and started again.
    Stopped(&'static str, i32),
    /// All processes of the server stand still; or only the postmaster, which accepts connections.
    Frozen(bool),
    /// The server runs only for a fifth of the time.
    Slow,
    /// Every transaction is read-only.
    ReadOnly,
    /// The server is lost, and its synchronous standby is promoted; with PgBouncer, which is told so.
    Failover(bool),
    /// The server is lost, and a copy of an earlier moment takes its place.
    Restored,
    /// Connections are cut, and this happens to the network.
    Network(Mode),
    /// Connections are cut at the next COMMITs.
    Commits(AtCommit, u32),
    /// Commands for PgBouncer, before and after.
    Pooler(&'static str, &'static str),
    /// The disk of the tables is full.
    DiskFull,
    /// Each flush of the server's log takes this long, and other accesses to its files a part of it.
    SlowDisk(Duration),
    /// The clock of the program is this far off.
    Clock(&'static str),
    /// The clocks of the program and of the server are this far off.
    MachineClock(&'static str),
    /// The disk of the journal is full; the program is killed and starts on it, or goes on.
    JournalFull(bool),
    /// The free space of the disk of the journal becomes less and less, until it is full.
    JournalShrinks,
    /// The files of the journal fail: the name of the kind, and how.
    JournalFails(&'static str, Failure),
    /// The disk of the journal loses power, and the program with it; both start again.
    PowerLost,
    /// While the database cannot be reached, the program is killed twice, and this happens to a closed segment of its
    /// journal; the number chooses the place.
    Damaged(Harm, usize),
    /// The program may open no more files than it has.
    Descriptors,
    /// So many clients connect and send nothing.
    Idle(usize),
    /// The role has a new password, and the program's file gets it later.
    Secret,
    /// The server has a certificate of a new CA, and the program's file gets that later.
    Certificate,
    /// The program is ended by this signal and started again.
    Ended(&'static str, i32),
    /// The program stands still.
    Suspended,
}

impl Act {
    /// The name of its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Statements(statements, _) => statements.kind,
            Self::Held(kind, _) => kind,
            Self::Terminate(_) => "backends_terminated",
            Self::Connections => "connections_exhausted",
            Self::Stopped(kind, _) | Self::Ended(kind, _) => kind,
            Self::Frozen(true) => "server_frozen",
            Self::Frozen(false) => "postmaster_frozen",
            Self::Slow => "server_slow",
            Self::ReadOnly => "server_read_only",
            Self::Failover(false) => "failover",
            Self::Failover(true) => "failover_behind_pooler",
            Self::Restored => "database_restored",
            Self::Network(mode) => match mode {
                Mode::Pass => "network_cut",
                Mode::Refuse => "network_refused",
                Mode::Swallow => "network_black_hole",
                Mode::Delay(_) => "network_delayed",
                Mode::Throttle(_) => "network_narrow",
            },
            Self::Commits(AtCommit::RequestLost, _) => "commit_lost",
            Self::Commits(AtCommit::ReplyLost, _) => "commit_reply_lost",
            Self::Commits(AtCommit::Late(_) | AtCommit::Held, _) => "commit_late",
            Self::Pooler(..) => "pooler",
            Self::DiskFull => "disk_full",
            Self::SlowDisk(_) => "slow_disk",
            Self::Clock(_) => "clock_step",
            Self::MachineClock(_) => "machine_clock_step",
            Self::JournalFull(false) => "journal_disk_full",
            Self::JournalFull(true) => "journal_disk_full_at_start",
            Self::JournalShrinks => "journal_disk_shrinks",
            Self::JournalFails(kind, _) => kind,
            Self::PowerLost => "journal_power_lost",
            Self::Damaged(Harm::Bit, _) => "journal_bit_flipped",
            Self::Damaged(Harm::Bytes(_), _) => "journal_bytes_damaged",
            Self::Damaged(Harm::Page, _) => "journal_page_unreadable",
            Self::Descriptors => "descriptors_exhausted",
            Self::Idle(_) => "idle_connections",
            Self::Secret => "secret_rotated",
            Self::Certificate => "certificate_rotated",
            Self::Suspended => "program_frozen",
        }
    }

    /// What only one act may change at a time.
    #[must_use]
    pub fn slot(&self) -> Slot {
        match self {
            Self::Statements(statements, _) => statements.slot,
            Self::Held(..) => Slot::Held,
            Self::Terminate(_) | Self::Connections => Slot::Sessions,
            Self::Stopped(..)
            | Self::Frozen(_)
            | Self::Slow
            | Self::ReadOnly
            | Self::Failover(_)
            | Self::Restored
            | Self::SlowDisk(_) => Slot::Server,
            // Both decide whether the server can be reached.
            Self::Network(_) | Self::Damaged(..) => Slot::Network,
            // TLS hides where the COMMITs are.
            Self::Commits(..) | Self::Certificate => Slot::Commit,
            Self::Pooler(..) => Slot::Pooler,
            Self::DiskFull => Slot::Disk,
            Self::JournalFull(_) | Self::JournalShrinks | Self::JournalFails(..) | Self::PowerLost => Slot::JournalDisk,
            Self::Clock(_) | Self::MachineClock(_) => Slot::Clock,
            Self::Descriptors | Self::Idle(_) => Slot::Descriptors,
            Self::Secret => Slot::Secret,
            Self::Ended(..) | Self::Suspended => Slot::Program,
        }
    }

    /// Whether everything is stored nevertheless. Such an act stays in force until the end of its round, and the program
    /// must go on in spite of it.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        match self {
            Self::Statements(statements, _) => statements.harmless,
            Self::Held(kind, _) => *kind == "snapshot",
            // In spite of a page that it cannot read, of slow flushes and of writes of a part.
            Self::Clock(_) | Self::MachineClock(_) | Self::Damaged(..) => true,
            Self::JournalFails(_, failure) => !failure.fails() && failure.flush < Duration::from_secs(1),
            _ => false,
        }
    }

    /// Whether the program may end because of it, with the exit code of a failed disk.
    #[must_use]
    pub fn may_end_program(&self) -> bool {
        self.slot() == Slot::JournalDisk
    }

    /// Whether nothing else is done while it lasts: nobody can reach the server then.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        matches!(self.slot(), Slot::Server) && !matches!(self, Self::SlowDisk(_))
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Statements(statements, n) if statements.doing.iter().any(|text| text.contains("{n}")) => {
                write!(f, " n={n}")
            }
            Self::Terminate(percent) => write!(f, " {percent} %"),
            Self::Network(mode) => write!(f, " {mode:?}"),
            Self::Commits(what, times) => write!(f, " {what:?} x{times}"),
            Self::Pooler(doing, undoing) => write!(f, " {doing}; {undoing}"),
            Self::Clock(offset) | Self::MachineClock(offset) => write!(f, " {offset}"),
            Self::JournalFails(_, Failure { flush, part, .. }) if *part > 0 || !flush.is_zero() => {
                write!(f, " {flush:?} {part}")
            }
            Self::Damaged(harm, choice) => write!(f, " {harm:?} {choice}"),
            Self::Idle(count) => write!(f, " {count}"),
            Self::SlowDisk(flush) => write!(f, " {flush:?}"),
            _ => Ok(()),
        }
    }
}

fn millis(random: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

/// One act of each kind that is possible here, with seeded parameters.
#[must_use]
pub fn one_of_each(random: &mut StdRng, abilities: Abilities) -> Vec<Act> {
    let mut acts: Vec<Act> =
        STATEMENTS.iter().map(|statements| Act::Statements(statements, random.random_range(2..20))).collect();
    acts.extend(HELD.iter().map(|(kind, sql)| Act::Held(kind, sql)));
    let (delay, late) = (millis(random, 10..200), millis(random, 200..1500));
    acts.extend([
        Act::Terminate(100),
        Act::Terminate(random.random_range(20..90)),
        Act::Connections,
        Act::Stopped("server_restarted", libc::SIGINT),
        Act::Stopped("server_restarted_immediately", libc::SIGQUIT),
        Act::Stopped("server_killed", libc::SIGKILL),
        Act::Frozen(true),
        Act::Frozen(false),
        Act::Slow,
        Act::ReadOnly,
        Act::Failover(abilities.pooler),
        Act::Restored,
        Act::Network(Mode::Pass),
        Act::Network(Mode::Refuse),
        Act::Network(Mode::Swallow),
        Act::Network(Mode::Delay(delay)),
        Act::Network(Mode::Throttle(random.random_range(20_000..200_000))),
        Act::Commits(AtCommit::RequestLost, random.random_range(1..6)),
        Act::Commits(AtCommit::ReplyLost, random.random_range(1..6)),
        Act::Commits(AtCommit::Late(late), random.random_range(1..6)),
        Act::Secret,
        Act::Certificate,
        Act::Ended("program_killed", libc::SIGKILL),
        Act::Ended("program_terminated", libc::SIGTERM),
        Act::Suspended,
        Act::Damaged(Harm::Bit, random.random_range(0..1 << 20)),
        Act::Damaged(Harm::Bit, random.random_range(0..1 << 20)),
        Act::Damaged(Harm::Bytes(random.random_range(2..200)), random.random_range(0..1 << 20)),
        Act::Descriptors,
        Act::Idle(random.random_range(100..900)),
    ]);
    if abilities.pooler {
        acts.extend([
            Act::Pooler("RECONNECT", "SHOW VERSION"),
            Act::Pooler("KILL logs", "RESUME logs"),
            // Not PAUSE, which waits for the end of all sessions in session mode.
            Act::Pooler("DISABLE logs", "ENABLE logs"),
        ]);
    }
    if abilities.disk {
        acts.extend([Act::DiskFull, Act::JournalFull(false), Act::JournalFull(true)]);
        acts.extend([Act::JournalShrinks, Act::PowerLost]);
    }
    if abilities.slow_disk {
        // The last one is beyond the program's patience with a statement.
        acts.extend([20..200, 200..2000, 5000..7000].map(|range| Act::SlowDisk(millis(random, range))));
    }
    if abilities.clock {
        acts.extend(["+400d", "-1h", "-56y", "+20y"].map(Act::Clock));
        acts.extend(["+400d", "-1h", "+20y"].map(Act::MachineClock));
    }
    if abilities.failing_disk {
        let none = Failure::default();
        let (eio, quota) = (libc::EIO, libc::EDQUOT);
        acts.extend([
            Act::JournalFails("journal_disk_broken", Failure { read: eio, write: eio, sync: eio, ..none }),
            Act::JournalFails("journal_read_and_write_error", Failure { read: eio, write: eio, ..none }),
            Act::JournalFails("journal_read_error", Failure { read: eio, ..none }),
            Act::JournalFails("journal_write_error", Failure { write: eio, ..none }),
            Act::JournalFails("journal_sync_error", Failure { sync: eio, ..none }),
            Act::JournalFails("journal_quota_exceeded", Failure { space: quota, ..none }),
            Act::JournalFails("journal_flush_hangs", Failure { flush: millis(random, 2000..8000), ..none }),
            Act::JournalFails("journal_flush_slow", Failure { flush: millis(random, 20..300), ..none }),
            Act::JournalFails("journal_writes_a_part", Failure { part: random.random_range(100..5000), ..none }),
            Act::Damaged(Harm::Page, random.random_range(0..1 << 20)),
        ]);
    }
    acts
}
