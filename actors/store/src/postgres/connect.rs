//! Connections: how they are opened, named and discarded, and how their errors are classified.
//!
//! - Every connection has a name; a lane's is `logweir/<writer>/<lane>/<epoch>`. A takeover terminates frozen holders
//!   by name.
//! - A connection is never reused after an error or a timeout: an abandoned COPY leaves it unusable, and a
//!   demoted primary still answers `SELECT 1`.
//! - A connection is due for replacement after a while, or when its password, certificates or URL have changed. The next
//!   one resolves names and reads files again, so that nothing stays on an old server. If no other one can be opened (the
//!   server is full, the password was not changed there yet), the one in use works and stays.
//! - TLS follows `sslmode` as in libpq. Differences, each of them stricter: with a CA file, `prefer` does not fall back to
//!   plain text because of a certificate; `verify-full` without one trusts the system's CAs.
//! - Settings of the session are made only on a direct connection: behind a pooler they would reach other clients.

use std::error::Error as _;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::config::{SslMode as Encryption, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, CancelToken, Error};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::access::{Access, AccessSource, UrlKey};
use super::backend::announced_process;
use super::connection_string::{Server, Session, SslMode};
use super::error_class::{Class, advice, classify};
use super::pooler::{self, Pooling};
use crate::error::StoreError;
use crate::settings::Database;

/// Extra time that the client waits beyond the server's own limit.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How long a pooler that was found to assign connections per session is believed to do so.
const POOLER_BELIEVED: Duration = Duration::from_secs(600);

/// Time until the check of a pooler is repeated that failed, although an earlier one succeeded.
const POOLER_CHECKED_AGAIN: Duration = Duration::from_secs(60);

/// First and greatest time for which a connection stays in use because no other one could be opened.
const KEPT_MIN: Duration = Duration::from_secs(10);
const KEPT_MAX: Duration = Duration::from_secs(600);

/// Time between two notices of a connection that are logged.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// So that the session ends soon after this process or its machine. Each is a statement of its own, which may fail: not
/// every server and platform supports all of them, and statements that are sent together are one transaction.
const SESSION_SETTINGS: [&str; 5] = [
    "SET tcp_keepalives_idle = 15",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
    "SET tcp_user_timeout = '20s'",
    "SET client_connection_check_interval = '200ms'",
];

const CONNECTING: &str = "connecting to the database";

/// Opens connections to the servers of one URL.
#[derive(Clone)]
pub(super) struct Connector {
    source: Arc<AccessSource>,
    pooler: Arc<PoolerChecks>,
    connect_timeout: Duration,
    age_max: Duration,
}

/// What is known about the pooler, if there is one.
#[derive(Default)]
struct PoolerChecks {
    /// Pooler of this generation that assigns connections per session, and when that is to be checked again.
    believed: std::sync::Mutex<Option<(u64, Instant)>>,
    /// Held by who checks.
    checking: Mutex<()>,
}

/// A connection. Dropping it closes the socket at once: a graceful close would have to pass through a connection in an
/// unknown state, and would wait forever on a frozen server.
pub(super) struct Connection {
    /// Ends the task that moves its bytes when it is dropped.
    pub(super) client: ClientWrapper,
    tls: MakeRustlsConnect,
    source: Arc<AccessSource>,
    generation: u64,
    expires: Instant,
    /// Attempts to replace it that have failed, and the time of the next one.
    kept: u32,
    kept_until: Instant,
    is_pooled: bool,
}

/// Cancels the statement that a connection runs.
pub(super) struct Canceler {
    token: CancelToken,
    tls: MakeRustlsConnect,
}

/// One attempt to connect to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Plain,
    TlsIfOffered,
    Tls,
}

impl Connector {
    pub(super) fn new(
        url_key: UrlKey,
        text: &str,
        file: Option<std::path::PathBuf>,
        database: &Database,
    ) -> Result<Self, StoreError> {
        let source = AccessSource::new(url_key, text, file, database.ca_file.clone())
            .map_err(|what| StoreError::Systemic(format!("invalid {}: {what}", url_key.path())))?;
        Ok(Self {
            source: Arc::new(source),
            pooler: Arc::default(),
            connect_timeout: Duration::from_millis(database.connect_timeout_ms),
            age_max: Duration::from_secs(database.connection_age_max_s),
        })
    }

    /// Opens a connection named `name` that keeps its server process as long as it lives.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if a pooler lies between that assigns server processes per transaction.
    pub(super) async fn connect(&self, name: &str) -> Result<Connection, StoreError> {
        let access = self.access().await?;
        let connection = self.open(&access, name).await?;
        if connection.is_pooled {
            self.check_pooler(&access, &connection).await?;
        }
        self.source.begin(access.generation);
        Ok(connection)
    }

    /// Opens a connection named `name` on which each transaction may have another server process.
    pub(super) async fn connect_anyhow(&self, name: &str) -> Result<Connection, StoreError> {
        let access = self.access().await?;
        let connection = self.open(&access, name).await?;
        self.source.begin(access.generation);
        Ok(connection)
    }

    async fn access(&self) -> Result<Arc<Access>, StoreError> {
        let source = Arc::clone(&self.source);
        // Reads files, which may be on a network.
        let reading = tokio::task::spawn_blocking(move || source.read());
        within(self.connect_timeout, "reading the database's URL and certificates", async {
            reading.await.map_err(|error| StoreError::Transient(error.to_string()))
        })
        .await
    }

    /// Time limit for connecting to one address.
    fn connect_timeout(&self, access: &Access) -> Duration {
        access.string.config.get_connect_timeout().copied().unwrap_or(self.connect_timeout)
    }

    async fn open(&self, access: &Access, name: &str) -> Result<Connection, StoreError> {
        let mut failed = StoreError::Transient(format!("{CONNECTING}: no server was tried"));
        for &session in sessions(self.source.url_key, access.string.session) {
            for server in in_order(access) {
                let servers = match self.resolved(access, server).await {
                    Ok(servers) => servers,
                    Err(error) => {
                        failed = error;
                        continue;
                    }
                };
                for server in servers {
                    // The client's own timeout covers the TCP handshake; this covers a host that accepts and then stays
                    // silent. For each address, so that those that come first do not use up the time of the others.
                    let opening = async { Ok(self.open_at(access, &server, session, name).await) };
                    match within(2 * self.connect_timeout(access), CONNECTING, opening).await {
                        Ok(Ok(connection)) => return Ok(connection),
                        // As in libpq: it would be wrong at the other servers, too.
                        Ok(Err((error, true))) => return Err(error),
                        Ok(Err((error, false))) | Err(error) => failed = error,
                    }
                }
            }
        }
        Err(failed)
    }

    /// Returns `server` once for each address of its name.
    async fn resolved(&self, access: &Access, server: &Server) -> Result<Vec<Server>, StoreError> {
        if server.address.is_some() || server.is_socket() {
            return Ok(vec![server.clone()]);
        }
        let what = format!("resolving the name {}", server.host);
        let resolving = async {
            let found = tokio::net::lookup_host((server.host.as_str(), server.port)).await;
            found.map_err(|error| StoreError::Transient(format!("{what}: {error}")))
        };
        let found = within(self.connect_timeout(access), &what, resolving).await?;
        Ok(found.map(|address| Server { address: Some(address.ip()), ..server.clone() }).collect())
    }

    /// Returns with an error whether the password was wrong.
    async fn open_at(
        &self,
        access: &Access,
        server: &Server,
        session: TargetSessionAttrs,
        name: &str,
    ) -> Result<Connection, (StoreError, bool)> {
        let mut config = access.config(server);
        config.application_name(name).target_session_attrs(session);
        config.connect_timeout(self.connect_timeout(access));
        let mut first: Option<(Attempt, Error)> = None;
        for &attempt in attempts(access.string.ssl_mode, server.is_socket()) {
            config.ssl_mode(attempt.encryption());
            let error = match config.connect(access.tls.clone()).await {
                Ok((client, connection)) => {
                    if is_impersonable(access, server) {
                        warn_once(self.source.url_key, &server.host);
                    }
                    let client = ClientWrapper::new(client, tokio::spawn(drive(connection)));
                    let connection = Connection {
                        client,
                        tls: access.tls.clone(),
                        source: Arc::clone(&self.source),
                        generation: access.generation,
                        expires: Instant::now() + jittered(self.age_max),
                        kept: 0,
                        kept_until: Instant::now(),
                        is_pooled: true,
                    };
                    return connection.settled().await.map_err(|error| (failure(CONNECTING, &error), false));
                }
                Err(error) => error,
            };
            if first.is_some() || !is_for_other_attempt(&error, access.is_verified) {
                return Err(self.refused(&error, first.as_ref()));
            }
            first = Some((attempt, error));
        }
        let (_, error) = first.expect("there is at least one attempt");
        Err(self.refused(&error, None))
    }

    fn refused(&self, error: &Error, first: Option<&(Attempt, Error)>) -> (StoreError, bool) {
        let is_password = error.code().is_some_and(|code| code.code() == "28P01") || is_password_missing(error);
        let mut text = match is_password_missing(error) {
            true => {
                format!("{CONNECTING}: the server asks for a password, and {} has none", self.source.url_key.path())
            }
            false => format!("{CONNECTING}: {}", describe(error)),
        };
        if is_password || is_certificate_error(error) {
            text.push_str(&match &self.source.file {
                Some(file) => format!("; {} and its files are read again at the next attempt", file.display()),
                None if is_password => format!(
                    "; {} is read only at the start: correct it and restart, or put it into a file that {}_FILE names, \
                     which is read again for each connection",
                    self.source.url_key.path(),
                    format!("logweir__{}", self.source.url_key.path().replace('.', "__")).to_uppercase()
                ),
                None => "; the files are read again at the next attempt".to_owned(),
            });
        }
        if let Some((attempt, error)) = first {
            let before = if *attempt == Attempt::Plain { "without" } else { "with" };
            text.push_str(&format!("; before, {before} TLS: {}", describe(error)));
        }
        let is_systemic = is_password || class(error) != Class::Transient;
        let error = if is_systemic { StoreError::Systemic(text) } else { StoreError::Transient(text) };
        (error, is_password)
    }

    /// Fails unless the pooler of `connection` assigns server connections per session. That it does is believed for a
    /// while, and as long as it cannot be checked: a session pool that is full has no connection for the second client.
    async fn check_pooler(&self, access: &Access, connection: &Connection) -> Result<(), StoreError> {
        let generation = access.generation;
        let before = self.pooler.believed(generation);
        let _checking = match before {
            Some(until) if Instant::now() < until => return Ok(()),
            // The others go on meanwhile.
            Some(_) => match self.pooler.checking.try_lock() {
                Ok(checking) => checking,
                Err(_) => return Ok(()),
            },
            None => {
                let checking = self.pooler.checking.lock().await;
                if self.pooler.believed(generation).is_some() {
                    return Ok(());
                }
                checking
            }
        };
        let time = believed_for(self.pooling(access, connection).await, before.is_some())?;
        self.pooler.believe(time.map(|time| (generation, Instant::now() + time)));
        time.map(drop).ok_or_else(|| {
            StoreError::Systemic(format!(
                "{} leads to a pooler that assigns server connections per transaction or statement; storing needs one for \
                 the whole session, since statements are prepared and holders of a lane are ended by name. Set \
                 pool_mode=session for this database in PgBouncer, or connect to the server directly; only \
                 database.read_url can use such a pooler",
                self.source.url_key.path()
            ))
        })
    }

    async fn pooling(&self, access: &Access, first: &Connection) -> Result<Pooling, StoreError> {
        const CHECKING: &str = "checking the pooler";
        let second = self.open(access, "logweir/pooler").await?;
        let checking =
            async { pooler::pooling(&first.client, &second.client).await.map_err(|error| failure(CHECKING, &error)) };
        within(self.connect_timeout, CHECKING, checking).await
    }
}

impl PoolerChecks {
    /// When it is to be checked again whether the pooler of `generation` assigns connections per session, if it did.
    fn believed(&self, generation: u64) -> Option<Instant> {
        let believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        believed.filter(|(of, _)| *of == generation).map(|(_, until)| until)
    }

    fn believe(&self, believed: Option<(u64, Instant)>) {
        *self.believed.lock().unwrap_or_else(PoisonError::into_inner) = believed;
    }
}

impl Connection {
    /// Whether a replacement should be opened now: it is old, or another connection was opened with a password,
    /// certificates or a URL that have changed since.
    pub(super) fn is_due(&self) -> bool {
        let now = Instant::now();
        now >= self.kept_until && (now >= self.expires || self.generation < self.source.generation())
    }

    /// Keeps it in use for a while, since no replacement could be opened.
    pub(super) fn keep(&mut self, error: &StoreError) {
        let time = kept_for(self.kept);
        self.kept = self.kept.saturating_add(1);
        self.kept_until = Instant::now() + jittered(time);
        let (key, again_s) = (self.source.url_key.path(), time.as_secs());
        tracing::warn!(key, %error, again_s, "cannot replace a database connection by a new one; it stays in use");
    }

    /// Whether a server process belongs to it for as long as it lives, so that statements can stay prepared.
    pub(super) fn is_direct(&self) -> bool {
        !self.is_pooled
    }

    pub(super) fn canceler(&self) -> Canceler {
        Canceler { token: self.client.cancel_token(), tls: self.tls.clone() }
    }

    /// Finds out whether the server is connected to directly, and if so, makes settings of the session.
    async fn settled(mut self) -> Result<Self, Error> {
        let process = pooler::process(&self.client).await?;
        self.is_pooled = announced_process(&self.client).await != Some(process);
        if !self.is_pooled {
            join_all(SESSION_SETTINGS.map(|sql| self.client.batch_execute(sql))).await;
        }
        Ok(self)
    }
}

impl Canceler {
    pub(super) async fn cancel(self) -> Result<(), Error> {
        self.token.cancel_query(self.tls).await
    }
}

impl Attempt {
    fn encryption(self) -> Encryption {
        match self {
            Self::Plain => Encryption::Disable,
            Self::TlsIfOffered => Encryption::Prefer,
            Self::Tls => Encryption::Require,
        }
    }
}

/// How a server is connected to, one after the other. As in libpq, a Unix socket never uses TLS.
fn attempts(mode: SslMode, is_socket: bool) -> &'static [Attempt] {
    match mode {
        _ if is_socket => &[Attempt::Plain],
        SslMode::Disable => &[Attempt::Plain],
        SslMode::Allow => &[Attempt::Plain, Attempt::Tls],
        SslMode::Prefer => &[Attempt::TlsIfOffered, Attempt::Plain],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Tls],
    }
}

/// Whether `error` can be due to TLS or its absence: the server's rules do not permit this kind of connection, or no
/// session of TLS could be negotiated. A certificate that is to be verified and is wrong must not end in plain text.
fn is_for_other_attempt(error: &Error, is_verified: bool) -> bool {
    match error.as_db_error() {
        Some(db) => db.code().code() == "28000" || db.code().code() == "08P01" && db.message().contains("SSL"),
        None => rustls_error(error).is_some() && !(is_verified && is_certificate_error(error)),
    }
}

/// Whether somebody between could pose as `server`: it is not on this machine, and what it presents is not verified or can
/// be done without. `sslmode=disable` is a decision.
fn is_impersonable(access: &Access, server: &Server) -> bool {
    let is_local = server.is_socket() || server.address.is_some_and(|address| address.to_canonical().is_loopback());
    let mode = access.string.ssl_mode;
    !is_local && mode != SslMode::Disable && (mode < SslMode::Require || !access.is_verified)
}

fn warn_once(url_key: UrlKey, host: &str) {
    static WARNING: std::sync::Once = std::sync::Once::new();
    WARNING.call_once(|| {
        tracing::warn!(
            key = url_key.path(),
            host,
            "the database's certificate is not verified, so that another server could pose as it and read the password \
             and the records: set sslmode=verify-full in the URL, and database.ca_file if the server's CA is a private \
             one; sslmode=disable if the network is private"
        );
    });
}

/// The properties that are asked for, one after the other.
fn sessions(url_key: UrlKey, session: Session) -> &'static [TargetSessionAttrs] {
    match (url_key, session) {
        (UrlKey::Url, _) | (_, Session::ReadWrite) => &[TargetSessionAttrs::ReadWrite],
        (UrlKey::ReadUrl, Session::Any) => &[TargetSessionAttrs::Any],
        (UrlKey::ReadUrl, Session::ReadOnly) => &[TargetSessionAttrs::ReadOnly],
        (UrlKey::ReadUrl, Session::PreferReadOnly) => &[TargetSessionAttrs::ReadOnly, TargetSessionAttrs::Any],
    }
}

/// The servers in the order in which they are tried.
fn in_order(access: &Access) -> Vec<&Server> {
    let mut servers: Vec<(u128, &Server)> = access.string.servers.iter().map(|server| (0, server)).collect();
    if access.string.in_random_order {
        servers.iter_mut().for_each(|(key, _)| *key = Uuid::new_v4().as_u128());
        servers.sort_unstable_by_key(|(key, _)| *key);
    }
    servers.into_iter().map(|(_, server)| server).collect()
}

/// How long a pooler is believed to assign connections per session, after what was `found`; `None` if it does not.
fn believed_for(found: Result<Pooling, StoreError>, was_believed: bool) -> Result<Option<Duration>, StoreError> {
    match found {
        Ok(Pooling::Session) => Ok(Some(POOLER_BELIEVED)),
        Ok(Pooling::Transaction) => Ok(None),
        Err(StoreError::Transient(_)) if was_believed => Ok(Some(POOLER_CHECKED_AGAIN)),
        Err(error) => Err(error),
    }
}

/// How long a connection stays in use of which `failures` attempts to replace it have failed before.
fn kept_for(failures: u32) -> Duration {
    KEPT_MIN.saturating_mul(1 << failures.min(16)).min(KEPT_MAX)
}

/// Between three quarters of `age` and all of it, so that connections do not expire together.
fn jittered(age: Duration) -> Duration {
    let [share, ..] = Uuid::new_v4().into_bytes();
    age.mul_f64(0.75 + f64::from(share) / 1024.0)
}

/// Moves a connection's bytes until it ends. Notices of the server go to the log only for debugging: a trigger can raise
/// one for each record, with its text.
async fn drive<S, T>(mut connection: tokio_postgres::Connection<S, T>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut silent_until = Instant::now();
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) if Instant::now() >= silent_until => {
                silent_until = Instant::now() + NOTICE_INTERVAL;
                tracing::debug!(severity = notice.severity(), message = notice.message(), "a notice of the database");
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = describe(&error), "a database connection ended");
                return;
            }
            None => return,
        }
    }
}

/// Bounds `work` by a timeout, which is a transient error: the server or the network does not respond.
pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(no_answer(what, limit)))
}

/// The error of a step that took longer than `limit`.
pub(super) fn no_answer(what: &str, limit: Duration) -> StoreError {
    StoreError::Transient(format!("{what}: the database did not respond within {} ms", limit.as_millis()))
}

/// Classifies errors of the step `what`.
pub(super) fn failed(what: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| failure(what, &error)
}

/// Classifies an error of the server or the connection. Not for inserting rows, where a row can be the cause.
pub(super) fn failure(what: &str, error: &Error) -> StoreError {
    let text = format!("{what}: {}", describe(error));
    match class(error) {
        Class::Transient => StoreError::Transient(text),
        Class::Systemic => StoreError::Systemic(text),
    }
}

fn class(error: &Error) -> Class {
    match error.as_db_error() {
        Some(db) if is_catalog_conflict(db.code().code(), db.message()) => Class::Transient,
        Some(db) => classify(db.code().code()),
        None if is_certificate_error(error) => Class::Systemic,
        None => Class::Transient,
    }
}

/// Whether two statements have changed the same object at once, such as an index that is built on a partition that is
/// dropped. The server has no code for it, and does not translate the message.
fn is_catalog_conflict(code: &str, message: &str) -> bool {
    code == "XX000" && message.starts_with("tuple concurrently ")
}

/// Returns the server's full message and what to do about it, or the chain of causes.
pub(super) fn describe(error: &Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        for more in [db.detail(), db.hint(), advice(db.code().code())].into_iter().flatten() {
            text.push_str("; ");
            text.push_str(more);
        }
        text.push_str(hint(db.code().code(), db.message()));
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
        text.push_str(
            "; set database.ca_file (or sslrootcert in the URL) to the server's CA; sslmode=verify-ca accepts any name, \
             sslmode=disable does without TLS",
        );
    }
    text
}

/// What to do about an error whose text does not say so.
fn hint(sqlstate: &str, message: &str) -> &'static str {
    match sqlstate {
        // A prepared statement does not exist, or exists already: this program makes neither mistake.
        "26000" | "42P05" => {
            "; a pooler lies between that assigns server connections per transaction: set pool_mode=session in PgBouncer, \
             or connect to the server directly"
        }
        "08P01" if message.contains("startup parameter") => {
            "; the pooler refuses a parameter of the URL: add it to ignore_startup_parameters in PgBouncer, or set it \
             with ALTER ROLE ... SET and remove it from the URL"
        }
        _ => "",
    }
}

/// The server asks for a password, and there is none.
fn is_password_missing(error: &Error) -> bool {
    error.as_db_error().is_none() && describe(error).contains("password missing")
}

fn is_certificate_error(error: &Error) -> bool {
    matches!(rustls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

fn rustls_error(error: &Error) -> Option<&rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        // `source` of an io::Error skips the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(error) = wrapped.and_then(|error| error.downcast_ref()) {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_change_the_same_object_at_once_are_tried_again() {
        assert!(is_catalog_conflict("XX000", "tuple concurrently updated"));
        assert!(is_catalog_conflict("XX000", "tuple concurrently deleted"));
        assert!(!is_catalog_conflict("XX000", "cache lookup failed for relation 16384"));
        assert!(!is_catalog_conflict("P0001", "tuple concurrently updated"));
    }

    #[test]
    fn a_pooler_that_cannot_be_checked_again_stays_believed_and_a_new_one_does_not() {
        let silent = || Err(StoreError::Transient("timed out".to_owned()));
        assert_eq!(believed_for(silent(), true).unwrap(), Some(POOLER_CHECKED_AGAIN));
        assert!(believed_for(silent(), false).is_err());
        assert!(believed_for(Err(StoreError::Systemic("refused".to_owned())), true).is_err());
        assert_eq!(believed_for(Ok(Pooling::Transaction), true).unwrap(), None);
        assert_eq!(believed_for(Ok(Pooling::Session), false).unwrap(), Some(POOLER_BELIEVED));
    }

    #[test]
    fn a_server_on_another_machine_is_verified_only_as_the_url_says() {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let ca_file = dir.path().join("ca.pem");
        let params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        std::fs::write(&ca_file, params.self_signed(&key).unwrap().pem()).unwrap();
        let at = |address: &str| Server { host: "db".to_owned(), address: address.parse().ok(), port: 5432 };
        for (mode, has_file, expected) in [
            ("", false, true),
            ("?sslmode=disable", false, false),
            ("?sslmode=allow", false, true),
            ("?sslmode=prefer", true, true),
            ("?sslmode=require", false, true),
            ("?sslmode=require", true, false),
            ("?sslmode=verify-ca", true, false),
            ("?sslmode=verify-full", false, false),
            ("?sslmode=verify-full", true, false),
        ] {
            let ca_file = has_file.then(|| ca_file.clone());
            let source = AccessSource::new(UrlKey::Url, &format!("postgres://u@db/d{mode}"), None, ca_file).unwrap();
            let access = source.read();
            assert_eq!(is_impersonable(&access, &at("192.0.2.1")), expected, "{mode} {has_file}");
            assert_eq!(is_impersonable(&access, &at("2001:db8::1")), expected, "{mode} {has_file}");
            for local in ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"] {
                assert!(!is_impersonable(&access, &at(local)), "{mode} {local}");
            }
            assert!(!is_impersonable(&access, &Server { host: "/run/postgresql".to_owned(), ..at("") }));
        }
    }

    #[test]
    fn attempts_to_replace_a_connection_become_rarer_up_to_a_limit() {
        assert_eq!(kept_for(0), KEPT_MIN);
        assert_eq!(kept_for(1), 2 * KEPT_MIN);
        assert_eq!([kept_for(9), kept_for(u32::MAX)], [KEPT_MAX; 2]);
    }
}
