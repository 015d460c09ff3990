//! logweir: logs into PostgreSQL, each acknowledged record exactly once.
//!
//! ```text
//! socket ─ producer ─> parser ─> batcher ─┬─> db-flusher ──> PostgreSQL/TimescaleDB (or SQLite)
//!          (http,      (columnar  (seq,   │      rows + cursor + counters, one transaction
//!           syslog,     chunk)     open   └─> cache-writer ─> Redis (or in-process)
//!           files …)              batch)        recent window, counters; may lose, may not delay
//!                                    │
//!                                    ▼
//!    ack <─────────────────── journal (one OS thread: append, group-commit fsync)
//! ```
//!
//! The `mod` lines stand in the order of a record's way.
//!
//! The server is `logweir run` (see the README). Embedded in a program, the same pipeline runs without sockets:
//!
//! ```
//! use logweir::config::Config;
//! use logweir::logweir::Logweir;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! actix_rt::System::new().block_on(async {
//!     let logweir = Logweir::start(Config::in_dir(dir)).await?; // journal and SQLite in `dir`
//!     let receipt = logweir.ingest("{\"level\":\"warn\",\"msg\":\"low on paper\"}\nplain lines work too").await?;
//!     assert_eq!(receipt.report.accepted, 2); // covered by an fsync
//!     let stopped = logweir.stop().await; // drains into the database, seals the journal
//!     assert_eq!(stopped.accounting.committed, 2);
//!     Ok(())
//! })
//! # }
//! ```

pub mod config;
pub mod message;
pub mod progress;
pub mod http;
pub mod producer;
pub mod parser;
pub mod batcher;
pub mod db_flusher;
pub mod cache_writer;
pub mod follow;
pub mod tail;
pub mod alerts;
pub mod store;
pub mod dead_letters;
pub mod cache;
pub mod rate_limit;
pub mod query;
pub mod recent;
pub mod search;
pub mod result_cache;
pub mod backlog;
pub mod query_throttle;
pub mod breaker;
pub mod sse;
pub mod gateway;
pub mod tls;
pub mod token;
pub mod pipeline;
pub mod logweir;
pub mod metric_help;
pub mod run;
pub mod cli;

/// Version and build, as `--version` says them.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LOGWEIR_BUILD"), ")");
