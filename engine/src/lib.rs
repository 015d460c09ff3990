#![doc = include_str!("../README.md")]
//!
//! # Code map
//!
//! Each module uses only modules above it; those that it uses are in parentheses. The `mod` lines below, and those of
//! `journal`, are in the same order. `tests/tests/modules.rs` fails on a circle.
//!
//! ```text
//! clock               wall time and monotonic time, as two types; the only reader of the wall clock
//! fault               fault injection for tests
//! file_system         what the journal asks of a file system; the operating system's, and a simulated disk for tests
//! drain               shutdown phases and their state machine
//! meter               counters and durations that are exported as metrics; the metrics of a mailbox
//! progress            signs of progress of one stage, for the watchdog; known waits
//! exit                exit codes; the first exit that a stage requested
//! sync                the semaphore's primitives
//! semaphore           a mailbox's accounting in messages and bytes, FIFO (meter, sync)
//! mailbox             the bounded queue of a stage: credits, send, reserve, close (exit, semaphore)
//! stage               the trait that users implement (drain, exit, mailbox, progress)
//! window              tumbling and sliding windows over event time, and a stage that closes them
//!                     (clock, exit, mailbox, stage)
//! observe             counters and state of every actor, from any thread (meter, progress, semaphore, stage)
//! actor_host          the only actix actor: hosts a stage, one message at a time; ticks, fairness
//!                     (exit, mailbox, observe, stage)
//! supervisor          restarts after panics and stalls, the watchdog
//!                     (actor_host, exit, meter, observe, progress, stage)
//! topology            builds and drains a pipeline; arbiter threads
//!                     (actor_host, drain, exit, mailbox, observe, semaphore, stage, supervisor)
//! journal/types       what callers and the journal's files pass to each other
//! journal/error       why a journal cannot be opened, why an append is rejected
//! journal/dedup_index which requests and file positions have been appended before (types)
//! journal/bit_flip    finds a single flipped bit by its CRC
//! journal/identity    which journal and which run wrote a segment, and which the database has confirmed
//! journal/frame       frames, their header, payloads of START and CONFIRM (dedup_index, identity, types)
//! journal/segment     segment header, the directory's files, fsyncs (error, fault, file_system, frame, identity)
//! journal/config      the configuration and its limits (error, file_system, segment)
//! journal/salvage     reads around what the disk cannot read (file_system)
//! journal/scan        iterates over the frames of any bytes (dedup_index, file_system, frame, salvage, segment)
//! journal/directory_scan  valid, torn or damaged: what a directory contains
//!                     (dedup_index, error, file_system, frame, identity, salvage, scan, segment, types)
//! journal/recover     opens a directory: quarantine, truncation, the next run's first segment
//!                     (clock, fault, directory_scan and what it uses)
//! journal/acceptance  whether appends are accepted, and who may accept them again (error)
//! journal/unsynced    when the frames that are not durable were appended
//! journal/state       pure decisions: sequence numbers, positions, quota, which segments may be removed
//!                     (acceptance, dedup_index, error, frame, identity, recover, segment, types,
//!                     unsynced)
//! journal/shared      what callers, writer, housekeeper and readers share (state, recover and what they use)
//! journal/writer      the writer thread: group commit, rotation, acknowledgment
//!                     (clock, error, fault, frame, recover, segment, shared, state, types)
//! journal/housekeeper background thread: spare segments, removal, full disk, a removed directory
//!                     (error, fault, segment, shared, state)
//! journal/reader      reads one lane or all, concurrently with the writer (frame, salvage, scan, shared, types)
//! journal/check       check, dump and repair of any journal directory (recover and what it uses)
//! journal/handle      the public API: open, append, durable, commit, seal (all of `journal` but frame and scan)
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
//! - *journal/dedup_index*: a key is remembered across restarts, and forgotten if its frame is rolled back; opening a
//!   journal touches each of its entries a bounded number of times.
//! - *frame*, *segment*: the bytes on disk are frozen by golden files.

#![forbid(unsafe_code)]

pub mod clock;
pub mod fault;
pub mod file_system;
pub mod drain;
mod meter;
mod progress;
mod exit;
mod sync;
mod semaphore;
#[cfg(test)]
mod semaphore_tests;
pub mod mailbox;
pub mod stage;
pub mod window;
pub mod observe;
mod actor_host;
mod supervisor;
pub mod topology;
pub mod journal;
