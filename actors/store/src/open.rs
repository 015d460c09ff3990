//! Opens the store that a URL names.

use std::sync::Arc;
use std::time::Duration;

use crate::blackhole::BlackholeStore;
use crate::error::StoreError;
use crate::postgres::PostgresStore;
use crate::read::LogReader;
use crate::settings::{Database, DatabaseUrl};
use crate::sqlite::SqliteStore;
use crate::store::LogStore;
use crate::throttle::QueryThrottle;

/// An open store of any kind.
#[derive(Clone)]
pub enum AnyStore {
    /// `PostgreSQL` or `TimescaleDB`.
    Postgres(Arc<PostgresStore>),
    /// `SQLite`.
    Sqlite(Arc<SqliteStore>),
    /// Discards every record.
    Blackhole(Arc<BlackholeStore>),
}

impl AnyStore {
    /// Returns the store's write side.
    #[must_use]
    pub fn store(&self) -> Arc<dyn LogStore> {
        match self {
            Self::Postgres(store) => store.clone(),
            Self::Sqlite(store) => store.clone(),
            Self::Blackhole(store) => store.clone(),
        }
    }

    /// Returns the store's read side, or `None` if the store discards its records. `timeout` bounds each query;
    /// `throttle` makes queries yield to flushes.
    #[must_use]
    pub fn reader(&self, timeout: Duration, throttle: QueryThrottle) -> Option<Arc<dyn LogReader>> {
        match self {
            Self::Postgres(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            Self::Sqlite(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            Self::Blackhole(_) => None,
        }
    }
}

/// Opens the store at `config.url`. Does not connect to a server yet; `SQLite` creates its file.
///
/// # Errors
/// [`StoreError::Systemic`] if the URL, the CA file or the path is invalid.
pub fn open(config: &Database) -> Result<AnyStore, StoreError> {
    Ok(match &config.url {
        DatabaseUrl::Postgres(url) => AnyStore::Postgres(Arc::new(PostgresStore::new(url, config)?)),
        DatabaseUrl::Sqlite(path) => AnyStore::Sqlite(Arc::new(SqliteStore::open(path, config)?)),
        DatabaseUrl::Blackhole => AnyStore::Blackhole(Arc::default()),
    })
}
