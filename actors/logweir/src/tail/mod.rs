//! Live tail: streams durable records to clients as they arrive.
//!
//! - It reads the journal, as a flusher that has fallen behind does. So it delays neither intake nor flushing and sees
//!   only what is durable. An interrupted stream resumes where it stopped, even after SIGKILL, for as long as the
//!   journal retains the records. Without clients it does no work at all. Copying the batches, as for the cache-writer,
//!   was rejected: a copy can be lost in transit, and history would need a second path anyway.
//! - Frames are read and decoded once for all clients, into a ring bounded in bytes. A client that falls behind the
//!   ring gets the exact number of records it missed and continues with the oldest frame in the ring.
//! - Everything runs on one dedicated thread: no number of clients and filters takes more than one core from intake.
//! - It ends when the journal is sealed, so records accepted during shutdown are streamed as well.
//! - [`TailHub::subscribe`] yields typed events; [`TailHub::subscribe_sse`] yields server-sent events as bytes. The
//!   latter are rendered straight from the borrowed record, so HTTP clients pay for no owned copy of it.

mod ring;
mod event;
mod output;
mod shared;
mod client;
mod hub;
#[cfg(feature = "server")]
pub(crate) mod sse;

pub use client::Matches;
pub(crate) use hub::memory_bytes_max;
pub use hub::{TailHub, TailStream};
pub use output::{GapReason, TailEvent, TailRecord};
pub use shared::TailRejection;
