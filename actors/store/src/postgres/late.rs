//! Records far from the present, on TimescaleDB: they go into a table of their own, and from there into chunks.
//!
//! - A chunk is a table, and its sender decides how many days a batch has. So no flush makes chunks but those of the days
//!   around the present; one with thousands of days costs as much as any other.
//! - A late record never waits for who holds its chunk (a compression takes hours of a large one), and delays nobody.
//! - While a chunk of recent days is locked, recent records go there, too ([`Detour`]).
//! - It is stored in the transaction of its batch, with its id and its counter, and moves in one transaction, so each query
//!   sees it once.
//! - A day gets a chunk when it has many records, or once it is near the present. A few records of a day stay: thousands
//!   of chunks would make each query lock thousands of tables.
//! - Daily partitions need none of this: the default partition takes what has no partition.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logweir_record::timestamp::DAY_US;
use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use super::ddl::{Relation, in_transaction, quoted};
use super::partition::{LATE, Logs};
use crate::error::StoreError;

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

    /// Whether any time of a range is within it.
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

/// The same as [`make`] for administrators, who run it after everything else.
pub(super) const CREATE_SQL: &str = "DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
        CREATE TABLE logweir_late (LIKE logs);
        CREATE INDEX logweir_late_ts_idx ON logweir_late (ts);
        ALTER TABLE logweir_late REPLICA IDENTITY FULL;
    END IF;
END
$$;";

/// Creates the table. All who read `logs` read it, too.
pub(super) async fn make(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    let late = logs.beside(LATE);
    in_transaction(client, "creating a table for late records", async {
        logs.create_like(client, &late, &[]).await?;
        let index = quoted(&format!("{LATE}_ts_idx"));
        client
            .batch_execute(&format!("CREATE INDEX {index} ON {late} (ts); ALTER TABLE {late} REPLICA IDENTITY FULL"))
            .await?;
        grant_like(client, &late, logs).await
    })
    .await
}

/// Grants on `late` what is granted on `logs`.
async fn grant_like(client: &Client, late: &Relation, logs: &Logs) -> Result<(), Error> {
    const GRANTED: &str = "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, \
        string_agg(a.privilege_type, ', ') FROM pg_class c, aclexplode(c.relacl) a \
        WHERE c.oid = $1 AND a.grantee <> c.relowner GROUP BY 1";
    for row in client.query(GRANTED, &[&logs.oid]).await? {
        let (role, privileges): (&str, &str) = (row.get(0), row.get(1));
        client.batch_execute(&format!("GRANT {privileges} ON {late} TO {role}")).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 20_000 * DAY_US + DAY_US / 2;
    const REACH: Reach = Reach { past_days: 7, future_days: 1 };

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
