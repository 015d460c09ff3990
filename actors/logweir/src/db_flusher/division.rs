//! How much of a lane goes into one transaction. Pure.
//!
//! What fails twice in the same way is not transient: the same work would be rolled back for ever. So a batch that the
//! server refuses again is divided, by records and by distinct days of the records' times, down to one record. Each
//! limit is halved by a refusal and grows with each success, as congestion control does: a server that is merely slow
//! gets ever larger batches until one takes too long, and a healthy one is soon back at full size.
//!
//! A division may be inside of a frame, since a sender decides how many records a frame has.

use std::time::Duration;

use logweir_store::{Batch, BatchFrame};

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
/// Lost connections in the middle of the same records after which they are divided: a batch can be what makes a server
/// run out of memory.
const TRANSIENT_MAX: u32 = 3;

const DAY_US: i64 = 86_400_000_000;

/// What to do with refused records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try the same again.
    Again,
    /// Try less.
    Divided,
    /// A record was refused alone, more than once.
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
    /// A success that takes longer does not raise the limits.
    slow: Duration,
    refused: Option<Refused>,
}

#[derive(Clone, Debug)]
struct Refused {
    /// Number of the lane's records before the refused ones.
    from_records: u64,
    code: String,
    equal: u32,
    all: u32,
    transient: u32,
}

impl Division {
    /// No limits below `records_max` and [`DAYS_MAX`]. The server cancels statements after `statement_timeout`.
    pub(super) fn new(records_max: usize, statement_timeout: Duration) -> Self {
        Self { records_max, records: usize::MAX, days: DAYS_MAX, slow: statement_timeout / 4, refused: None }
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
        (records < all).then(|| prefix(batch, records))
    }

    /// `part` was refused with `code`.
    pub(super) fn refused(&mut self, part: &Batch, code: &str) -> Verdict {
        let refused = self.refused_at(part.from_records);
        refused.all += 1;
        refused.equal = if refused.code == code { refused.equal + 1 } else { 1 };
        code.clone_into(&mut refused.code);
        if refused.equal < EQUAL_MAX && refused.all < REFUSALS_MAX {
            return Verdict::Again;
        }
        match part.records() {
            0 => Verdict::Indivisible,
            1 => Verdict::Alone,
            _ => {
                self.divide(part);
                Verdict::Divided
            }
        }
    }

    /// The connection was lost, or the server had no resources, while `part` was being flushed. That never makes a dead
    /// letter, since it says nothing about a record.
    pub(super) fn interrupted(&mut self, part: &Batch) {
        let refused = self.refused_at(part.from_records);
        refused.transient += 1;
        if refused.transient >= TRANSIENT_MAX && part.records() > 1 {
            self.divide(part);
        }
    }

    /// `part` is stored, or it is a dead letter; `divided` says whether more could have been flushed.
    pub(super) fn stored(&mut self, part: &Batch, divided: bool, took: Duration) {
        self.refused = None;
        let limited = divided || part.records() >= self.records as u64;
        if limited && took <= self.slow {
            self.records = match grown(self.records, self.records_max) {
                records if records >= self.records_max => usize::MAX,
                records => records,
            };
            self.days = grown(self.days, DAYS_MAX);
        }
    }

    /// Starts with one record: what concerns every row shows with one.
    pub(super) fn start_small(&mut self) {
        (self.records, self.days) = (1, 1);
    }

    /// The refusals of the records after `from_records`.
    fn refused_at(&mut self, from_records: u64) -> &mut Refused {
        let new = || Refused { from_records, code: String::new(), equal: 0, all: 0, transient: 0 };
        let refused = self.refused.get_or_insert_with(new);
        if refused.from_records != from_records {
            *refused = new();
        }
        refused
    }

    #[cfg(test)]
    pub(super) fn hash_state(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        (self.records, self.days).hash(state);
        let refused = self.refused.as_ref();
        refused.map(|r| (r.from_records, &r.code, r.equal, r.all.min(REFUSALS_MAX), r.transient)).hash(state);
    }

    fn divide(&mut self, part: &Batch) {
        let records = usize::try_from(part.records()).unwrap_or(usize::MAX);
        self.records = (records / 2).clamp(1, self.records);
        self.days = (days_of(part, self.days) / 2).clamp(1, self.days);
        // The cause has repeated already, so that the next refusal divides again; a record alone gets its own chances.
        if let Some(refused) = self.refused.as_mut() {
            refused.transient = 0;
            if self.records == 1 {
                (refused.equal, refused.all) = (0, 0);
            }
        }
    }
}

/// The limit after a success: doubled at first, which finds the neighbors of a bad record soon, then by a step.
fn grown(limit: usize, max: usize) -> usize {
    let step = max.div_ceil(STEPS);
    let grown = if limit < step { (limit * 2).min(step) } else { limit.saturating_add(step) };
    grown.min(max)
}

/// The first `records` records of `batch`, with all frames before the one in which they end.
fn prefix(batch: &Batch, records: usize) -> Batch {
    let (mut left, mut frames, mut leave) = (records + batch.skip, Vec::new(), 0);
    for frame in &batch.frames {
        if left == 0 {
            break;
        }
        frames.push(frame.clone());
        leave = frame.chunk.len().saturating_sub(left);
        left = left.saturating_sub(frame.chunk.len());
    }
    Batch { frames, leave, ..Batch { frames: Vec::new(), ..*batch } }
}

/// The frames' times, without those that the batch skips and leaves.
fn times(batch: &Batch) -> impl Iterator<Item = &[i64]> {
    let last = batch.frames.len().saturating_sub(1);
    batch.frames.iter().enumerate().map(move |(index, BatchFrame { chunk, .. })| {
        let skip = if index == 0 { batch.skip } else { 0 };
        let leave = if index == last { batch.leave } else { 0 };
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
