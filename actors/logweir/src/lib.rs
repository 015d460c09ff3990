#![doc = include_str!("../README.md")]
//! # Code map
//!
//! The crates; each uses only those above it in this list:
//!
//! ```text
//! engine/             mailboxes, supervised stages, the drain, the journal; knows bytes, not records
//! actors/record/      a record, chunks of records as columns, their codec, times and JSON
//! actors/formats/     text to records: one file per line format, and one per protocol that wraps records; no I/O
//! actors/query/       the query languages, filters, steps, facets, cursors; no I/O
//! actors/tls/         TLS of every listener and client
//! actors/store/       PostgreSQL/TimescaleDB and SQLite: the exactly-once protocol, queries, which yield to writes
//! actors/logweir/     this crate: the stages and the server
//! actors/cli/         the program: one file per command; its documentation
//! ```
//!
//! The modules of this crate, in pipeline order, as the `mod` lines below:
//!
//! ```text
//! config/             validation of all settings at once; named secrets; the only module that reads the environment
//! message, progress/  what the stages exchange; the accounting per lane, and the age of the backlog
//! limits/             circuit breakers, delays before retries, token buckets
//! producer/           admission, decompression; syslog, file, stdin and demo sources; framing, multi-line records
//! horizon             event times beyond what the database keeps
//! parser              the stage around `logweir-formats`
//! batcher/            appends a chunk to the journal, then adds it to a batch
//! db_flusher/         writes one lane to the database, from memory or from the journal
//! cache/              recent records and counters in Redis or in-process, and the stage that writes them
//! follow/             reads durable frames of all lanes, from any position to the live edge
//! tail/, alerts/      consumers of follow: live tails and server-sent events; windows, thresholds, webhooks
//! search/             query execution: concurrency limits, merging rows and cache, what a result lacks, cached histograms
//! maintenance         the loop around the store's maintenance, and what is told about steps that fail
//! disk_watch          a journal's disk that does not answer
//! pipeline            wiring of the stages
//! logweir, error      the pipeline as a value, and why it fails
//! adopt               an operator says that a journal that the database does not recognize is the only copy
//! gateway/            discovery of processors by name, a breaker for each, their live tails merged
//! control_group       the limits of memory and CPU that the process runs under
//! resources           descriptors, memory, CPU cores and disk space, compared with the configuration at the start
//! http/               data and admin listeners; one file per protocol formats the responses
//! metric_help         kind and help text of every metric
//! server              life cycle of the server: listen, recover, serve, drain
//! internal            what only the program, the tests and the benchmarks need; not part of the public API
//! ../ui/              the web UI: one module per part, preact and htm in vendor/, no build step
//! ```
//!
//! # Invariants
//!
//! Each has one owner.
//!
//! - *mailbox*: credits held equal messages queued or being handled, and never exceed the bound, in messages and in
//!   bytes.
//! - *journal*: a frame is read back whole or not at all; nothing is acknowledged before its fsync; after a failed
//!   fsync nothing more is acknowledged.
//! - *batcher*: a chunk is in the journal before it lingers; dropping a batch from memory never loses it.
//! - *db_flusher*: the position is always the database's cursor; no transaction begins before its frames are durable; a
//!   segment is removed only after the database has confirmed its commit; a record becomes a dead letter only alone, and
//!   only if the table accepts others.
//! - *store*: rows, cursor and counters move in one transaction; `rows + dead + lost` at the cursor equals the count in
//!   the frame's header, checked before each COMMIT.
//! - *cache_writer*: may lose, never delays.
//! - *tail*: a record is delivered once, or counted as dropped or missing; no tail delays anything else.
//! - *query*: a filter means the same in Rust, PostgreSQL and SQLite; user input enters a statement only as a
//!   parameter.
//! - *search*: a cached record is added to rows only if it is above its lane's cursor in their snapshot; every
//!   query is bounded in time, concurrency, bytes and records.
//! - *files*: an offset advances only with what is acknowledged; a range is recorded before it is submitted.
//! - *parser*: n lines in, n records out; lines above the limit are discarded, counted and reported.
//! - *config*: a `Config` returned by `config::load` is valid; only `config/` reads the environment.
//!
//! # Glossary
//!
//! | term | meaning |
//! |---|---|
//! | record, chunk | one log event; the records of one request or one read, the unit of admission and acknowledgment |
//! | journal, segment, frame | the write-ahead log on the volume; one of its files; a chunk as written to it |
//! | lane | an ordered shard of the stream: order is kept within a lane, lanes are flushed in parallel |
//! | batch | consecutive chunks of one lane that commit in one database transaction |
//! | cursor, backlog | the last sequence number of a lane that the database has committed; the records above it |
//! | acknowledge, commit | answer the sender with success; rows and cursor are in the database |
//! | dead letter | a record that the database rejected, stored with the reason |
//! | writer, epoch | the identity of a journal; the fencing number of its owner |
//! | lease, takeover, fork | ownership of a writer; acquiring the lease; continuing a stale copy under a new identity |
//! | mailbox, credit | a bounded queue in messages and bytes; its admission accounting |
//! | semaphore, permit | the primitive below a mailbox; one admission |
//! | stage, actor host | user code that handles messages; the actor that runs it |
//! | supervisor, topology | restarts of stages after panics and stalls; their wiring |
//! | drain, shutdown phase | the orderly stop: accepting, closing, draining, persisting, done |
//! | dedup key, dedup index | an idempotency key as journaled; the index of recent ones |
//! | housekeeper | the journal's background thread: spare segments, removal, full disk |
//! | quarantine, torn tail | the directory for damaged bytes; an incomplete frame at the end of the journal |
//! | directory scan, segment scan | reading a journal's files at startup |
//! | valid prefix | the readable part of a segment |
//! | source client, source batch | the retrying in-process client of sources other than HTTP; what it submits |
//! | rejection | a request or chunk that is not accepted, with a reason |
//! | rate limiter | a token bucket: records per second into the recent windows or to one live tail |
//! | query throttle | makes queries yield while the database is behind the intake |
//! | result cache | cached histograms |
//! | data listener, admin listener | the two HTTP ports |

#![forbid(unsafe_code)]

pub mod config;
pub mod message;
mod limits;
pub mod progress;
pub mod producer;
mod horizon;
mod parser;
mod batcher;
mod db_flusher;
pub mod cache;
mod follow;
pub mod tail;
pub mod alerts;
pub mod search;
mod error;
mod maintenance;
mod disk_watch;
mod pipeline;
mod logweir;
mod adopt;
#[cfg(feature = "server")]
mod gateway;
#[cfg(feature = "server")]
mod control_group;
#[cfg(feature = "server")]
mod resources;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod metric_help;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod internal;

pub use crate::adopt::adopt_journal;
pub use crate::config::Config;
pub use crate::error::Error;
pub use crate::logweir::{Accounting, Logweir, ShutdownReport, drain_journal};

pub use logweir_engine as engine;
pub use logweir_formats as formats;
pub use logweir_query as query;
pub use logweir_record as record;
pub use logweir_store as store;

/// Compiles and runs the Rust blocks of the repository's front page.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct FrontPage;
