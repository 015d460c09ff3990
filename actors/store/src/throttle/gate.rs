//! Whether queries are throttled, and which one may read next.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// A backlog of this age is more than a batch that is waiting to fill.
pub const BEHIND: Duration = Duration::from_secs(2);

/// How long one query may read while the database is behind, excluding pauses.
pub const READING_MAX: Duration = Duration::from_millis(500);

/// Shares the capacity that the writers leave among queries. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub struct QueryThrottle(pub(super) Arc<Shared>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) behind: watch::Sender<bool>,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    /// Held by the query that reads, and during the pause after it.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
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
}
