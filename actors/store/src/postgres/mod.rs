//! PostgreSQL and TimescaleDB.
//!
//! Each lane flushes over its own long-lived connection (`flush`). Lease acquisition, preparation and maintenance use
//! short-lived connections; queries and administration use two small pools.

mod types;
mod error_class;
mod connection_string;
mod access;
mod backend;
mod pooler;
mod connect;
mod patience;
mod pool;
mod ddl;
mod home;
mod lane_row;
mod moving;
mod partition;
mod index;
mod policy;
mod clock;
mod idempotency;
mod takeover_digest;
mod schema;
mod grants;
mod maintain;
pub(crate) mod copy;
mod flush;
mod lease;
mod dead_letters;
mod filter;
mod read_error;
mod read;
mod store;

pub use self::grants::Purpose;
pub use self::store::PostgresStore;

use self::access::UrlKey;

/// Whether `text` is written like a connection string of PostgreSQL: a URL, or `key=value` pairs.
#[must_use]
pub fn is_connection_string(text: &str) -> bool {
    connection_string::is_connection_string(text)
}

/// Checks a connection string for `database.url`, without reading its files.
///
/// # Errors
/// What is wrong, what is accepted and what to do; never a password.
pub fn check_url(text: &str) -> Result<(), String> {
    access::parse(UrlKey::Url, text).map(drop)
}

/// Checks a connection string for `database.read_url`, without reading its files.
///
/// # Errors
/// As of [`check_url`].
pub fn check_read_url(text: &str) -> Result<(), String> {
    access::parse(UrlKey::ReadUrl, text).map(drop)
}

/// Why the connection string, which is valid, requires `database.ca_file`.
#[must_use]
pub fn requires_ca_file(text: &str) -> Option<&'static str> {
    let string = connection_string::ConnectionString::parse(text).ok()?;
    access::requires_ca_file(&string).then_some(access::CA_FILE_MISSING)
}
