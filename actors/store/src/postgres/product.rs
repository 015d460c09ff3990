//! What stores: its name and versions, for messages. It can change while logweir runs: `ALTER EXTENSION … UPDATE`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_postgres::{Client, Error};

use super::home::Home;
use super::timescale::{Timescale, is_hypertable};

/// The product, once it is known.
#[derive(Debug, Default)]
pub(super) struct KnownProduct(Mutex<Option<(&'static str, String)>>);

impl KnownProduct {
    pub(super) fn name(&self) -> &'static str {
        self.lock().as_ref().map_or("PostgreSQL", |(name, _)| name)
    }

    pub(super) fn version(&self) -> Option<String> {
        self.lock().as_ref().map(|(_, version)| version.clone())
    }

    /// Asks the server. An error changes nothing: nobody depends on it.
    pub(super) async fn learn(&self, client: &Client, home: &Home) {
        match product(client, home).await {
            Ok(product) => *self.lock() = Some(product),
            Err(error) => tracing::debug!(%error, "the version of the database is not known"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(&'static str, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn product(client: &Client, home: &Home) -> Result<(&'static str, String), Error> {
    const SQL: &str = "SELECT split_part(current_setting('server_version'), ' ', 1)";
    let postgres: String = client.query_typed_one(SQL, &[]).await?.get(0);
    let Some(Timescale { version, is_apache, .. }) = Timescale::find(client).await? else {
        return Ok(("PostgreSQL", postgres));
    };
    let edition = if is_apache { ", Apache edition" } else { "" };
    Ok(match is_hypertable(client, &home.table("logs")).await? {
        true => ("TimescaleDB", format!("{version}{edition} (PostgreSQL {postgres})")),
        false => (
            "PostgreSQL",
            format!(
                "{postgres} (TimescaleDB {version} is not used: table logs has daily partitions; `logweir database migrate` makes it a hypertable)"
            ),
        ),
    })
}
