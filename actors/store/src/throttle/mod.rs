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

mod gate;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod pause;
#[cfg(feature = "postgres")]
mod pieces;
#[cfg(feature = "sqlite")]
mod thread;
#[cfg(all(test, feature = "postgres"))]
mod tests;

pub use self::gate::{BEHIND, QueryThrottle, READING_MAX};
#[cfg(feature = "sqlite")]
pub(crate) use self::thread::{Abandoned, ThreadReading, waiter};
