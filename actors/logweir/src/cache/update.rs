//! Computes what a batch adds to a cache before any cache is touched. Pure, and the same for each cache.
//!
//! - One pass from the latest record to the oldest, so that only the latest records of a service are examined in
//!   detail, and no record costs an allocation of its own.
//! - The hours counted are relative to the time of arrival, never to the clock: a replayed batch yields the same
//!   counters, and a wrong clock cannot create an unbounded number of keys.

use std::collections::BTreeMap;

use logweir_record::record::Record;
use uuid::Uuid;

use super::render::Location;
use crate::config;
use logweir_store::volume::{Counts, Minutes, PerService};
use logweir_store::{Batch, BatchFrame};

pub(super) const MINUTE_US: i64 = 60_000_000;
pub(super) const HOUR_US: i64 = 60 * MINUTE_US;
pub(super) const SECOND_US: i64 = 1_000_000;

/// Maximum range of counters, whatever the time to live: longer histograms are the database's task, and a reader
/// fetches each hour by its own key.
const HOURS_MAX: i64 = 7 * 24;
/// Records are counted up to this many hours in the future, since clocks may be ahead.
const HOURS_AHEAD: i64 = 1;

/// How much of a batch a cache stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub recent_records: usize,
    pub services_max: usize,
    pub ttl_s: u64,
}

impl From<&config::Cache> for Limits {
    fn from(settings: &config::Cache) -> Self {
        Self {
            recent_records: settings.recent_records.max(1),
            services_max: settings.services_max.max(1),
            // Beyond a century it makes no difference, and the arithmetic stays far from overflow.
            ttl_s: settings.ttl_s.clamp(1, 100 * 366 * 86_400),
        }
    }
}

impl Limits {
    pub(super) fn ttl_us(&self) -> i64 {
        i64::try_from(self.ttl_s).unwrap_or(i64::MAX).saturating_mul(SECOND_US)
    }

    /// Returns the first and last hour (since 1970) whose records are counted when they arrive at `received_us`.
    pub(super) fn hours(&self, received_us: i64) -> (i64, i64) {
        let now = received_us.div_euclid(HOUR_US);
        let back = (self.ttl_us() / HOUR_US).clamp(1, HOURS_MAX);
        (now - back, now + HOURS_AHEAD)
    }
}

/// What a batch adds for one service.
#[derive(Debug)]
pub(super) struct ServiceUpdate<'a> {
    pub name: &'a str,
    /// Arrival of its latest record.
    pub seen_us: i64,
    /// Its latest records, latest first.
    pub latest: Vec<Entry>,
    /// Counts by minute since 1970.
    pub minutes: BTreeMap<i64, Counts>,
}

/// Identifies a record within a batch: small, since there may be thousands that are discarded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Index of the frame in the batch.
    pub frame: u32,
    /// Index of the record in the frame.
    pub row: u32,
}

impl Entry {
    /// Returns the record and its location.
    pub(super) fn of<'b>(&self, batch: &'b Batch, run: Uuid) -> Option<(Record<'b>, Location)> {
        let frame = batch.frames().get(self.frame as usize)?;
        let ordinal = frame.records_before() + u64::from(self.row) + 1;
        let location = Location { run, lane: batch.lane, seq: frame.seq, row: self.row, ordinal };
        Some((frame.chunk.get(self.row as usize)?, location))
    }
}

/// What the frames of a batch after a cursor add to a cache.
#[derive(Debug)]
pub(super) struct CacheUpdate<'a> {
    /// First frame included.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub first_seq: u64,
    /// Last frame included: the cursor once it is applied.
    pub last_seq: u64,
    /// Arrival of the latest frame.
    pub received_us: i64,
    /// At most `services_max`, those seen last, unordered.
    pub services: Vec<ServiceUpdate<'a>>,
}

impl<'a> CacheUpdate<'a> {
    /// Computes the update of the frames after `after_seq`, with at most `recent_max` recent records; `None` if there
    /// are no such frames.
    pub(super) fn of(batch: &'a Batch, after_seq: u64, limits: &Limits, recent_max: usize) -> Option<Self> {
        let known = batch.frames().partition_point(|frame| frame.seq <= after_seq);
        let frames = &batch.frames()[known..];
        let (first, last) = (frames.first()?, frames.last()?);
        let limits = Limits { recent_records: limits.recent_records.min(recent_max), ..*limits };
        let mut services = PerService::default();
        for (at, frame) in batch.frames().iter().enumerate().skip(known).rev() {
            add(&mut services, u32::try_from(at).ok()?, frame, &limits);
        }
        let mut services = latest(services, limits.services_max);
        share(&mut services, recent_max);
        Some(Self { first_seq: first.seq, last_seq: last.seq, received_us: last.chunk.received_us(), services })
    }

    /// Number of recent records.
    pub(super) fn recent(&self) -> usize {
        self.services.iter().map(|service| service.latest.len()).sum()
    }
}

/// Truncates the recent records so that together they are at most `recent_max`: the longest lists first, so that a
/// noisy service never evicts quiet ones.
fn share(services: &mut [ServiceUpdate<'_>], recent_max: usize) {
    let mut lengths: Vec<usize> = services.iter().map(|service| service.latest.len()).collect();
    if lengths.iter().sum::<usize>() <= recent_max {
        return;
    }
    lengths.sort_unstable();
    let mut left = recent_max;
    let mut each = 0;
    for (nth, &length) in lengths.iter().enumerate() {
        each = left / (lengths.len() - nth);
        if length > each {
            break; // this one and all after it get the same share
        }
        left -= length;
    }
    for service in services {
        service.latest.truncate(each);
    }
}

#[derive(Default)]
struct Service {
    seen_us: Option<i64>,
    latest: Vec<Entry>,
    minutes: Minutes,
}

/// Adds the records of one frame, latest first.
fn add<'a>(services: &mut PerService<'a, Service>, at: u32, frame: &'a BatchFrame, limits: &Limits) {
    let received_us = frame.chunk.received_us();
    let (hour_first, hour_last) = limits.hours(received_us);
    let minutes = hour_first * 60..(hour_last + 1) * 60;
    for row in (0..frame.chunk.len()).rev() {
        let Some(record) = frame.chunk.get(row) else { continue };
        let (_, service) = services.entry(record.service);
        service.seen_us.get_or_insert(received_us);
        if service.latest.len() < limits.recent_records {
            service.latest.push(Entry { frame: at, row: u32::try_from(row).unwrap_or(u32::MAX) });
        }
        let minute = record.ts_us.div_euclid(MINUTE_US);
        if minutes.contains(&minute) {
            service.minutes.add(minute, record.severity.number());
        }
    }
}

/// Returns the services seen last; ties are broken by name, as in a Redis sorted set.
fn latest<'a>(services: PerService<'a, Service>, services_max: usize) -> Vec<ServiceUpdate<'a>> {
    let update = |(name, service): (&'a str, Service)| {
        let Service { seen_us, latest, minutes } = service;
        ServiceUpdate { name, seen_us: seen_us.unwrap_or_default(), latest, minutes: minutes.finish() }
    };
    let mut updates: Vec<_> = services.all.into_iter().map(update).collect();
    if updates.len() > services_max {
        updates.sort_unstable_by(|a, b| (b.seen_us, b.name).cmp(&(a.seen_us, a.name)));
        updates.truncate(services_max);
    }
    updates
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use logweir_record::chunk::Chunk;
    use logweir_record::record::Severity;

    use super::*;

    const NOW: i64 = 1_700_000_000_000_000;
    const LIMITS: Limits = Limits { recent_records: 2, services_max: 2, ttl_s: 7200 };

    fn batch(frames: &[(u64, &[(&str, i64)])]) -> Batch {
        let frame = |&(seq, records): &(u64, &[(&str, i64)])| {
            let mut chunk = Chunk::with_capacity(NOW + i64::try_from(seq).unwrap(), records.len(), 0);
            for &(service, ts_us) in records {
                let severity = Severity::WARN;
                chunk.push(Record { ts_us, severity, service, host: "", message: "", attributes: "" });
            }
            BatchFrame { seq, lane_records: 0, payload_crc: 0, dedup_key: None, chunk: Arc::new(chunk) }
        };
        Batch::new(0, 0, 0, 0, frames.iter().map(frame).collect())
    }

    fn counted(update: &CacheUpdate<'_>) -> u32 {
        update.services.iter().flat_map(|service| service.minutes.values()).flatten().sum()
    }

    #[test]
    fn only_frames_after_the_cursor_are_included() {
        let batch = batch(&[(3, &[("a", NOW)]), (5, &[("a", NOW), ("a", NOW)]), (9, &[("a", NOW)])]);
        let seen = |after| {
            CacheUpdate::of(&batch, after, &LIMITS, usize::MAX)
                .map(|update| (update.first_seq, update.last_seq, counted(&update)))
        };
        assert_eq!(seen(0), Some((3, 9, 4)));
        assert_eq!(seen(3), Some((5, 9, 3)));
        assert_eq!(seen(7), Some((9, 9, 1)));
        assert_eq!(seen(9), None);
    }

    #[test]
    fn the_latest_records_of_each_service_are_kept_and_all_are_counted() {
        let batch = batch(&[(1, &[("a", NOW), ("b", NOW), ("a", NOW)]), (2, &[("a", NOW)])]);
        let update = CacheUpdate::of(&batch, 0, &LIMITS, usize::MAX).unwrap();
        let a = update.services.iter().find(|service| service.name == "a").unwrap();
        assert_eq!(a.latest, [Entry { frame: 1, row: 0 }, Entry { frame: 0, row: 2 }]);
        assert_eq!(a.seen_us, NOW + 2);
        assert_eq!(a.minutes[&(NOW / MINUTE_US)][usize::from(Severity::WARN.number())], 3);
    }

    #[test]
    fn a_tight_limit_favors_quiet_services() {
        let noisy = [("noisy", NOW); 9];
        let batch = batch(&[(1, &[("a", NOW), ("b", NOW), ("b", NOW)]), (2, &noisy)]);
        let limits = Limits { recent_records: 100, services_max: 9, ..LIMITS };
        let lengths = |recent_max| {
            let update = CacheUpdate::of(&batch, 0, &limits, recent_max).unwrap();
            assert!(update.recent() <= recent_max && counted(&update) == 12);
            let length = |name| update.services.iter().find(|service| service.name == name).unwrap().latest.len();
            ["a", "b", "noisy"].map(length)
        };
        assert_eq!(lengths(usize::MAX), [1, 2, 9]);
        assert_eq!(lengths(8), [1, 2, 5]);
        assert_eq!(lengths(4), [1, 1, 1]);
        assert_eq!(lengths(0), [0, 0, 0]);
    }

    #[test]
    fn a_flood_of_services_keeps_those_seen_last() {
        let batch = batch(&[(1, &[("z", NOW)]), (2, &[("a", NOW), ("b", NOW), ("c", NOW)])]);
        let update = CacheUpdate::of(&batch, 0, &LIMITS, usize::MAX).unwrap();
        assert_eq!(update.services.iter().map(|service| service.name).collect::<Vec<_>>(), ["c", "b"]);
    }

    #[test]
    fn hours_far_from_the_arrival_are_not_counted() {
        let (first, last) = LIMITS.hours(NOW);
        assert_eq!(last - first, 3, "two hours back, the current one, one ahead");
        let edges =
            [(first * HOUR_US - 1, 0), (first * HOUR_US, 1), ((last + 1) * HOUR_US - 1, 1), ((last + 1) * HOUR_US, 0)];
        for (ts_us, expected) in edges.into_iter().chain([(i64::MIN, 0), (i64::MAX, 0)]) {
            let batch = batch(&[(1, &[("a", ts_us)])]);
            assert_eq!(counted(&CacheUpdate::of(&batch, 0, &LIMITS, usize::MAX).unwrap()), expected, "{ts_us}");
        }
        assert_eq!(Limits { ttl_s: u64::MAX / 2, ..LIMITS }.hours(0), (-HOURS_MAX, 1));
    }
}
