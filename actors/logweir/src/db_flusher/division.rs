//! How much of a lane goes into one transaction. Pure.
//!
//! What fails twice in the same way is not transient: the same work would be rolled back for ever. So a batch that the
//! server refuses again is divided, by records and by distinct days of the records' times, down to one record. Each
//! limit is halved by a refusal and grows with each success, as congestion control does: a server that is merely slow
//! gets ever larger batches until one takes too long, and a healthy one is soon back at full size.
//!
//! What took too long is divided at once. A flush is many statements, with as many time limits: the same again can cost
//! minutes. If it was only a wait for a lock, half a batch costs little, and the limit is soon back.
//!
//! A flush that is interrupted, as by a lost connection, says little about its records. Only when one record alone has
//! been interrupted many times, although the database could be reached each time, it is suspected.
//!
//! A division may be inside of a frame, since a sender decides how many records a frame has.

use std::time::Duration;

use logweir_record::timestamp::DAY_US;
use logweir_store::{Batch, BatchFrame, Rejection};

/// Distinct days of one transaction. Each day is a partition, and with its indexes takes half a dozen of the server's
/// locks (`max_locks_per_transaction` is 64 per connection by default), descriptors and buffers. How many days a batch
/// has is decided by its senders, so it is limited here.
pub(super) const DAYS_MAX: usize = 64;

/// A limit grows by this fraction of its maximum with each success.
const STEPS: usize = 16;

/// Equal refusals of the same records after which they are divided.
const EQUAL_MAX: u32 = 2;
/// Refusals for changing reasons after which they are divided all the same.
const REFUSALS_MAX: u32 = 4;
/// Interruptions of the same records after which they are divided: a batch can be what makes a server run out of memory.
const INTERRUPTIONS_MAX: u32 = 3;
/// Interruptions of one record alone after which it is suspected: a trigger can raise any error, and a value can crash
/// the server.
const ALONE_MAX: u32 = 10;

/// Most successes before the limits are raised. A server with a hard limit then refuses one batch in so many. After
/// successes that took long it is always this number: whether more records would take longer is not known, and a limit
/// that did not grow would never come back if each transaction takes long, however few records it has.
const PATIENCE_MAX: u32 = 15;

/// What to do with refused records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try the same again.
    Again,
    /// Try less.
    Divided,
    /// A record was refused alone, more than once, or interrupted alone, many times.
    Alone,
    /// There is nothing to divide: the batch has no records.
    Indivisible,
}

/// The present limits, and what was refused last.
#[derive(Clone, Debug)]
pub(super) struct Division {
    records_max: usize,
    /// Without a limit: `usize::MAX`, since a single frame may have more than `records_max`.
    records: usize,
    days: usize,
    /// A success that takes longer, without what one record takes, hardly raises the limits.
    slow: Duration,
    /// How long a record alone took last: round trips and the server's fsync, whatever the number of records.
    least: Duration,
    alone_max: u32,
    refused: Option<Refused>,
    /// Why records were divided last, until the limits are back at their maximum. Once more is enough then.
    divided_by: Option<String>,
    /// Successes before the limits are raised: more after each raise that was refused.
    patience: u32,
    /// Successes since the limits have changed.
    successes: u32,
    /// The limits were raised since records were divided.
    raised: bool,
}

#[derive(Clone, Debug)]
struct Refused {
    /// Number of the lane's records before the refused ones.
    from_records: u64,
    /// Whether it was one record. Alone it gets its own chances.
    alone: bool,
    code: String,
    equal: u32,
    all: u32,
    interruptions: u32,
}

impl Division {
    /// No limits below `records_max` and [`DAYS_MAX`]. The server cancels statements after `statement_timeout`.
    pub(super) fn new(records_max: usize, statement_timeout: Duration) -> Self {
        Self {
            records_max,
            records: usize::MAX,
            days: DAYS_MAX,
            slow: statement_timeout / 4,
            least: Duration::ZERO,
            alone_max: ALONE_MAX,
            refused: None,
            divided_by: None,
            patience: 0,
            successes: 0,
            raised: false,
        }
    }

    /// Number of records that a transaction may have now.
    pub(super) fn records(&self) -> usize {
        self.records.min(self.records_max)
    }

    /// The part of `batch` to flush now; `None` for all of it.
    pub(super) fn part(&self, batch: &Batch) -> Option<Batch> {
        let all = usize::try_from(batch.records()).unwrap_or(usize::MAX);
        let within = records_within(batch, self.days).unwrap_or(all);
        let records = within.min(self.records);
        (records < all).then(|| batch.prefix(records))
    }

    /// `part` was refused with `code`.
    pub(super) fn refused(&mut self, part: &Batch, code: &str) -> Verdict {
        let is_known = part.records() > 1 && (self.divided_by.as_deref() == Some(code) || took_too_long(code));
        let refused = self.refused_at(part);
        refused.all += 1;
        refused.equal = if refused.code == code { refused.equal + 1 } else { 1 };
        code.clone_into(&mut refused.code);
        if refused.equal < EQUAL_MAX && refused.all < REFUSALS_MAX && !is_known {
            return Verdict::Again;
        }
        match part.records() {
            0 => Verdict::Indivisible,
            1 => Verdict::Alone,
            _ => {
                self.divide(part);
                self.divided_by = Some(code.to_owned());
                Verdict::Divided
            }
        }
    }

    /// The connection was lost, or the server had no resources, while `part` was being flushed.
    pub(super) fn interrupted(&mut self, part: &Batch) -> Verdict {
        let (records, alone_max) = (part.records(), self.alone_max);
        let is_known = self.divided_by.as_deref() == Some(Rejection::INTERRUPTED);
        let refused = self.refused_at(part);
        refused.interruptions = refused.interruptions.saturating_add(1);
        match records {
            0 => Verdict::Again,
            1 if refused.interruptions >= alone_max => Verdict::Alone,
            1 => Verdict::Again,
            _ if refused.interruptions < INTERRUPTIONS_MAX && !is_known => Verdict::Again,
            _ => {
                self.divide(part);
                self.divided_by = Some(Rejection::INTERRUPTED.to_owned());
                Verdict::Divided
            }
        }
    }

    /// `part` is stored, or it is a dead letter; `divided` says whether more could have been flushed.
    pub(super) fn stored(&mut self, part: &Batch, divided: bool, took: Duration) {
        if self.refused.take().is_some() && part.records() == 1 {
            self.patience = 0; // it was the record, and not the size
        }
        if part.records() == 1 {
            self.least = took;
        }
        let limited = divided || part.records() >= self.records as u64;
        if !limited {
            return;
        }
        if self.raised {
            self.patience = 0;
        }
        self.successes += 1;
        let is_slow = took.saturating_sub(self.least) > self.slow;
        if self.successes > if is_slow { PATIENCE_MAX } else { self.patience } {
            self.raise();
        }
    }

    fn raise(&mut self) {
        (self.successes, self.raised) = (0, true);
        self.records = grown(self.records, self.records_max);
        self.days = grown(self.days, DAYS_MAX);
        if self.records >= self.records_max {
            self.records = usize::MAX;
            self.divided_by = None;
        }
    }

    /// Starts with one record: what concerns every row shows with one.
    pub(super) fn start_small(&mut self) {
        (self.records, self.days) = (1, 1);
    }

    /// The refusals of the records at which `part` starts.
    fn refused_at(&mut self, part: &Batch) -> &mut Refused {
        let (from_records, alone) = (part.from_records, part.records() == 1);
        let same = |refused: &Refused| (refused.from_records, refused.alone) == (from_records, alone);
        let known = self.refused.take().filter(same);
        let new = || Refused { from_records, alone, code: String::new(), equal: 0, all: 0, interruptions: 0 };
        self.refused.insert(known.unwrap_or_else(new))
    }

    /// As [`Division::new`], with another number of interruptions after which a record is suspected.
    #[cfg(test)]
    pub(super) fn suspecting_after(alone_max: u32, records_max: usize, statement_timeout: Duration) -> Self {
        Self { alone_max, ..Self::new(records_max, statement_timeout) }
    }

    #[cfg(test)]
    pub(super) fn hash_state(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        (self.records, self.days, &self.divided_by, self.patience, self.successes, self.raised).hash(state);
        self.least.hash(state);
        let refused = self.refused.as_ref();
        let counts =
            |r: &Refused| (r.equal.min(EQUAL_MAX), r.all.min(REFUSALS_MAX), r.interruptions.min(self.alone_max));
        refused.map(|r| (r.from_records, r.alone, r.code.clone(), counts(r))).hash(state);
    }

    fn divide(&mut self, part: &Batch) {
        let records = usize::try_from(part.records()).unwrap_or(usize::MAX);
        self.records = (records / 2).clamp(1, self.records);
        self.days = (days_of(part, self.days) / 2).clamp(1, self.days);
        self.successes = 0;
        if std::mem::take(&mut self.raised) {
            self.patience = (2 * self.patience + 1).min(PATIENCE_MAX);
        }
    }
}

/// Whether the server, or who waited for it, gave up because of the time.
fn took_too_long(code: &str) -> bool {
    matches!(code, "57014" | "timeout")
}

/// The limit after a success: doubled at first, which finds the neighbors of a bad record soon, then by a step.
fn grown(limit: usize, max: usize) -> usize {
    let step = max.div_ceil(STEPS);
    let grown = if limit < step { (limit * 2).min(step) } else { limit.saturating_add(step) };
    grown.min(max)
}

/// The frames' times, without those that the batch skips and leaves.
fn times(batch: &Batch) -> impl Iterator<Item = &[i64]> {
    let last = batch.frames().len().saturating_sub(1);
    batch.frames().iter().enumerate().map(move |(index, BatchFrame { chunk, .. })| {
        let skip = if index == 0 { batch.skip() } else { 0 };
        let leave = if index == last { batch.leave() } else { 0 };
        chunk.times_us().get(skip..chunk.len().saturating_sub(leave)).unwrap_or_default()
    })
}

/// The number of records, from the start of `batch`, that have at most `days` distinct days; `None` if all have.
fn records_within(batch: &Batch, days: usize) -> Option<usize> {
    if span_days(batch) <= days as u64 {
        return None; // as nearly always: there is nothing to count
    }
    let mut seen = Days::default();
    let records = times(batch).flatten().take_while(|&&us| seen.add(us) <= days).count();
    (records < usize::try_from(batch.records()).unwrap_or(usize::MAX)).then_some(records)
}

/// The number of distinct days, counted up to `max`.
fn days_of(batch: &Batch, max: usize) -> usize {
    let mut seen = Days::default();
    times(batch).flatten().map(|&us| seen.add(us)).find(|&days| days >= max).unwrap_or(seen.seen.len())
}

/// The number of days from the first to the last.
fn span_days(batch: &Batch) -> u64 {
    let (mut low, mut high) = (i64::MAX, i64::MIN);
    for times in times(batch) {
        low = times.iter().fold(low, |low, &us| low.min(us));
        high = times.iter().fold(high, |high, &us| high.max(us));
    }
    if low > high { 0 } else { low.div_euclid(DAY_US).abs_diff(high.div_euclid(DAY_US)) + 1 }
}

/// Distinct days, in order.
#[derive(Default)]
struct Days {
    seen: Vec<i64>,
    last: Option<i64>,
}

impl Days {
    /// Adds the day of a time; returns the number of days.
    fn add(&mut self, us: i64) -> usize {
        let day = us.div_euclid(DAY_US);
        if self.last.replace(day) != Some(day)
            && let Err(at) = self.seen.binary_search(&day)
        {
            self.seen.insert(at, day);
        }
        self.seen.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use logweir_record::chunk::Chunk;
    use logweir_record::record::{Record, Severity};
    use logweir_store::Position;
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 20_000;
    const TIMEOUT: Duration = Duration::from_secs(1);

    /// Frames of records with these times, of which the first `skip` are committed.
    fn batch(frames: &[Vec<i64>], skip: usize) -> Batch {
        let mut lane_records = 100;
        let frame = |(nth, times): (usize, &Vec<i64>)| {
            let mut chunk = Chunk::default();
            for &ts_us in times {
                let severity = Severity::INFO;
                chunk.push(Record { ts_us, severity, service: "", host: "", message: "", attributes: "" });
            }
            lane_records += times.len() as u64;
            BatchFrame { seq: 11 + nth as u64, lane_records, payload_crc: 0, dedup_key: None, chunk: Arc::new(chunk) }
        };
        let frames = frames.iter().enumerate().map(frame).collect();
        let partial = skip as u64;
        let begun = Position { seq: 10, records: 100 + partial, partial };
        Batch::new(0, 10, 100, 0, frames).after(begun).unwrap()
    }

    /// What follows `part`; at the end a batch without frames.
    fn rest(batch: &Batch, part: &Batch) -> Batch {
        let end = || Batch::new(0, part.to_seq(), part.to_records(), 0, Vec::new());
        batch.clone().after(part.end()).unwrap_or_else(end)
    }

    /// Flushes `records` records of one frame to a server that takes `row` for each and cancels after [`TIMEOUT`].
    /// Returns how long that took, and the size of the last part.
    fn flush_slowly(division: &mut Division, records: usize, row: Duration) -> (Duration, u64) {
        let mut left = batch(&[vec![0; records]], 0);
        let (mut passed, mut last) = (Duration::ZERO, 0);
        while !left.frames().is_empty() {
            let part = division.part(&left);
            let now = part.as_ref().unwrap_or(&left).clone();
            let took = row * u32::try_from(now.records()).unwrap();
            passed += took.min(TIMEOUT);
            if took > TIMEOUT {
                assert_ne!(division.refused(&now, "57014"), Verdict::Alone);
            } else {
                division.stored(&now, part.is_some(), took);
                (left, last) = (rest(&left, &now), now.records());
            }
        }
        (passed, last)
    }

    #[test]
    fn a_slow_server_gets_what_it_can_take_and_a_healthy_one_is_soon_back_at_full_size() {
        let mut division = Division::new(MAX, TIMEOUT);
        let (passed, last) = flush_slowly(&mut division, 10_000, Duration::from_millis(1));
        // Ten seconds are needed anyway; a refusal costs one.
        assert!(passed < Duration::from_secs(20), "{passed:?}");
        assert!(last >= 100, "{last}");
        let limit = division.records();
        assert!(limit < 2000, "{limit}");
        for flush in 0..40 {
            flush_slowly(&mut division, 20_000, Duration::ZERO);
            if division.records() == MAX {
                assert!(flush < 12, "{flush}");
                return;
            }
        }
        panic!("{division:?}");
    }

    #[test]
    fn what_took_too_long_is_divided_at_once_but_a_record_alone_has_a_second_chance() {
        for code in ["57014", "timeout"] {
            let mut division = Division::new(MAX, TIMEOUT);
            let many = batch(&[vec![0; 4]], 0);
            assert_eq!(division.refused(&many, code), Verdict::Divided);
            assert_eq!(division.records(), 2);
            division.start_small();
            let one = division.part(&many).expect("one of four");
            assert_eq!(division.refused(&one, code), Verdict::Again);
            assert_eq!(division.refused(&one, code), Verdict::Alone);
        }
    }

    #[test]
    fn a_bad_record_is_found_with_few_refusals_and_does_not_slow_down_its_neighbors() {
        for bad in [0, 1, 777, 9_999] {
            let mut division = Division::new(MAX, TIMEOUT);
            let mut left = batch(&[vec![0; 4_000], vec![0; 6_000]], 0);
            let (mut refusals, mut commits) = (0, 0);
            while !left.frames().is_empty() {
                let part = division.part(&left);
                let now = part.as_ref().unwrap_or(&left).clone();
                let has = (now.from_records..now.to_records()).contains(&(100 + bad));
                if !has || matches!(division.refused(&now, "P0001"), Verdict::Alone) {
                    assert!(!has || now.records() == 1);
                    commits += 1;
                    division.stored(&now, part.is_some(), Duration::ZERO);
                    left = rest(&left, &now);
                } else {
                    refusals += 1;
                }
            }
            assert!(refusals < 150 && commits < 150, "{bad}: {refusals} refusals, {commits} commits");
        }
    }

    #[test]
    fn refusals_of_other_records_or_lost_connections_are_not_evidence_against_a_record() {
        let mut division = Division::new(MAX, TIMEOUT);
        let one = batch(&[vec![0]], 0);
        let other = Batch::new(0, 0, 7, 0, one.frames().to_vec());
        for _ in 0..10 {
            assert_eq!(division.refused(&one, "P0001"), Verdict::Again);
            assert_eq!(division.refused(&other, "P0001"), Verdict::Again);
            (1..ALONE_MAX).for_each(|_| assert_eq!(division.interrupted(&one), Verdict::Again));
        }
        assert_eq!(division.refused(&one, "P0001"), Verdict::Again);
        assert_eq!(division.refused(&one, "P0001"), Verdict::Alone);
        for (nth, code) in ["a", "b", "a", "b"].into_iter().enumerate() {
            let verdict = division.refused(&other, code);
            assert_eq!(verdict, if nth < 3 { Verdict::Again } else { Verdict::Alone }, "{nth}");
        }
    }

    #[test]
    fn a_record_gets_its_own_chances_alone_however_it_came_to_be_alone() {
        // The lane was stopped meanwhile, and starts with one record.
        let mut division = Division::new(MAX, TIMEOUT);
        let many = batch(&[vec![0; 4]], 0);
        assert_eq!(division.refused(&many, "23514"), Verdict::Again);
        division.start_small();
        let one = division.part(&many).expect("one of four");
        assert_eq!(division.refused(&one, "23514"), Verdict::Again);
        assert_eq!(division.refused(&one, "23514"), Verdict::Alone);
        // Two records, but of two days, which is one too many.
        let mut division = Division::new(MAX, TIMEOUT);
        let days = batch(&[vec![0, DAY_US, DAY_US, DAY_US]], 0);
        assert_eq!(division.refused(&days, "54000"), Verdict::Again);
        assert_eq!(division.refused(&days, "54000"), Verdict::Divided);
        let one = division.part(&days).expect("one day of two");
        assert_eq!((one.records(), division.records()), (1, 2));
        assert_eq!(division.refused(&one, "54000"), Verdict::Again);
        assert_eq!(division.refused(&one, "54000"), Verdict::Alone);
        // Interruptions of more are no evidence against one.
        let mut division = Division::new(MAX, TIMEOUT);
        for nth in 1..=INTERRUPTIONS_MAX {
            let verdict = division.interrupted(&many);
            assert_eq!(verdict, if nth < INTERRUPTIONS_MAX { Verdict::Again } else { Verdict::Divided }, "{nth}");
        }
        let two = division.part(&many).expect("two of four");
        assert_eq!((two.records(), division.interrupted(&two)), (2, Verdict::Divided));
        let one = division.part(&many).expect("one of four");
        for nth in 1..=ALONE_MAX {
            let verdict = division.interrupted(&one);
            assert_eq!(verdict, if nth < ALONE_MAX { Verdict::Again } else { Verdict::Alone }, "{nth}");
        }
    }

    #[test]
    fn a_lane_is_back_at_full_size_although_each_transaction_takes_long() {
        for (least, took) in [(TIMEOUT / 3, TIMEOUT / 3), (Duration::ZERO, TIMEOUT / 3), (TIMEOUT, 3 * TIMEOUT)] {
            let mut division = Division::new(MAX, TIMEOUT);
            division.start_small();
            let backlog = batch(&[vec![0; MAX]], 0);
            let mut flushes = 0;
            while let Some(part) = division.part(&backlog) {
                division.stored(&part, true, if part.records() == 1 { least } else { took });
                flushes += 1;
                assert!(flushes < 500, "{least:?}, {took:?}: {division:?}");
            }
            assert!(took > least || flushes < 32, "{flushes}");
        }
    }

    #[test]
    fn a_batch_has_a_limited_number_of_days() {
        let division = Division::new(MAX, TIMEOUT);
        let day = |day: usize| i64::try_from(day).unwrap() * DAY_US;
        assert!(division.part(&batch(&[(0..DAYS_MAX).map(day).collect()], 0)).is_none());
        // Far apart, but few.
        assert!(division.part(&batch(&[vec![i64::MIN, 0, i64::MAX, 0]], 0)).is_none());
        let many = batch(&[vec![0; 10], (0..DAYS_MAX + 9).map(day).collect(), vec![0; 10]], 3);
        let part = division.part(&many).expect("too many days");
        assert_eq!((part.records(), part.frames().len(), part.leave()), (7 + DAYS_MAX as u64, 2, 9));
    }

    #[test]
    fn a_limit_of_the_server_is_met_seldom() {
        let mut division = Division::new(MAX, TIMEOUT);
        let mut left = batch(&[vec![0; 3_000]], 0);
        let (mut refusals, mut commits) = (0, 0);
        while !left.frames().is_empty() {
            let part = division.part(&left);
            let now = part.as_ref().unwrap_or(&left).clone();
            if now.records() > 3 {
                assert_ne!(division.refused(&now, "54000"), Verdict::Alone);
                refusals += 1;
            } else {
                commits += 1;
                division.stored(&now, part.is_some(), Duration::ZERO);
                left = rest(&left, &now);
            }
        }
        assert!(commits < 1_600 && refusals < commits / 10, "{refusals} refusals, {commits} commits");
    }

    #[test]
    fn a_large_frame_is_divided_only_after_refusals() {
        let mut division = Division::new(100, TIMEOUT);
        let large = batch(&[vec![0; 1_000]], 0);
        assert!(division.part(&large).is_none());
        assert_eq!(division.refused(&large, "54000"), Verdict::Again);
        assert_eq!(division.refused(&large, "54000"), Verdict::Divided);
        assert_eq!(division.part(&large).map(|part| part.records()), Some(500));
    }

    proptest! {
        #[test]
        fn the_parts_of_a_batch_are_all_of_it_in_order(
            frames in proptest::collection::vec(proptest::collection::vec(0..5 * DAY_US, 1..9), 1..6),
            skip in 0_usize..9,
            records in 1_usize..12,
            days in 1_usize..5,
        ) {
            let mut left = batch(&frames, skip.min(frames[0].len() - 1));
            let end = left.to_records();
            let division = Division { records, days, ..Division::new(MAX, TIMEOUT) };
            while let Some(part) = division.part(&left) {
                prop_assert!(part.records() >= 1 && part.records() <= records as u64);
                prop_assert!(days_of(&part, usize::MAX) <= days);
                prop_assert_eq!((part.from_seq, part.from_records, part.skip()), (left.from_seq, left.from_records, left.skip()));
                prop_assert_eq!(part.to_records(), part.from_records + part.records());
                prop_assert_eq!(part.lost(), 0);
                left = rest(&left, &part);
            }
            prop_assert_eq!(left.to_records(), end);
        }
    }
}
