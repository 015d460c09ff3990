#![doc = include_str!("../README.md")]
//!
//! # Code map
//!
//! The `mod` lines below are in pipeline order.
//!
//! ```text
//! mailbox             the bounded queue of a stage: credits, send, reserve, close
//! semaphore           a mailbox's accounting in messages and bytes, FIFO
//! stage               the trait that users implement; exit codes; known waits
//! window              tumbling and sliding windows over event time, and a stage that closes them
//! actor_host          the only actix actor: hosts a stage, one message at a time; ticks, fairness
//! supervisor          restarts after panics and stalls, the watchdog, exits
//! journal/mod         the public API, state shared by callers, writer and housekeeper
//! journal/state       pure decisions: sequence numbers, positions, quota, which segments may be removed
//! journal/writer      the writer thread: group commit, rotation, acknowledgment
//! journal/housekeeper background thread: spare segments, removal, full disk
//! journal/frame       frame header and START payload
//! journal/segment     segment header, the directory's files, fsyncs
//! journal/dedup_index which requests and file positions have been appended before
//! journal/scan        iterates over the frames of any bytes
//! journal/directory_scan  valid, torn or damaged: what a directory contains
//! journal/recover     opens a directory: quarantine, truncation, the next run's first segment
//! journal/reader      reads one lane or all, concurrently with the writer
//! journal/check       check, dump and repair of any journal directory
//! topology            builds and drains a pipeline; arbiter threads
//! drain               shutdown phases and their state machine
//! observe             counters and state of every actor, from any thread; metrics
//! clock               the only reader of the wall clock
//! fault               fault injection for tests
//! ```
//!
//! # Invariants
//!
//! Each has one owner.
//!
//! - *semaphore*: the messages queued or being handled and the credits held by senders never exceed the bound, in
//!   messages and in bytes; a waiting sender is never overtaken.
//! - *mailbox*: nothing enters after it has closed, so the in-band drain is the last message.
//! - *actor_host*: a stage handles one message at a time, in order; a tick never runs inside a message.
//! - *supervisor*: a panic or a stall costs the stage's state and the message being processed, no other message, and is
//!   never silent.
//! - *topology*: a stage is drained only after all stages that send to it have stopped.
//! - *drain*: phases only advance, and persisting starts no later than the deadline.
//! - *journal/writer*: frames are acknowledged in sequence order, each after the fsync that covers it; after a failed
//!   fsync none is acknowledged any more.
//! - *journal/state*: sequence numbers have no gaps inside a run, and a number is never assigned to two durable frames;
//!   a journal at its quota can still be sealed and opened.
//! - *journal/directory_scan*: a frame is read back whole or not at all; bytes that may have been acknowledged are
//!   damage, never a torn write (except in the last group, see there).
//! - *journal/recover*: a start that is killed at any moment can be repeated, and does not grow the disk usage.
//! - *journal/dedup_index*: a key is remembered across restarts, and forgotten if its frame is rolled back.
//! - *frame*, *segment*: the bytes on disk are frozen by golden files.

mod semaphore;
pub mod mailbox;
pub mod stage;
pub mod window;
mod actor_host;
pub mod supervisor;
pub mod journal;
pub mod topology;
pub mod drain;
pub mod observe;
pub mod clock;
pub mod fault;
