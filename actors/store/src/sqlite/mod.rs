//! SQLite: the same protocol in one file, for a laptop or a small machine.
//!
//! - All lanes and retention take turns on one connection for writing (SQLite has a single writer anyway); another one
//!   reads. Both run on blocking threads.
//! - WAL with `synchronous = FULL`: a commit is on disk when it returns.
//! - Transactions are IMMEDIATE: they hold the write lock before they read the cursor, so nothing changes between read
//!   and update.
//! - `ts` is fixed-width text, `YYYY-MM-DDTHH:MM:SS.ffffffZ`, which sorts by time and is readable.
//! - SQLite accepts any text, so only a constraint that a user added can reject a row; that row is dead-lettered at
//!   once.

mod file;
mod connection;
mod clock;
mod idempotency;
mod schema;
mod retention;
mod lane_row;
mod session;
mod lease;
mod flush;
mod dead_letters;
mod read;
mod store;

pub use self::connection::CACHE_BYTES;
pub use self::read::CACHE_BYTES as READ_CACHE_BYTES;
pub use self::store::SqliteStore;
