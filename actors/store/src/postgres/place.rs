//! Where a record is stored: in `logs`, or in the table for late records beside it. Pure, but for [`SharedFallback`].
//!
//! Late means far from the present, in the past or in the future.
//!
//! # Late records share the transaction of their batch
//!
//! A lane's cursor moves over whole batches: one compare-and-set accounts for all rows, dead letters and counters of
//! frames whose records are mixed. A transaction of their own for late records would need a second cursor per lane, or
//! batches that are accounted for in two halves, which takeovers, forks and `verify` would all have to know. What was
//! wanted of it, that late records wait for no lock that fresh ones do not need, a table of their own gives as well.
//!
//! Daily partitions need no table for late records, since the default partition takes them. It is made beside them when a
//! lock on `logs` or a partition is met first, and serves as a fallback only.
//!
//! What it costs: while somebody holds a lock on one of the tables, a batch that needs it waits for `lock_timeout` once
//! per minute and process, with its fresh records. In between there is the fallback: what belongs to a locked place goes
//! to the other one. Late records in `logs` make chunks then, of as many days per transaction as a batch may have.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logweir_record::timestamp::DAY_US;
use tokio::time::Instant;

use super::ddl::Relation;
use super::home::Home;
use super::logs::LATE;

/// A table for records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `logs`.
    Logs,
    /// The table for late records.
    Late,
}

/// Inserts one row. Here since flushes and replayed dead letters must store the same.
pub(super) const INSERT_SQL: &str = "INSERT INTO $logs (id, ts, severity, service, host, message, attributes) \
    VALUES ($1, $2, $3, $4, $5, $6, $7)";

impl Place {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Late => LATE,
        }
    }

    pub(super) fn table(self, home: &Home) -> Relation {
        home.table(self.name())
    }

    /// The statement `template`, which writes the table as `$logs`.
    pub(super) fn sql(self, home: &Home, template: &str) -> String {
        template.replace("$logs", &self.table(home).to_string())
    }

    /// The other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Logs => Self::Late,
            Self::Late => Self::Logs,
        }
    }
}

/// How far from the present a record may be to be stored with the others of its day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// Days back. What is compressed is never within reach.
    pub(super) past_days: u32,
    /// Days ahead.
    pub(super) future_days: u32,
}

/// A range of times: those that are within reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    from_us: i64,
    to_us: i64,
}

impl Window {
    pub(super) const ALL: Self = Self { from_us: i64::MIN, to_us: i64::MAX };

    /// At this time.
    pub(super) fn at(now_us: i64, reach: Reach) -> Self {
        Self {
            from_us: now_us.saturating_sub(i64::from(reach.past_days) * DAY_US),
            to_us: now_us.saturating_add(i64::from(reach.future_days) * DAY_US),
        }
    }

    fn around(now_us: i64, us: i64) -> Self {
        Self { from_us: now_us.saturating_sub(us), to_us: now_us.saturating_add(us) }
    }

    /// Its first time, and the one after its last.
    pub(super) fn range(&self) -> (i64, i64) {
        (self.from_us, self.to_us)
    }

    pub(super) fn contains(&self, ts_us: i64) -> bool {
        *self == Self::ALL || (self.from_us..self.to_us).contains(&ts_us)
    }

    /// Whether it has a time of this range.
    pub(super) fn overlaps(&self, (from_us, to_us): (i64, i64)) -> bool {
        from_us < self.to_us && self.from_us < to_us
    }
}

/// Which records of a flush go where. Decided once per flush, so that each attempt finds a record in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placing {
    in_logs: Window,
}

impl Placing {
    /// Every record goes to `logs`.
    pub(super) const LOGS: Self = Self { in_logs: Window::ALL };

    /// Without a `reach` every record is within it: partitions have a default one.
    pub(super) fn new(fallback: Fallback, now_us: i64, reach: Option<Reach>) -> Self {
        let in_logs = match fallback {
            Fallback::None => reach.map_or(Window::ALL, |reach| Window::at(now_us, reach)),
            Fallback::Recent => Window::around(now_us, RECENT_US),
            Fallback::Late => Window::around(now_us, 0),
            Fallback::Logs => Window::ALL,
        };
        Self { in_logs }
    }

    pub(super) fn of(&self, ts_us: i64) -> Place {
        if self.in_logs.contains(ts_us) { Place::Logs } else { Place::Late }
    }
}

/// The distance from the present up to which records go to `logs` during [`Fallback::Recent`].
const RECENT_US: i64 = 3_600_000_000;

/// How long a fallback lasts. Then a flush tries whether the lock is still held.
const LASTS: Duration = Duration::from_secs(60);

/// Where records go because somebody holds a lock on the place where they belong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fallback {
    /// Where they belong.
    #[default]
    None,
    /// `logs` was locked: those of the last hour to `logs`, since it may be another day's chunk that is locked. The others
    /// to the table for late records.
    Recent,
    /// `logs` was locked for recent records, too: all to the table for late records.
    Late,
    /// The table for late records was locked: all to `logs`.
    Logs,
}

/// Which places are locked, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
struct Locks {
    logs: Option<Locked>,
    late: Option<Locked>,
}

#[derive(Clone, Copy, Debug)]
struct Locked {
    until: Instant,
    /// Also for recent records.
    all: bool,
}

impl Locks {
    /// Which fallback a flush begins with now. If both places are locked, a flush has to wait.
    fn fallback(&self, now: Instant) -> Fallback {
        let current = |locked: Option<Locked>| locked.filter(|locked| now < locked.until);
        match (current(self.logs), current(self.late)) {
            (None, None) | (Some(_), Some(_)) => Fallback::None,
            (Some(Locked { all: false, .. }), None) => Fallback::Recent,
            (Some(Locked { all: true, .. }), None) => Fallback::Late,
            (None, Some(_)) => Fallback::Logs,
        }
    }

    /// After a flush that began with the fallback `with` has waited for a lock on `place` in vain. Returns whether this is
    /// new.
    fn add(&mut self, place: Place, with: Fallback, now: Instant) -> bool {
        let locked = Locked { until: now + LASTS, all: matches!(with, Fallback::Recent | Fallback::Late) };
        self.of(place).replace(locked).is_none()
    }

    /// Forgets the lock on `place` a while after the fallback, unless it was met again. Returns whether it did.
    fn forget(&mut self, place: Place, now: Instant) -> bool {
        self.of(place).take_if(|locked| now >= locked.until + LASTS).is_some()
    }

    fn of(&mut self, place: Place) -> &mut Option<Locked> {
        match place {
            Place::Logs => &mut self.logs,
            Place::Late => &mut self.late,
        }
    }
}

/// The fallback of all lanes of a process.
#[derive(Clone, Default)]
pub(super) struct SharedFallback(Arc<Mutex<Locks>>);

impl SharedFallback {
    /// Which one a flush begins with now.
    pub(super) fn get(&self) -> Fallback {
        let now = Instant::now();
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for place in [Place::Logs, Place::Late] {
            if locks.forget(place, now) {
                gauge(place, 0.0);
                let table = place.name();
                tracing::info!(table, "records go to the table again that was locked");
            }
        }
        locks.fallback(now)
    }

    /// Notes that a flush that began with the fallback `with` has waited for a lock on `place` in vain, with this error.
    pub(super) fn locked(&self, place: Place, with: Fallback, error: &str) {
        let is_new = self.0.lock().unwrap_or_else(PoisonError::into_inner).add(place, with, Instant::now());
        if is_new {
            gauge(place, 1.0);
            let (table, instead) = (place.name(), place.other().name());
            tracing::warn!(table, instead, error, "a table is locked: its records go to the other one meanwhile");
        }
    }
}

fn gauge(place: Place, value: f64) {
    metrics::gauge!("logweir_store_fallback", "table" => place.name()).set(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 20_000 * DAY_US + DAY_US / 2;
    const REACH: Reach = Reach { past_days: 7, future_days: 1 };

    fn is_in_logs(fallback: Fallback, ago_us: i64) -> bool {
        Placing::new(fallback, NOW, Some(REACH)).of(NOW - ago_us) == Place::Logs
    }

    #[test]
    fn what_is_near_the_present_is_within_the_window() {
        let window = Window::at(NOW, REACH);
        for ts_us in [NOW, NOW - 7 * DAY_US, NOW + DAY_US - 1] {
            assert!(window.contains(ts_us));
        }
        for ts_us in [NOW - 7 * DAY_US - 1, NOW + DAY_US, i64::MIN, i64::MAX] {
            assert!(!window.contains(ts_us));
        }
        assert!([i64::MIN, i64::MAX].iter().all(|&ts_us| Placing::LOGS.of(ts_us) == Place::Logs));
    }

    #[test]
    fn a_fallback_puts_records_where_no_lock_is_held() {
        let in_logs = |fallback| [0, RECENT_US, RECENT_US + 1, 8 * DAY_US].map(|ago| is_in_logs(fallback, ago));
        assert_eq!(in_logs(Fallback::None), [true, true, true, false]);
        assert_eq!(in_logs(Fallback::Recent), [true, true, false, false]);
        assert_eq!(in_logs(Fallback::Late), [false; 4]);
        assert_eq!(in_logs(Fallback::Logs), [true; 4]);
        assert_eq!(Placing::new(Fallback::None, NOW, None), Placing::LOGS);
    }

    #[test]
    fn each_lock_on_logs_lets_more_records_go_to_the_table_for_late_ones_for_a_while() {
        let (begin, s) = (Instant::now(), Duration::from_secs);
        let mut locks = Locks::default();
        let mut lock = |at, expected: Fallback| {
            let with = locks.fallback(begin + at);
            locks.add(Place::Logs, with, begin + at);
            assert_eq!(locks.fallback(begin + at), expected);
            locks
        };
        let locks = lock(s(0), Fallback::Recent);
        assert_eq!((locks.fallback(begin + s(59)), locks.fallback(begin + s(60))), (Fallback::Recent, Fallback::None));
        let locks = lock(s(2), Fallback::Late);
        assert_eq!((locks.fallback(begin + s(61)), locks.fallback(begin + s(62))), (Fallback::Late, Fallback::None));
        lock(s(70), Fallback::Recent);
    }

    #[test]
    fn a_lock_on_the_table_for_late_records_sends_them_to_logs_and_two_locks_let_a_flush_wait() {
        let (begin, s) = (Instant::now(), Duration::from_secs);
        let mut locks = Locks::default();
        locks.add(Place::Late, Fallback::None, begin);
        assert_eq!((locks.fallback(begin), locks.fallback(begin + s(60))), (Fallback::Logs, Fallback::None));
        locks.add(Place::Logs, Fallback::Logs, begin + s(30));
        assert_eq!(locks.fallback(begin + s(30)), Fallback::None, "both are locked");
        assert_eq!(locks.fallback(begin + s(60)), Fallback::Recent, "the older one is tried again");
        // What belongs to `logs` was tried where it belongs, so nothing is known of recent records.
        locks.add(Place::Logs, Fallback::None, begin + s(61));
        assert_eq!(locks.fallback(begin + s(61)), Fallback::Recent);
    }

    #[test]
    fn a_fallback_ends_when_its_lock_was_not_met_again() {
        let (begin, s) = (Instant::now(), Duration::from_secs);
        let mut locks = Locks::default();
        assert!(locks.add(Place::Logs, Fallback::None, begin), "it begins");
        assert!(!locks.forget(Place::Logs, begin + s(60)), "a flush has to try first");
        assert!(!locks.add(Place::Logs, Fallback::None, begin + s(65)), "it goes on");
        assert!(!locks.forget(Place::Logs, begin + s(184)) && locks.forget(Place::Logs, begin + s(185)));
        assert!(!locks.forget(Place::Late, begin + s(185)));
    }
}
