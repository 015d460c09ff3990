//! Who reads steps back while the rows are behind the journal.
//!
//! Queries have connections of their own, but the database's processors and disks are everybody's: four long queries on a
//! machine of two processors halve the rate of rows. So while the oldest record that the database lacks is older than
//! [`BEHIND`], queries share a tenth of one processor: one reads at a time, a piece of its range at a time, and then all
//! rest nine times as long as that took. Short queries stay quick; who has read for [`READING_MAX`] is told to come again,
//! for the others wait. What was begun at full speed is ended, and begun anew in pieces. As soon as the rows have caught
//! up, everybody reads as before.
//!
//! Refused: priorities inside of the server, which need an extension or a right that a reader should not have; fewer
//! queries at once, since one alone can take all there is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::Instant;

use crate::query::page::{Direction, Range};

/// A backlog of this age is more than a batch that waits to be full.
pub const BEHIND: Duration = Duration::from_secs(2);

/// What one query may read while the rows are behind, without its rests.
pub const READING_MAX: Duration = Duration::from_millis(500);

/// A rest is so many times as long as the reading before it, and at most so long.
const REST: u32 = 9;
const REST_MAX: Duration = Duration::from_secs(3);

/// Pieces are made longer below the first and shorter above the second.
const PIECE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(150);
/// The first one's part of the range, and the shortest there is.
const FIRST_PART: i64 = 1024;
const LENGTH_US_MIN: i64 = 100_000;

/// How queries share what the writers leave. A clone is a handle on the same.
#[derive(Clone, Debug, Default)]
pub struct QueryThrottle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    behind: watch::Sender<bool>,
    turn: Arc<Mutex<()>>,
}

impl QueryThrottle {
    /// Tells how old the oldest record is that the database lacks.
    pub fn backlog_is(&self, age: Duration) {
        let behind = age > BEHIND;
        self.0.behind.send_if_modified(|before| std::mem::replace(before, behind) != behind);
    }

    /// Whether readers step back.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        *self.0.behind.borrow()
    }

    /// Waits until readers have to step back.
    pub(crate) async fn falls_behind(&self) {
        // The sender lives as long as `self`, so the wait ends only with the word.
        let _ = self.0.behind.subscribe().wait_for(|&behind| behind).await;
    }

    /// The pieces in which `range` is read, from the side where `direction` begins.
    pub(crate) fn pieces(&self, range: Range, direction: Direction) -> Pieces<'_> {
        let length_us = (range.end_us.saturating_sub(range.start_us) / FIRST_PART).max(LENGTH_US_MIN);
        Pieces { throttle: self, left: range, direction, length_us, reading: Duration::ZERO }
    }

    /// Reads what cannot be read in pieces.
    pub(crate) async fn whole<T>(&self, reading: impl Future<Output = T>) -> T {
        let mut turn = self.turn().await;
        let done = reading.await;
        turn.end();
        done
    }

    /// For who reads on a thread of its own and asks every few milliseconds: waits until it may go on. Whether it may;
    /// not where others have waited for long enough.
    pub(crate) fn keep(&self, steps: &mut Steps) -> bool {
        match &steps.turn {
            _ if !self.is_behind() => steps.turn = None,
            None => steps.turn = Some(Turn::begin(Some(Arc::clone(&self.0.turn).blocking_lock_owned()))),
            Some(at_work) => {
                let took = at_work.since.elapsed();
                if took > *PIECE.end() {
                    std::thread::sleep(rest_after(took));
                    *steps = Steps { turn: None, reading: steps.reading + took };
                }
            }
        }
        steps.reading < READING_MAX || !self.is_behind()
    }

    /// Waits for the turn, if turns are taken now.
    async fn turn(&self) -> Turn {
        match self.is_behind() {
            true => Turn::begin(Some(Arc::clone(&self.0.turn).lock_owned().await)),
            false => Turn::begin(None),
        }
    }
}

/// How far a reading on a thread of its own has come.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    turn: Option<Turn>,
    /// What its turns took.
    reading: Duration,
}

/// Somebody's turn to read.
#[derive(Debug)]
struct Turn {
    held: Option<OwnedMutexGuard<()>>,
    since: Instant,
}

impl Turn {
    fn begin(held: Option<OwnedMutexGuard<()>>) -> Self {
        Self { held, since: Instant::now() }
    }

    /// How long it was. Whoever had it goes on; the next one begins after the rest.
    fn end(&mut self) -> Duration {
        let took = self.since.elapsed();
        if let Some(held) = self.held.take() {
            tokio::spawn(async move {
                tokio::time::sleep(rest_after(took)).await;
                drop(held);
            });
        }
        took
    }
}

fn rest_after(took: Duration) -> Duration {
    metrics::counter!("logweir_query_throttle_pauses_total").increment(1);
    (took * REST).min(REST_MAX)
}

/// A range on its way through the hands of a reader.
#[derive(Debug)]
pub(crate) struct Pieces<'p> {
    throttle: &'p QueryThrottle,
    left: Range,
    direction: Direction,
    /// How long the next one is.
    length_us: i64,
    /// What those before took while the rows were behind.
    reading: Duration,
}

impl Pieces<'_> {
    /// The next one: all that is left, unless readers step back.
    pub(crate) fn next(&mut self) -> Option<Range> {
        let length_us = if self.throttle.is_behind() { self.length_us } else { i64::MAX };
        let (piece, left) = cut(self.left, self.direction, length_us)?;
        self.left = left;
        Some(piece)
    }

    /// Reads the piece in its turn. Nothing where others have waited for long enough.
    pub(crate) async fn read<T>(&mut self, reading: impl Future<Output = T>) -> Option<T> {
        let mut turn = self.throttle.turn().await;
        if self.reading >= READING_MAX && self.throttle.is_behind() {
            return None;
        }
        let done = reading.await;
        let took = turn.end();
        self.reading += took;
        self.length_us = adapted(self.length_us, took);
        Some(done)
    }
}

/// The first `length_us` of `range` in this direction, and what is left of it; nothing of nothing.
fn cut(range: Range, direction: Direction, length_us: i64) -> Option<(Range, Range)> {
    let Range { start_us, end_us } = range;
    if start_us >= end_us {
        return None;
    }
    Some(match direction {
        Direction::Backward => {
            let at = end_us.saturating_sub(length_us).max(start_us);
            (Range { start_us: at, end_us }, Range { start_us, end_us: at })
        }
        Direction::Forward => {
            let at = start_us.saturating_add(length_us).min(end_us);
            (Range { start_us, end_us: at }, Range { start_us: at, end_us })
        }
    })
}

/// The length of a piece after one that took so long.
fn adapted(length_us: i64, took: Duration) -> i64 {
    if took < *PIECE.start() {
        length_us.saturating_mul(2)
    } else if took > *PIECE.end() {
        (length_us / 2).max(LENGTH_US_MIN)
    } else {
        length_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;
    const HOUR: Range = Range { start_us: 7, end_us: 7 + HOUR_US };

    fn behind() -> QueryThrottle {
        let throttle = QueryThrottle::default();
        throttle.backlog_is(BEHIND * 2);
        throttle
    }

    #[test]
    fn pieces_lie_side_by_side_and_are_the_range() {
        for direction in [Direction::Backward, Direction::Forward] {
            let throttle = behind();
            let mut pieces = throttle.pieces(HOUR, direction);
            let mut all: Vec<Range> = std::iter::from_fn(|| pieces.next()).collect();
            assert_eq!(all.len(), 1024);
            if direction == Direction::Backward {
                all.reverse();
            }
            assert_eq!((all[0].start_us, all[1023].end_us), (HOUR.start_us, HOUR.end_us));
            assert!(all.windows(2).all(|two| two[0].end_us == two[1].start_us));
        }
    }

    #[test]
    fn a_range_is_one_piece_as_soon_as_nobody_is_behind() {
        let throttle = behind();
        let mut pieces = throttle.pieces(HOUR, Direction::Forward);
        let first = pieces.next().expect("a piece");
        throttle.backlog_is(BEHIND);
        let rest = pieces.next();
        assert_eq!(rest, Some(Range { start_us: first.end_us, ..HOUR }));
        assert_eq!(pieces.next(), None);
    }

    #[test]
    fn ranges_without_end_and_without_length_are_cut_as_well() {
        let ever = Range { start_us: i64::MIN, end_us: i64::MAX };
        let throttle = behind();
        let mut pieces = throttle.pieces(ever, Direction::Backward);
        assert_eq!(pieces.next().map(|piece| piece.end_us), Some(i64::MAX));
        assert!(std::iter::from_fn(|| pieces.next()).count() < 3000);
        assert_eq!(throttle.pieces(Range { start_us: 5, end_us: 5 }, Direction::Forward).next(), None);
    }

    #[test]
    fn pieces_grow_while_they_are_quick_and_shrink_when_they_are_slow() {
        let length = |millis| adapted(HOUR_US, Duration::from_millis(millis));
        assert_eq!([length(10), length(100), length(500)], [2 * HOUR_US, HOUR_US, HOUR_US / 2]);
        assert_eq!(adapted(LENGTH_US_MIN, Duration::from_secs(9)), LENGTH_US_MIN);
        assert_eq!(adapted(i64::MAX, Duration::ZERO), i64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_read_for_long_makes_room_unless_nobody_is_behind() {
        let throttle = behind();
        let mut pieces = throttle.pieces(HOUR, Direction::Forward);
        let mut read = async || pieces.read(async { tokio::time::sleep(READING_MAX).await }).await;
        assert_eq!(read().await, Some(()));
        assert_eq!(read().await, None);
        throttle.backlog_is(Duration::ZERO);
        assert_eq!(read().await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_learns_that_the_rows_fall_behind() {
        let throttle = QueryThrottle::default();
        let mut falls = std::pin::pin!(throttle.falls_behind());
        assert!(tokio::time::timeout(BEHIND, &mut falls).await.is_err());
        throttle.backlog_is(BEHIND * 2);
        falls.await;
        behind().falls_behind().await;
    }

    #[tokio::test(start_paused = true)]
    async fn while_rows_are_behind_one_reads_at_a_time_and_then_all_rest() {
        const READING: Duration = Duration::from_millis(100);
        let took = async |throttle: &QueryThrottle| {
            let begun = Instant::now();
            let one = || throttle.whole(async { tokio::time::sleep(READING).await });
            tokio::join!(one(), one(), one());
            begun.elapsed()
        };
        assert_eq!(took(&QueryThrottle::default()).await, READING);
        assert_eq!(took(&behind()).await, READING * 21, "three readings and two rests");
    }
}
