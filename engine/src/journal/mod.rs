//! The journal: a write-ahead log on disk that holds every acknowledged record until the database has committed it.
//!
//! ```text
//! reserve ─> append ─> queue ─> writer ─ pwrite, fdatasync ─> on_durable     (state, writer)
//!            seq, lane counts     │  spare segments, removal, full disk       (housekeeper)
//!                                 ▼
//!  DIR/LOCK  DIR/<20 digits>.wal  DIR/spare.tmp  DIR/ballast  DIR/quarantine/ (frame, segment)
//!                                 │
//!        reader <─────────────────┴──> directory scan ─> recover, check       (scan, directory_scan)
//! ```
//!
//! - No second file has to agree with the log: every position is derived from the frames.
//! - A file that holds frames is only appended to. A newer segment states which frames of an older one are valid;
//!   nothing is marked in place.
//! - Sequence numbers increase across all lanes, without gaps inside a run. Each open starts a new run in a new segment
//!   and jumps ahead, so that a number lost in a power failure is not used again.
//! - Damage never prevents an open. It is reported by sequence range, counted and quarantined.
//! - Memory does not grow with the journal: one window per reader, and the lanes of each segment.

mod types;
mod error;
mod dedup_index;
mod bit_flip;
mod identity;
mod frame;
mod segment;
mod config;
mod salvage;
mod scan;
mod directory_scan;
mod recover;
mod acceptance;
mod unsynced;
mod state;
mod shared;
#[cfg(test)]
mod full_disk_tests;
mod writer;
mod housekeeper;
mod reader;
mod check;
mod handle;

pub use self::check::{Report, SegmentReport, check, check_on, dump, dump_on, repair, repair_on};
pub use self::config::JournalConfig;
pub use self::dedup_index::{DEDUP_WINDOW, DedupEntry, DedupKey, DedupKind};
pub use self::error::{AppendError, OpenError};
pub use self::frame::{Frame, PAYLOAD_BYTES_MAX};
#[cfg(feature = "faults")]
pub use self::handle::{HousekeeperSteps, WriterSteps};
pub use self::handle::{Journal, JournalStats};
pub use self::reader::Reader;
pub use self::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use self::shared::{AppendCredit, NewFrame, OnDurable};
pub use self::types::{Appended, Damage, LaneId, LaneTail, Recovered};
