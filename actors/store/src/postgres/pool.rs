//! Pools of connections for queries and administration.
//!
//! They hold the same connections as everything else. A connection is checked before it is used again, and replaced when
//! it is due, if another one can be opened. Nothing is set on it: behind a pooler a setting would reach other clients.

use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};

use super::connect::{Connection, Connector, failure, within};
use crate::error::StoreError;
use crate::settings::Database;

pub(super) type Pool = managed::Pool<Manager>;
/// A connection that returns to its pool when it is dropped.
pub(super) type Object = managed::Object<Manager>;

/// Opens a pool's connections.
pub(super) struct Manager {
    connector: Connector,
    name: &'static str,
    /// Whether each transaction may have another server process.
    any_process: bool,
    check_limit: Duration,
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = StoreError;

    async fn create(&self) -> Result<Connection, StoreError> {
        match self.any_process {
            true => self.connector.connect_anyhow(self.name).await,
            false => self.connector.connect(self.name).await,
        }
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<StoreError> {
        const CHECKING: &str = "checking a connection";
        if connection.client.is_closed() {
            return Err(RecycleError::message("closed"));
        }
        if connection.is_due() {
            match managed::Manager::create(self).await {
                Ok(new) => {
                    *connection = new;
                    return Ok(());
                }
                Err(error) => connection.keep(&error),
            }
        }
        let checked = async { connection.client.check_connection().await.map_err(|error| failure(CHECKING, &error)) };
        within(self.check_limit, CHECKING, checked).await.map_err(RecycleError::Backend)
    }
}

/// A pool for queries, each of them one transaction.
pub(super) fn query_pool(connector: &Connector, database: &Database) -> Result<Pool, StoreError> {
    pool(connector, "logweir/query", true, database.pool_size, database)
}

/// A pool for administration: small, since only commands use it.
pub(super) fn admin_pool(connector: &Connector, database: &Database) -> Result<Pool, StoreError> {
    const CONNECTIONS: usize = 2;
    pool(connector, "logweir/admin", false, CONNECTIONS, database)
}

fn pool(
    connector: &Connector,
    name: &'static str,
    any_process: bool,
    connections: usize,
    database: &Database,
) -> Result<Pool, StoreError> {
    let wait = Duration::from_millis(database.connect_timeout_ms);
    Pool::builder(Manager { connector: connector.clone(), name, any_process, check_limit: wait })
        .max_size(connections.max(1))
        .runtime(Runtime::Tokio1)
        // Opening and checking a connection have limits of their own.
        .wait_timeout(Some(wait))
        .build()
        .map_err(|error| StoreError::Systemic(format!("connection pool: {error}")))
}

pub(super) fn pool_failure(error: PoolError<StoreError>) -> StoreError {
    match error {
        PoolError::Backend(error) => error,
        other => StoreError::Transient(format!("no connection to the database: {other}")),
    }
}
