//! Connections: how they are opened, named and discarded, and how their errors are classified.
//!
//! - Every connection has a name; a lane's is `logweir/<writer>/<lane>/<epoch>`. A takeover terminates frozen holders
//!   by name.
//! - A connection is never reused after an error or a timeout: an abandoned COPY leaves it unusable, and a
//!   demoted primary still answers `SELECT 1`.
//! - TLS follows `sslmode`: `disable`, `prefer` (the default: TLS if the server offers it) or `require`. Certificates
//!   are verified in both TLS modes. `verify-ca` and `verify-full` are treated as `require`, which verifies in full.

use std::error::Error as _;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error_class::{Class, Details, classify, copy_line};
use crate::error::StoreError;
use crate::settings::Database;
use logweir_tls as tls;

/// Extra time that the client waits beyond the server's own limit.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Opens connections to one URL.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    connect_timeout: Duration,
}

/// A connection outside the pools. Dropping it closes the socket at once: a graceful close would have to pass through a
/// connection in an unknown state, and would wait forever on a frozen server.
pub(super) struct Connection {
    pub(super) client: Client,
    driver: AbortHandle,
}

impl Connector {
    pub(super) fn new(url: &str, database: &Database) -> Result<Self, StoreError> {
        let wrong = |what: String| StoreError::Systemic(format!("invalid database.url: {what}"));
        let mut config: Config = strict_sslmode(url).parse().map_err(|error: Error| wrong(describe(&error)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("missing host".to_owned()));
        }
        let connect_timeout = Duration::from_millis(database.connect_timeout_ms);
        config
            .connect_timeout(connect_timeout)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15))
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let tls = tls::client_config(database.ca_file.as_deref())
            .map_err(|error| StoreError::Systemic(format!("database.{error}")))?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls), connect_timeout })
    }

    /// Opens a connection named `name`.
    pub(super) async fn connect(&self, name: &str) -> Result<Connection, StoreError> {
        let mut config = self.config.clone();
        config.application_name(name);
        // `connect_timeout` covers the TCP handshake with one address; this covers a host that accepts and then stays
        // silent.
        let addresses = u32::try_from(config.get_hosts().len().max(config.get_hostaddrs().len())).unwrap_or(1);
        let limit = self.connect_timeout * (addresses + 1);
        within(limit, "connecting to the database", self.open(&config)).await
    }

    async fn open(&self, config: &Config) -> Result<Connection, StoreError> {
        let (client, connection) =
            config.connect(self.tls.clone()).await.map_err(|error| failure("connecting to the database", &error))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = describe(&error), "a database connection ended");
            }
        });
        let connection = Connection { client, driver: driver.abort_handle() };
        // So that the server soon notices when this process dies in mid-statement. Not every platform supports it; the
        // TCP timeouts are the fallback.
        let _ = connection.client.batch_execute("SET client_connection_check_interval = '200ms'").await;
        Ok(connection)
    }
}

/// Bounds `work` by a timeout, which is a transient error: the server or the network does not respond.
pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(StoreError::Transient(format!("{what}: the database did not respond within {} ms", limit.as_millis())))
    })
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Maps `verify-ca` and `verify-full`, which the client's parser does not support, to `require`, which does the same
/// here.
fn strict_sslmode(url: &str) -> String {
    url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require")
}

/// Classifies errors of the step `what`.
pub(super) fn failed(what: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| failure(what, &error)
}

/// Classifies an error of the server or the connection. Not for COPY, where a row can be the cause.
pub(super) fn failure(what: &str, error: &Error) -> StoreError {
    let text = format!("{what}: {}", describe(error));
    match class(error) {
        Class::Transient => StoreError::Transient(text),
        Class::Value | Class::Row | Class::Systemic => StoreError::Systemic(text),
    }
}

pub(super) fn class(error: &Error) -> Class {
    match error.as_db_error() {
        Some(db) => {
            let in_copy = db.where_().and_then(copy_line).is_some();
            classify(db.code().code(), Details { constraint: db.constraint(), table: db.table(), in_copy })
        }
        None if is_certificate_error(error) => Class::Systemic,
        None => Class::Transient,
    }
}

/// Returns the server's full message, or the chain of causes.
pub(super) fn describe(error: &Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            text.push_str("; ");
            text.push_str(more);
        }
        return text;
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    if is_certificate_error(error) {
        text.push_str("; set database.ca_file to the server's CA, or disable TLS with sslmode=disable");
    }
    text
}

fn is_certificate_error(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        // `source` of an io::Error skips the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(rustls::Error::InvalidCertificate(_)) = wrapped.and_then(|error| error.downcast_ref()) {
            return true;
        }
        cause = error.source();
    }
    false
}
