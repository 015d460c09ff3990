//! Whether the result of a query has every acknowledged record. Pure.
//!
//! The processors know how many records each lane has, and how many of them are committed; the snapshot of a query says
//! how many of them it sees; the records in between may be in the cache. What is in neither is missing:
//!
//! - Records that are committed, but not in the snapshot: the database that answers is behind (a replica), or was restored.
//! - Records that are not committed although they have waited for longer than a batch needs to fill. Before that, a record
//!   that the cache lacks becomes visible a moment later, and every query during a high load would be partial.
//! - Records of a processor whose journal the database that answers does not know, although the processor's own database
//!   has numbered its lanes: two processors write to two databases, and a gateway reads one of them. A processor that has
//!   just started has no number yet, so it is not taken for one of those.
//!
//! Both compare ordinals, not frames: a batch can end inside of a frame. The numbers of the processors are taken *before*
//! the query reads, so that a commit in between is not mistaken for a missing record.
//!
//! The filter and the time range are not considered: what a missing record contains is unknown.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use logweir_query::page::Found;
use logweir_record::timestamp;
use logweir_store::ORDINAL_BITS;
use logweir_store::read::LaneCursor;
use logweir_store::throttle::BEHIND;
use serde::Serialize;
use uuid::Uuid;

use crate::progress::{LaneSnapshot, StoreState};

/// A lane as its processor knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneState {
    /// What a person calls its processor.
    pub processor: Arc<str>,
    /// The journal's UUID.
    pub writer: Uuid,
    /// The run of the journal; `None` if it is not known.
    pub run: Option<Uuid>,
    /// The lane.
    pub lane: LaneId,
    /// The upper bits of its records' ids, once the database has reported them.
    pub lane_id: Option<i64>,
    /// Records before the first one of this writer.
    pub inherited: u64,
    /// Ordinal of the last committed record.
    pub committed: u64,
    /// Ordinal of the last record in the journal.
    pub accepted: u64,
    /// Age of the oldest record that is not committed.
    pub backlog_age: Duration,
    /// How long a record may wait for others of its batch: `batch.linger_ms` of the processor.
    pub linger: Duration,
    /// Why nothing is stored at the moment.
    pub problem: Option<String>,
}

impl LaneState {
    /// The state of a lane of the journal `writer` of `processor`, whose records wait up to `linger` for others.
    #[must_use]
    pub fn of(processor: Arc<str>, writer: Uuid, run: Option<Uuid>, linger: Duration, lane: &LaneSnapshot) -> Self {
        let committed = lane.inherited + lane.committed + lane.dead_lettered + lane.lost;
        let problem = match &lane.store {
            StoreState::Stopped(reason) => Some(format!("lane {} is stopped: {reason}", lane.lane)),
            StoreState::Failing(reason) => Some(format!("flushes of lane {} fail: {reason}", lane.lane)),
            _ => None,
        };
        Self {
            processor,
            writer,
            run,
            lane: lane.lane,
            lane_id: lane.lane_id,
            inherited: lane.inherited,
            committed,
            accepted: committed + lane.backlog,
            backlog_age: Duration::from_millis(lane.backlog_age_ms),
            linger,
            problem,
        }
    }
}

/// The lanes of all processors that are asked.
#[async_trait]
pub trait Lanes: Send + Sync {
    /// Their state now. Does not wait for a processor that does not respond.
    async fn states(&self) -> Vec<LaneState>;

    /// The time until which no record with an ordinal above `records` had arrived in a lane, in microseconds since 1970;
    /// `None` if that is not known.
    fn arrived_until(&self, writer: Uuid, lane: LaneId, records: u64) -> Option<i64>;
}

/// What a result may lack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Completeness {
    /// Whether acknowledged records may be missing.
    pub partial: bool,
    /// Which ones are missing, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_reason: Option<String>,
    /// Every record that arrived before this time (RFC 3339) is included; absent if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_until: Option<String>,
}

impl Completeness {
    /// A result that lacks an unknown number of records.
    #[must_use]
    pub fn partial(reason: String) -> Self {
        Self { partial: true, partial_reason: Some(reason), complete_until: None }
    }

    /// The completeness of two results together: that of the one that lacks more.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self.partial, other.partial) {
            (false, _) => other,
            (true, false) => self,
            // Unknown, or else the earlier one: RFC 3339 with a fixed number of digits sorts by time.
            (true, true) => std::cmp::min_by(self, other, |a, b| a.complete_until.cmp(&b.complete_until)),
        }
    }
}

/// Compares the snapshot `stored`, and the records `cached` that were added to it, with `lanes`, whose states `expected`
/// were taken before.
pub(super) fn completeness(
    lanes: &dyn Lanes,
    expected: &[LaneState],
    stored: &[LaneCursor],
    cached: &[Found],
    now_us: i64,
) -> Completeness {
    let missing = missing(expected, stored, cached);
    if missing.is_empty() {
        return Completeness::default();
    }
    let elsewhere: BTreeSet<&str> = missing
        .iter()
        .filter(|missing| missing.why == Why::Elsewhere)
        .map(|missing| &*missing.state.processor)
        .collect();
    // What is in another database is missing whatever its age.
    let until = missing
        .iter()
        .map(|missing| lanes.arrived_until(missing.state.writer, missing.state.lane, missing.seen))
        .reduce(|one, other| one.zip(other).map(|(one, other)| one.min(other)))
        .flatten()
        .filter(|_| elsewhere.is_empty());
    let records =
        |why| -> u64 { missing.iter().filter(|missing| missing.why == why).map(|missing| missing.records).sum() };
    let mut reasons = Vec::new();
    if !elsewhere.is_empty() {
        let processors = elsewhere.into_iter().collect::<Vec<_>>().join(", ");
        reasons.push(format!("all records of {processors} are missing: {ELSEWHERE}"));
    }
    if let committed @ 1.. = records(Why::Behind) {
        reasons.push(format!(
            "the database that answered lacks {committed} records that are committed: it is behind the one that the \
             processors write to (database.read_url), or was restored"
        ));
    }
    if let waiting @ 1.. = records(Why::Waiting) {
        let waiting_for = |missing: &Missing<'_>| missing.why == Why::Waiting;
        let why = missing.iter().filter(|missing| waiting_for(missing));
        let why = why.into_iter().find_map(|missing| missing.state.problem.as_deref());
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        reasons.push(format!("{waiting} acknowledged records are not in the database yet{why}, nor in the cache"));
    }
    let mut reason = reasons.join("; ");
    if let Some(until) = until {
        let behind_s = now_us.saturating_sub(until).max(0) / 1_000_000;
        reason.push_str(&format!("; complete up to {behind_s} s ago"));
    }
    Completeness { complete_until: until.map(timestamp::text), ..Completeness::partial(reason) }
}

/// Records of one lane that the result lacks.
#[derive(Debug, PartialEq, Eq)]
struct Missing<'s> {
    state: &'s LaneState,
    /// Ordinal of the last record that the snapshot has.
    seen: u64,
    records: u64,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The database that answered does not know the journal.
    Elsewhere,
    /// They are committed, but not in the snapshot.
    Behind,
    /// They are not committed.
    Waiting,
}

/// What is wrong, and what to do, if a processor [is elsewhere](elsewhere).
pub(crate) const ELSEWHERE: &str = "the database that answered does not know the journal; it is not the one that is \
    written to (database.url, database.read_url; each database needs a gateway of its own), or a replica that has not \
    received it yet";

/// The processors whose database has numbered lanes that the database of the snapshot `stored` knows nothing of. The
/// states `expected` were taken before.
pub(crate) fn elsewhere(expected: &[LaneState], stored: &[LaneCursor]) -> BTreeSet<Arc<str>> {
    let of = |state: &&LaneState| is_elsewhere(state, stored);
    expected.iter().filter(of).map(|state| Arc::clone(&state.processor)).collect()
}

/// Whether the lane has a number in another database than that of the snapshot `stored`. Any lane of the same writer shows
/// that it is the same database: it may be a replica.
pub(super) fn is_elsewhere(state: &LaneState, stored: &[LaneCursor]) -> bool {
    state.lane_id.is_some() && stored.iter().all(|cursor| cursor.writer != state.writer)
}

fn missing<'s>(expected: &'s [LaneState], stored: &[LaneCursor], cached: &[Found]) -> Vec<Missing<'s>> {
    let of_lane =
        |state: &LaneState| stored.iter().find(|cursor| (cursor.writer, cursor.lane) == (state.writer, state.lane));
    let behind: Vec<_> = expected
        .iter()
        .map(|state| (state, of_lane(state).map_or(state.inherited, |cursor| cursor.records)))
        .filter(|&(state, seen)| wanted(state) > seen)
        .collect();
    if behind.is_empty() {
        return Vec::new();
    }
    // Ids are unique, so counting them is enough.
    let mut by_lane: HashMap<i64, Vec<u64>> = HashMap::new();
    for found in cached {
        let ordinal = (found.id & ((1 << ORDINAL_BITS) - 1)).cast_unsigned();
        by_lane.entry(found.id >> ORDINAL_BITS).or_default().push(ordinal);
    }
    let lacks = |(state, seen): (&'s LaneState, u64)| {
        let lane_id = of_lane(state).map_or_else(|| lane_id(state, stored), |cursor| cursor.lane_id);
        let ordinals = by_lane.get(&lane_id).map_or(&[][..], Vec::as_slice);
        let has = |upto: u64| ordinals.iter().filter(|&&ordinal| seen < ordinal && ordinal <= upto).count() as u64;
        let lacks = |upto: u64| upto.saturating_sub(seen).saturating_sub(has(upto));
        let (all, committed) = (lacks(wanted(state)), lacks(state.committed.min(wanted(state))));
        let kinds = match is_elsewhere(state, stored) {
            true => vec![(all, Why::Elsewhere)],
            false => vec![(committed, Why::Behind), (all - committed.min(all), Why::Waiting)],
        };
        kinds
            .into_iter()
            .filter(|&(records, _)| records > 0)
            .map(move |(records, why)| Missing { state, seen, records, why })
            .collect::<Vec<_>>()
    };
    behind.into_iter().flat_map(lacks).collect()
}

/// Ordinal up to which a result must have every record.
fn wanted(state: &LaneState) -> u64 {
    if state.backlog_age > BEHIND + state.linger { state.accepted.max(state.committed) } else { state.committed }
}

/// The id of a lane that the snapshot `stored` does not have, or a provisional one, which is negative, while the database
/// has not reported it. A number of another database may be that of another lane here.
pub(super) fn lane_id(state: &LaneState, stored: &[LaneCursor]) -> i64 {
    let own = state.lane_id.filter(|_| stored.is_empty() || !is_elsewhere(state, stored));
    own.unwrap_or_else(|| provisional_lane_id(state.run.unwrap_or(state.writer), state.lane))
}

/// An id for a lane whose real one is not known: negative, so that it is never mistaken for one. Ids of two lanes can
/// coincide, with a probability of about one in a million.
pub(super) fn provisional_lane_id(run: Uuid, lane: LaneId) -> i64 {
    let (high, low) = run.as_u64_pair();
    let mixed = (high ^ low ^ u64::from(lane)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The 19 bits of a lane's id.
    -1 - (mixed >> (64 - 19)).cast_signed().min((1 << 19) - 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_record::record::Severity;

    const WRITER: Uuid = Uuid::from_u128(1);
    const RUN: Uuid = Uuid::from_u128(2);

    fn state(committed: u64, accepted: u64, age_s: u64) -> LaneState {
        LaneState {
            processor: "processor-0".into(),
            writer: WRITER,
            run: Some(RUN),
            lane: 3,
            lane_id: Some(7),
            inherited: 0,
            committed,
            accepted,
            backlog_age: Duration::from_secs(age_s),
            linger: Duration::ZERO,
            problem: None,
        }
    }

    fn cursor(records: u64) -> LaneCursor {
        LaneCursor { writer: WRITER, run: RUN, lane: 3, lane_id: 7, last_seq: 1, records }
    }

    fn found(lane_id: i64, ordinals: std::ops::RangeInclusive<i64>) -> Vec<Found> {
        let found = |ordinal| Found {
            id: lane_id << ORDINAL_BITS | ordinal,
            ts_us: 0,
            severity: Severity::INFO,
            service: String::new(),
            host: String::new(),
            message: String::new(),
            attributes: String::new(),
        };
        ordinals.map(found).collect()
    }

    fn numbers(state: &LaneState, stored: &[LaneCursor], cached: &[Found]) -> [u64; 2] {
        let missing = missing(std::slice::from_ref(state), stored, cached);
        let sum = |why| missing.iter().filter(|one| one.why == why).map(|one| one.records).sum();
        assert_eq!(sum(Why::Elsewhere), 0);
        [sum(Why::Behind), sum(Why::Waiting)]
    }

    #[test]
    fn a_committed_record_must_be_in_the_snapshot_or_in_the_cache() {
        let replica = [cursor(90)];
        assert_eq!(numbers(&state(90, 90, 0), &replica, &[]), [0, 0]);
        assert_eq!(numbers(&state(80, 90, 0), &replica, &[]), [0, 0], "committed since");
        assert_eq!(numbers(&state(100, 100, 0), &replica, &[]), [10, 0]);
        assert_eq!(numbers(&state(100, 100, 0), &replica, &found(7, 91..=99)), [1, 0]);
        assert_eq!(numbers(&state(100, 100, 0), &replica, &found(7, 91..=100)), [0, 0]);
        assert_eq!(numbers(&state(100, 100, 0), &replica, &found(8, 91..=100)), [10, 0], "another lane's");
        assert_eq!(numbers(&state(100, 100, 0), &replica, &found(7, 81..=90)), [10, 0], "not above the cursor");
        let other_lane = [LaneCursor { lane: 4, lane_id: 8, ..cursor(9) }];
        assert_eq!(numbers(&state(100, 100, 0), &other_lane, &[]), [100, 0], "the lane is newer than the snapshot");
    }

    #[test]
    fn a_waiting_record_is_missed_only_after_the_time_that_a_batch_needs() {
        let stored = [cursor(90)];
        assert_eq!(numbers(&state(90, 100, 1), &stored, &[]), [0, 0]);
        assert_eq!(numbers(&state(90, 100, 5), &stored, &[]), [0, 10]);
        assert_eq!(numbers(&state(90, 100, 5), &stored, &found(7, 91..=100)), [0, 0]);
        assert_eq!(numbers(&state(95, 100, 5), &stored, &found(7, 93..=97)), [2, 3], "of both kinds");
        let lingering = |age_s| LaneState { linger: Duration::from_secs(9), ..state(90, 100, age_s) };
        assert_eq!(numbers(&lingering(10), &stored, &[]), [0, 0], "the batch may still be open");
        assert_eq!(numbers(&lingering(12), &stored, &[]), [0, 10]);
        let unknown = LaneState { lane_id: None, inherited: 40, committed: 40, ..state(0, 45, 5) };
        assert_eq!(numbers(&unknown, &[], &[]), [0, 5]);
        assert_eq!(numbers(&unknown, &[], &found(provisional_lane_id(RUN, 3), 41..=45)), [0, 0]);
    }

    #[test]
    fn a_processor_that_the_database_does_not_know_is_named_once_its_own_database_has_numbered_a_lane() {
        let other = |committed| LaneState {
            processor: "processor-1".into(),
            writer: Uuid::from_u128(9),
            lane_id: Some(7),
            ..state(committed, committed + 5, 0)
        };
        let named = |expected: &[LaneState], stored: &[LaneCursor], cached: &[Found]| {
            completeness(&At(Some(1)), expected, stored, cached, 0).partial_reason.unwrap_or_default()
        };
        // Both databases have numbered a lane 7. What this one has is none of the other one's.
        let (both, stored) = ([state(90, 90, 0), other(40)], [cursor(90)]);
        let why = named(&both, &stored, &found(7, 1..=40));
        assert!(
            why.starts_with("all records of processor-1 are missing: ") && !why.contains("complete up to"),
            "{why}"
        );
        assert_eq!(completeness(&At(Some(1)), &both, &stored, &[], 0).complete_until, None);
        assert_eq!(elsewhere(&both, &stored), BTreeSet::from(["processor-1".into()]));
        assert!(named(&both, &[], &[]).contains("of processor-0, processor-1 are"), "neither is there");
        // Started, and not known to any database yet.
        let starting = [state(90, 90, 0), LaneState { lane_id: None, ..other(0) }];
        assert_eq!((&*named(&starting, &stored, &[]), elsewhere(&starting, &stored)), ("", BTreeSet::new()));
        // Nothing of it is missing yet, but all that comes will be.
        let idle = [LaneState { accepted: 0, ..other(0) }];
        assert_eq!((&*named(&idle, &stored, &[]), elsewhere(&idle, &stored).len()), ("", 1));
        let takes_the_same = LaneState { writer: WRITER, lane: 4, ..other(3) };
        assert_eq!(elsewhere(&[takes_the_same], &stored), BTreeSet::new(), "a new lane of a known writer");
    }

    struct At(Option<i64>);

    #[async_trait]
    impl Lanes for At {
        async fn states(&self) -> Vec<LaneState> {
            Vec::new()
        }

        fn arrived_until(&self, _: Uuid, _: LaneId, _: u64) -> Option<i64> {
            self.0
        }
    }

    #[test]
    fn the_reason_says_what_is_missing_and_since_when() {
        let problem = Some("lane 3 is stopped: permission denied".to_owned());
        let expected = [LaneState { problem, ..state(95, 100, 9) }];
        let partial = completeness(&At(Some(1_000_000)), &expected, &[cursor(90)], &[], 8_500_000);
        assert_eq!(partial.complete_until.as_deref(), Some("1970-01-01T00:00:01.000000Z"));
        let reason = partial.partial_reason.clone().unwrap();
        for part in ["lacks 5 records", "5 acknowledged records", "permission denied", "7 s ago"] {
            assert!(reason.contains(part), "{reason}");
        }
        let unknown = completeness(&At(None), &expected, &[cursor(90)], &[], 0);
        assert_eq!(unknown.complete_until, None);
        assert_eq!(unknown.clone().and(partial.clone()), unknown);
        assert_eq!(Completeness::default().and(partial.clone()), partial.clone().and(Completeness::default()));
        assert_eq!(completeness(&At(None), &expected, &[cursor(100)], &[], 0), Completeness::default());
    }

    #[test]
    fn a_provisional_id_is_negative_and_has_the_ordinal() {
        for run in 0..1_000_u128 {
            let lane_id = provisional_lane_id(Uuid::from_u128(run << 64 | run), 9);
            let id = lane_id << ORDINAL_BITS | 5;
            assert!(id < 0 && id >> ORDINAL_BITS == lane_id, "{lane_id}");
        }
    }
}
