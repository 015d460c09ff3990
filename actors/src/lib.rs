//! logweir: logs into PostgreSQL, each acknowledged record exactly once.
//!
//! ```text
//! socket ─ producer ─> parser ─> batcher ─┬─> db-flusher ──> PostgreSQL/TimescaleDB (or SQLite)
//!          (http,      (columnar  (seq,   │      rows + cursor + counters, one transaction
//!           stdin,      chunk)     open   └─> cache-writer ─> Redis (or in-process)
//!           demo)                  batch)        recent window, counters; may lose, may not delay
//!                                    │
//!                                    ▼
//!    ack <─────────────────── journal (one OS thread: append, group-commit fsync)
//! ```
//!
//! The `mod` lines stand in the order of a record's way.

pub mod config;
pub mod message;
pub mod progress;
pub mod http;
pub mod producer;
pub mod parser;
pub mod batcher;
pub mod db_flusher;
pub mod cache_writer;
pub mod store;
pub mod cache;
pub mod breaker;
pub mod tls;
pub mod pipeline;
pub mod logweir;
pub mod run;
pub mod cli;
