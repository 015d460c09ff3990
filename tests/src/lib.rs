//! The test harness: the real `logweir` binary, real servers, a faulty network, clients that record every
//! acknowledgment, and an oracle that compares the acknowledgments with the database.
//!
//! ```text
//! client ──> logweir (process) ──> proxy ──> PostgreSQL / Redis        SQLite, disks
//!    │           ▲ signals, kill points                │
//!    └─ ledger ──┴───────────── oracle ────────────────┘
//! ```

pub mod lines;
pub mod protobuf;
pub mod ledger;
pub mod client;
pub mod process;
pub mod frozen;
pub mod tail;
pub mod webhook;
pub mod proxy;
pub mod disk;
pub mod clock;
pub mod postgres;
pub mod pooler;
pub mod backup;
pub mod redis;
pub mod store;
pub mod conformance;
pub mod oracle;
pub mod accounting;
pub mod scenario;
pub mod maintenance;
pub mod chaos;
pub mod kubelet;
pub mod installed;
pub mod browser;
pub mod documents;
