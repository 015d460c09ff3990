//! Pools of connections for queries and administration.

use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime};

use super::connect::{Connector, failure};
use crate::error::StoreError;
use crate::settings::Database;

pub(super) fn pool(
    connector: &Connector,
    name: &str,
    connections: usize,
    database: &Database,
    setup: Option<String>,
) -> Result<Pool, StoreError> {
    let mut config = connector.config.clone();
    config.application_name(name);
    // Verified: the default returns dead sockets.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Verified };
    let wait = Some(Duration::from_millis(database.connect_timeout_ms));
    let mut builder = Pool::builder(Manager::from_config(config, connector.tls.clone(), recycling))
        .max_size(connections.max(1))
        .runtime(Runtime::Tokio1)
        .wait_timeout(wait)
        .create_timeout(wait)
        .recycle_timeout(wait);
    if let Some(setup) = setup {
        builder = builder.post_create(Hook::async_fn(move |client, _| {
            let setup = setup.clone();
            Box::pin(async move { client.batch_execute(&setup).await.map_err(HookError::Backend) })
        }));
    }
    builder.build().map_err(|error| StoreError::Systemic(format!("connection pool: {error}")))
}

pub(super) fn pool_failure(error: &PoolError) -> StoreError {
    match error {
        PoolError::Backend(error) => failure("connecting to the database", error),
        other => StoreError::Transient(format!("no connection to the database: {other}")),
    }
}
