//! Throttles queries while the database is behind the journal.
//!
//! Queries have their own connections, but they share the database's CPUs and disks with the writers: four long queries
//! on a machine with two CPUs halve the rate at which rows are written. Therefore, while the oldest record that the
//! database lacks is older than [`BEHIND`], all queries together use a tenth of one CPU: one query reads at a time, one
//! piece of its range at a time, and then all pause nine times as long as the piece took. Short queries stay fast; a
//! query that has read for [`READING_MAX`] is rejected in favor of the waiting ones. A read that started at full speed
//! is canceled and restarted in pieces. As soon as the database has caught up, queries run at full speed again.
//!
//! Rejected alternatives: priorities in the database server, which need an extension or a privilege that a reader
//! should not have; fewer concurrent queries, because a single one can use all resources.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::Instant;

use logweir_query::page::{Direction, Range};

/// A backlog of this age is more than a batch that is waiting to fill.
pub const BEHIND: Duration = Duration::from_secs(2);

/// How long one query may read while the database is behind, excluding pauses.
pub const READING_MAX: Duration = Duration::from_millis(500);

/// A pause is this many times as long as the read before it, up to the maximum.
const PAUSE_FACTOR: u32 = 9;
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Pieces get longer below this range and shorter above it.
const PIECE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(150);
/// The first piece is this fraction of the range; the second constant is the minimum length.
const FIRST_FRACTION: i64 = 1024;
const LENGTH_US_MIN: i64 = 100_000;

/// Shares the capacity that the writers leave among queries. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub struct QueryThrottle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    behind: watch::Sender<bool>,
    turn: Arc<Mutex<()>>,
}

impl QueryThrottle {
    /// Reports the age of the oldest record that the database lacks.
    pub fn set_backlog_age(&self, age: Duration) {
        let behind = age > BEHIND;
        self.0.behind.send_if_modified(|before| std::mem::replace(before, behind) != behind);
    }

    /// Whether queries are throttled.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        *self.0.behind.borrow()
    }

    /// Waits until queries are throttled.
    pub(crate) async fn throttled(&self) {
        // The sender lives as long as `self`, so the wait ends only with the value.
        let _ = self.0.behind.subscribe().wait_for(|&behind| behind).await;
    }

    /// The pieces in which `range` is read, starting at the side where `direction` starts.
    pub(crate) fn pieces(&self, range: Range, direction: Direction) -> Pieces<'_> {
        let length_us = (range.end_us.saturating_sub(range.start_us) / FIRST_FRACTION).max(LENGTH_US_MIN);
        Pieces { throttle: self, left: range, direction, length_us, reading: Duration::ZERO }
    }

    /// Runs a read that cannot be split into pieces.
    pub(crate) async fn whole<T>(&self, reading: impl Future<Output = T>) -> T {
        let mut turn = self.turn().await;
        let result = reading.await;
        turn.end();
        result
    }

    /// For a read on its own thread, called every few milliseconds: blocks until it may continue. Returns whether it
    /// may continue; `false` if other queries have waited long enough.
    pub(crate) fn may_continue(&self, state: &mut ThreadReading) -> bool {
        match &state.turn {
            _ if !self.is_behind() => state.turn = None,
            None => state.turn = Some(Turn::begin(Some(Arc::clone(&self.0.turn).blocking_lock_owned()))),
            Some(turn) => {
                let took = turn.since.elapsed();
                if took > *PIECE.end() {
                    std::thread::sleep(pause_after(took));
                    *state = ThreadReading { turn: None, reading: state.reading + took };
                }
            }
        }
        state.reading < READING_MAX || !self.is_behind()
    }

    /// Waits for the turn, if queries are throttled.
    async fn turn(&self) -> Turn {
        match self.is_behind() {
            true => Turn::begin(Some(Arc::clone(&self.0.turn).lock_owned().await)),
            false => Turn::begin(None),
        }
    }
}

/// State of a read on its own thread.
#[derive(Debug, Default)]
pub(crate) struct ThreadReading {
    turn: Option<Turn>,
    /// Total duration of its turns.
    reading: Duration,
}

/// A turn to read.
#[derive(Debug)]
struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    since: Instant,
}

impl Turn {
    fn begin(guard: Option<OwnedMutexGuard<()>>) -> Self {
        Self { guard, since: Instant::now() }
    }

    /// Ends the turn and returns its duration. The caller continues at once; the next turn starts after the pause.
    fn end(&mut self) -> Duration {
        let took = self.since.elapsed();
        if let Some(guard) = self.guard.take() {
            tokio::spawn(async move {
                tokio::time::sleep(pause_after(took)).await;
                drop(guard);
            });
        }
        took
    }
}

fn pause_after(took: Duration) -> Duration {
    metrics::counter!("logweir_query_throttle_pauses_total").increment(1);
    (took * PAUSE_FACTOR).min(PAUSE_MAX)
}

/// A range that is being read in pieces.
#[derive(Debug)]
pub(crate) struct Pieces<'p> {
    throttle: &'p QueryThrottle,
    left: Range,
    direction: Direction,
    /// Length of the next piece.
    length_us: i64,
    /// Duration of the pieces read while the database was behind.
    reading: Duration,
}

impl Pieces<'_> {
    /// Returns the next piece: everything that is left, unless queries are throttled.
    pub(crate) fn next(&mut self) -> Option<Range> {
        let length_us = if self.throttle.is_behind() { self.length_us } else { i64::MAX };
        let (piece, left) = split(self.left, self.direction, length_us)?;
        self.left = left;
        Some(piece)
    }

    /// Reads a piece when it is its turn; `None` if other queries have waited long enough.
    pub(crate) async fn read<T>(&mut self, reading: impl Future<Output = T>) -> Option<T> {
        let mut turn = self.throttle.turn().await;
        if self.reading >= READING_MAX && self.throttle.is_behind() {
            return None;
        }
        let result = reading.await;
        let took = turn.end();
        self.reading += took;
        self.length_us = adapted(self.length_us, took);
        Some(result)
    }
}

/// Splits the first `length_us` off `range` in this direction; `None` if the range is empty.
fn split(range: Range, direction: Direction, length_us: i64) -> Option<(Range, Range)> {
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

/// Adapts the length of a piece to the duration of the previous one.
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
        throttle.set_backlog_age(BEHIND * 2);
        throttle
    }

    #[test]
    fn pieces_are_adjacent_and_cover_the_range() {
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
    fn a_range_is_one_piece_once_the_database_has_caught_up() {
        let throttle = behind();
        let mut pieces = throttle.pieces(HOUR, Direction::Forward);
        let first = pieces.next().expect("a piece");
        throttle.set_backlog_age(BEHIND);
        let rest = pieces.next();
        assert_eq!(rest, Some(Range { start_us: first.end_us, ..HOUR }));
        assert_eq!(pieces.next(), None);
    }

    #[test]
    fn unbounded_and_empty_ranges_are_split_as_well() {
        let ever = Range { start_us: i64::MIN, end_us: i64::MAX };
        let throttle = behind();
        let mut pieces = throttle.pieces(ever, Direction::Backward);
        assert_eq!(pieces.next().map(|piece| piece.end_us), Some(i64::MAX));
        assert!(std::iter::from_fn(|| pieces.next()).count() < 3000);
        assert_eq!(throttle.pieces(Range { start_us: 5, end_us: 5 }, Direction::Forward).next(), None);
    }

    #[test]
    fn pieces_grow_while_reads_are_fast_and_shrink_when_they_are_slow() {
        let length = |millis| adapted(HOUR_US, Duration::from_millis(millis));
        assert_eq!([length(10), length(100), length(500)], [2 * HOUR_US, HOUR_US, HOUR_US / 2]);
        assert_eq!(adapted(LENGTH_US_MIN, Duration::from_secs(9)), LENGTH_US_MIN);
        assert_eq!(adapted(i64::MAX, Duration::ZERO), i64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_query_is_rejected_only_while_the_database_is_behind() {
        let throttle = behind();
        let mut pieces = throttle.pieces(HOUR, Direction::Forward);
        let mut read = async || pieces.read(async { tokio::time::sleep(READING_MAX).await }).await;
        assert_eq!(read().await, Some(()));
        assert_eq!(read().await, None);
        throttle.set_backlog_age(Duration::ZERO);
        assert_eq!(read().await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_query_is_notified_when_the_database_falls_behind() {
        let throttle = QueryThrottle::default();
        let mut falls = std::pin::pin!(throttle.throttled());
        assert!(tokio::time::timeout(BEHIND, &mut falls).await.is_err());
        throttle.set_backlog_age(BEHIND * 2);
        falls.await;
        behind().throttled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_database_is_behind_reads_take_turns_with_pauses() {
        const READING: Duration = Duration::from_millis(100);
        let took = async |throttle: &QueryThrottle| {
            let start = Instant::now();
            let one = || throttle.whole(async { tokio::time::sleep(READING).await });
            tokio::join!(one(), one(), one());
            start.elapsed()
        };
        assert_eq!(took(&QueryThrottle::default()).await, READING);
        assert_eq!(took(&behind()).await, READING * 21, "three reads and two pauses");
    }
}
