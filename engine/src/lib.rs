//! The machinery of logweir: bounded mailboxes, supervised stages, a durable journal and an
//! ordered drain. It knows actix, a disk and a clock; it knows no store, no HTTP and no
//! environment variable, so that it can be embedded alone.
//!
//! ```text
//!                 ┌─ Mailbox ─> Stage ─┐ ┌─ Mailbox ─> Stage ─┐
//!  records ─────> │  one generic actor │>│  one generic actor │ ─> ...
//!                 └────────────────────┘ └─────────┬──────────┘
//!            supervisor: panic and stall become    │ append, group-commit fsync
//!            an exit with a name, the stage is     ▼
//!            rebuilt, queue and address stay    Journal (one OS thread) ─> reader, recovery
//! ```
//!
//! The `mod` lines stand in the order of a record's way.

pub mod record;
pub mod chunk;
pub mod mailbox;
pub mod stage;
mod shell;
pub mod supervisor;
pub mod codec;
pub mod journal;
pub mod topology;
pub mod drain;
pub mod observe;
pub mod clock;
pub mod fault;
