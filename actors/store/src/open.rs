//! Opens the store that a URL names.

use std::sync::Arc;
use std::time::Duration;

use crate::blackhole::BlackholeStore;
use crate::error::StoreError;
#[cfg(feature = "postgres")]
use crate::postgres::PostgresStore;
use crate::read::LogReader;
use crate::settings::{Database, DatabaseUrl};
#[cfg(feature = "sqlite")]
use crate::sqlite::SqliteStore;
use crate::store::LogStore;
use crate::throttle::QueryThrottle;

/// An open store of any kind.
#[derive(Clone)]
#[non_exhaustive]
pub enum AnyStore {
    /// `PostgreSQL` or `TimescaleDB`.
    #[cfg(feature = "postgres")]
    Postgres(Arc<PostgresStore>),
    /// `SQLite`.
    #[cfg(feature = "sqlite")]
    Sqlite(Arc<SqliteStore>),
    /// Discards every record.
    Blackhole(Arc<BlackholeStore>),
}

impl AnyStore {
    /// Returns the store's write side.
    #[must_use]
    pub fn store(&self) -> Arc<dyn LogStore> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.clone(),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => store.clone(),
            Self::Blackhole(store) => store.clone(),
        }
    }

    /// Returns the store's read side, or `None` if the store discards its records. `timeout` bounds each query;
    /// `throttle` makes queries yield to flushes.
    #[must_use]
    #[cfg_attr(not(any(feature = "postgres", feature = "sqlite")), expect(unused_variables))]
    pub fn reader(&self, timeout: Duration, throttle: QueryThrottle) -> Option<Arc<dyn LogReader>> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            Self::Blackhole(_) => None,
        }
    }
}

/// Opens the store at `config.url`. Does not connect to a server yet; `SQLite` creates its file.
///
/// # Errors
/// [`StoreError::Systemic`] if the URL, the CA file or the path is invalid, or if this crate was built without the
/// feature for such a URL.
pub fn open(config: &Database) -> Result<AnyStore, StoreError> {
    match &config.url {
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Ok(AnyStore::Postgres(Arc::new(PostgresStore::new(url, config)?))),
        #[cfg(feature = "sqlite")]
        DatabaseUrl::Sqlite(path) => Ok(AnyStore::Sqlite(Arc::new(SqliteStore::open(path, config)?))),
        DatabaseUrl::Blackhole => Ok(AnyStore::Blackhole(Arc::default())),
        #[cfg(not(feature = "postgres"))]
        DatabaseUrl::Postgres(_) => Err(built_without("PostgreSQL", "postgres")),
        #[cfg(not(feature = "sqlite"))]
        DatabaseUrl::Sqlite(_) => Err(built_without("SQLite", "sqlite")),
    }
}

#[cfg(not(all(feature = "postgres", feature = "sqlite")))]
fn built_without(product: &str, feature: &str) -> StoreError {
    StoreError::Systemic(format!(
        "database.url names {product}, but this program was built without it: build it with the feature `{feature}` of \
         logweir-store, or name another database"
    ))
}

#[cfg(all(test, not(all(feature = "postgres", feature = "sqlite"))))]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_its_feature_is_an_error_that_names_the_feature() {
        for (feature, built, url) in [
            ("postgres", cfg!(feature = "postgres"), DatabaseUrl::Postgres("postgres://localhost/logs".to_owned())),
            ("sqlite", cfg!(feature = "sqlite"), DatabaseUrl::Sqlite("/nonexistent/logs.db".into())),
        ] {
            if built {
                continue;
            }
            match open(&Database::new(url)) {
                Err(StoreError::Systemic(error)) => assert!(error.contains(&format!("feature `{feature}`")), "{error}"),
                Err(error) => panic!("{error}"),
                Ok(_) => panic!("it was built without {feature}"),
            }
        }
    }
}
