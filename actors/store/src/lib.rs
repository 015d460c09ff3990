#![doc = include_str!("../README.md")]
//!
//! The log store: rows, cursor and volume counters move in one transaction.
//!
//! Identity follows the volume: the *writer* is the journal's UUID. At startup a process acquires the writer's lease
//! (epoch + 1), which fences every earlier owner. Each flush is a compare-and-set on the lane's row,
//! guarded by epoch and cursor. `inherited + rows + dead + lost` of a lane's row equals the `lane_records` of the
//! frame at its cursor; this is checked before each commit.
//!
//! A journal can be older than the database (a restored volume snapshot, or a disk that lost confirmed writes at power
//! loss). A lane's cursor is then above the journal's tail, and new frames would be mistaken for stored ones. Acquiring
//! the lease resets such a lane: it restarts at the tail under a new `lane_id`.
//!
//! A record's `id` is `lane_id << 44 | ordinal`, where the ordinal counts the lane's records from 1. Ids are dense and
//! unique, which proves that no record is missing or duplicated.

mod settings;
mod lane;
mod error;
mod batch;
mod lease;
mod dead_letter;
mod store;
pub mod throttle;
pub mod read;
pub mod volume;
pub mod replay;
mod telemetry;
mod protocol;
pub mod blackhole;
pub mod postgres;
pub mod sqlite;
mod open;
#[doc(hidden)]
pub mod bench;

pub use self::batch::{Batch, BatchFrame, Gap};
pub use self::dead_letter::DeadLetter;
pub use self::error::StoreError;
pub use self::lane::{Flushed, LaneRow, LaneStart, ORDINAL_BITS, StoredCount, id_of};
pub use self::lease::{Claim, ForkPoint, Lease};
pub use self::open::{AnyStore, open};
pub use self::settings::{Database, DatabaseUrl};
pub use self::store::{LaneWriter, LogStore};
