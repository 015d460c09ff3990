//! Reads that wait for a server: one piece of their range at a time.

use std::sync::Arc;
use std::time::Duration;

use logweir_query::page::{Direction, Range};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::gate::{QueryThrottle, READING_MAX};
use super::pause::{PIECE, pause_after};

/// The first piece is this fraction of the range; the second constant is the minimum length.
const FIRST_FRACTION: i64 = 1024;
pub(super) const LENGTH_US_MIN: i64 = 100_000;

impl QueryThrottle {
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

    /// Waits for the turn, if queries are throttled.
    async fn turn(&self) -> Turn {
        match self.is_behind() {
            true => Turn::begin(Some(Arc::clone(&self.0.turn).lock_owned().await)),
            false => Turn::begin(None),
        }
    }
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
pub(super) fn adapted(length_us: i64, took: Duration) -> i64 {
    if took < *PIECE.start() {
        length_us.saturating_mul(2)
    } else if took > *PIECE.end() {
        (length_us / 2).max(LENGTH_US_MIN)
    } else {
        length_us
    }
}
