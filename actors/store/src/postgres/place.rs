//! Where a record is inserted: into `logs`, or into the table for late records beside a hypertable.
//!
//! By its time, and by locks that were in the way lately ([`Detour`]). Flushes, replays and the mover of late records all
//! decide by this.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logweir_record::timestamp::DAY_US;
use tokio::time::Instant;

use super::ddl::Relation;
use super::home::Home;
use super::logs::LATE;

/// A table that records are inserted into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `logs`.
    Logs,
    /// [`LATE`].
    Late,
}

impl Place {
    pub(super) fn table(self, home: &Home) -> Relation {
        home.table(match self {
            Self::Logs => "logs",
            Self::Late => LATE,
        })
    }

    /// The statement `template`, which writes the table as `$logs`.
    pub(super) fn sql(self, home: &Home, template: &str) -> String {
        template.replace("$logs", &self.table(home).to_string())
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

/// The times within reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    from_us: i64,
    to_us: i64,
}

impl Window {
    /// At this time.
    pub(super) fn at(now_us: i64, reach: Reach) -> Self {
        Self {
            from_us: now_us.saturating_sub(i64::from(reach.past_days) * DAY_US),
            to_us: now_us.saturating_add(i64::from(reach.future_days) * DAY_US),
        }
    }

    pub(super) fn contains(&self, ts_us: i64) -> bool {
        (self.from_us..self.to_us).contains(&ts_us)
    }

    /// Whether it has a time of this range.
    pub(super) fn overlaps(&self, (from_us, to_us): (i64, i64)) -> bool {
        from_us < self.to_us && self.from_us < to_us
    }
}

/// The times within reach during a detour, around the present.
const RECENT_US: i64 = 3_600_000_000;

/// How long a detour takes, after which a flush tries again whether the lock is still held.
const DETOUR: Duration = Duration::from_secs(60);

/// A lock on a chunk was not available: for a while, more records go beside `logs`. First all but those of the last hour,
/// then all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Detour(Option<Taken>);

#[derive(Clone, Copy, Debug)]
struct Taken {
    until: Instant,
    all: bool,
}

impl Detour {
    /// The next one, after a flush on this one has waited for a lock in vain.
    fn locked(self, now: Instant) -> Self {
        Self(Some(Taken { until: now + DETOUR, all: self.current(now).is_some() }))
    }

    /// The times of records that go to `logs` now.
    pub(super) fn window(&self, now: Instant, now_us: i64, reach: Reach) -> Window {
        let around = |us: i64| Window { from_us: now_us.saturating_sub(us), to_us: now_us.saturating_add(us) };
        match self.current(now) {
            None => Window::at(now_us, reach),
            Some(Taken { all: false, .. }) => around(RECENT_US),
            Some(Taken { all: true, .. }) => around(0),
        }
    }

    fn current(&self, now: Instant) -> Option<Taken> {
        self.0.filter(|taken| now < taken.until)
    }
}

/// The detour of all lanes of a process.
#[derive(Clone, Default)]
pub(super) struct SharedDetour(Arc<Mutex<Detour>>);

impl SharedDetour {
    pub(super) fn get(&self) -> Detour {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in that a flush on the detour `from` has waited for a lock in vain.
    pub(super) fn locked(&self, from: Detour) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = from.locked(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 20_000 * DAY_US + DAY_US / 2;
    const REACH: Reach = Reach { past_days: 7, future_days: 1 };

    #[test]
    fn one_statement_serves_both_tables() {
        let home = Home::new("s");
        let sql = |place: Place| place.sql(&home, "COPY $logs (id) FROM STDIN");
        assert_eq!(sql(Place::Logs), r#"COPY "s"."logs" (id) FROM STDIN"#);
        assert_eq!(sql(Place::Late), r#"COPY "s"."logweir_late" (id) FROM STDIN"#);
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
    }

    #[test]
    fn each_lock_that_is_held_lets_more_records_go_beside_for_a_while() {
        let begin = Instant::now();
        let mut detour = Detour::default();
        let from = |detour: &Detour, s| NOW - detour.window(begin + Duration::from_secs(s), NOW, REACH).from_us;
        assert_eq!(from(&detour, 0), 7 * DAY_US);
        detour = detour.locked(begin);
        assert_eq!((from(&detour, 0), from(&detour, 59), from(&detour, 60)), (RECENT_US, RECENT_US, 7 * DAY_US));
        detour = detour.locked(begin + Duration::from_secs(2));
        assert!(!detour.window(begin + Duration::from_secs(61), NOW, REACH).contains(NOW), "all");
        assert_eq!(from(&detour, 62), 7 * DAY_US);
        detour = detour.locked(begin + Duration::from_secs(70));
        assert_eq!(from(&detour, 71), RECENT_US, "it begins again");
    }
}
