//! What a new connection uses: the connection string, its certificates and its password file, read again each time.
//!
//! - A password or certificate is rotated by rewriting its file. Nothing watches the files: a connection lives for a
//!   limited time, so each change is seen within that time, or when the server ends the old connections.
//! - The first connection that is opened with a change begins a new *generation*; connections of earlier ones are to be
//!   replaced. Otherwise some lanes would stay on the old server while others store on the new one. A change with which
//!   no connection can be opened (a password that the server does not know yet) begins none.
//! - Files that cannot be used (half written, removed) leave what was read before in use.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logweir_tls::{Trust, trusting_client_config};
use tokio_postgres::Config;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connection_string::{ConnectionString, RootCert, Server, Session, SslMode, password_in};

/// Which key of the configuration a connection string belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UrlKey {
    /// `database.url`: the server must allow writes.
    Url,
    /// `database.read_url`
    ReadUrl,
}

impl UrlKey {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Url => "database.url",
            Self::ReadUrl => "database.read_url",
        }
    }
}

/// The contents of everything that a connection needs.
pub(super) struct Access {
    pub(super) string: ConnectionString,
    pub(super) tls: MakeRustlsConnect,
    /// Whether certificates are verified.
    pub(super) is_verified: bool,
    pub(super) generation: u64,
    passfile: Option<String>,
}

impl Access {
    /// Returns the client's configuration for one server.
    pub(super) fn config(&self, server: &Server) -> Config {
        let mut config = self.string.config.clone();
        config.host(&server.host).port(server.port);
        if let Some(address) = server.address {
            config.hostaddr(address);
        }
        if let (None, Some(passfile), Some(user)) = (config.get_password(), &self.passfile, config.get_user()) {
            let dbname = config.get_dbname().unwrap_or(user);
            if let Some(password) = password_in(passfile, server, dbname, user) {
                config.password(password);
            }
        }
        config
    }
}

/// Where an [`Access`] comes from.
pub(super) struct AccessSource {
    pub(super) url_key: UrlKey,
    /// The connection string as given, and the file that it was read from.
    text: String,
    pub(super) file: Option<PathBuf>,
    /// `database.ca_file`
    ca_file: Option<PathBuf>,
    latest: Mutex<Latest>,
}

struct Latest {
    access: Arc<Access>,
    /// The latest generation of which a connection was opened.
    begun: u64,
    contents: u64,
    /// Why the files cannot be used now.
    problem: Option<String>,
}

impl AccessSource {
    /// # Errors
    /// What is wrong with the connection string or its files.
    pub(super) fn new(
        url_key: UrlKey,
        text: &str,
        file: Option<PathBuf>,
        ca_file: Option<PathBuf>,
    ) -> Result<Self, String> {
        let string = parse(url_key, text)?;
        let contents = contents(text, &string, ca_file.as_deref());
        let access = Arc::new(access(string, ca_file.as_deref(), 1)?);
        let latest = Mutex::new(Latest { access, begun: 0, contents, problem: None });
        Ok(Self { url_key, text: text.to_owned(), file, ca_file, latest })
    }

    /// Reads the files again.
    pub(super) fn read(&self) -> Arc<Access> {
        let fresh = self.text().and_then(|text| {
            let string = parse(self.url_key, &text)?;
            Ok((contents(&text, &string, self.ca_file.as_deref()), string))
        });
        let mut latest = self.latest();
        let fresh = match fresh {
            Ok((contents, _)) if contents == latest.contents => Ok(None),
            Ok((contents, string)) => {
                let generation = latest.access.generation + 1;
                access(string, self.ca_file.as_deref(), generation).map(|access| Some((Arc::new(access), contents)))
            }
            Err(problem) => Err(problem),
        };
        match fresh {
            Ok(None) => latest.problem = None,
            Ok(Some((access, contents))) => {
                tracing::info!(key = self.url_key.path(), "the database's URL, password or certificates have changed");
                *latest = Latest { access, contents, problem: None, begun: latest.begun };
            }
            Err(problem) if latest.problem.as_ref() == Some(&problem) => {}
            Err(problem) => {
                let key = self.url_key.path();
                tracing::warn!(key, problem, "cannot use the changed files; what was read before stays in use");
                latest.problem = Some(problem);
            }
        }
        Arc::clone(&latest.access)
    }

    /// Notes that a connection of `generation` was opened.
    pub(super) fn begin(&self, generation: u64) {
        let mut latest = self.latest();
        latest.begun = latest.begun.max(generation);
    }

    /// The latest generation of which a connection was opened.
    pub(super) fn generation(&self) -> u64 {
        self.latest().begun
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> Result<String, String> {
        match &self.file {
            None => Ok(self.text.clone()),
            Some(file) => std::fs::read_to_string(file)
                .map(|text| text.trim().to_owned())
                .map_err(|error| format!("cannot read {}: {error}", file.display())),
        }
    }
}

/// Parses `text` and checks that its key allows it.
///
/// # Errors
/// What is wrong, and what is accepted.
pub(super) fn parse(url_key: UrlKey, text: &str) -> Result<ConnectionString, String> {
    let string = ConnectionString::parse(text)?;
    if url_key == UrlKey::Url && matches!(string.session, Session::ReadOnly | Session::PreferReadOnly) {
        return Err(
            "target_session_attrs: expected read-write, primary or any, since records are stored here; a server \
                    for queries belongs in database.read_url"
                .to_owned(),
        );
    }
    Ok(string)
}

/// Whether `string` needs `database.ca_file`, for lack of an own `sslrootcert`.
pub(super) fn requires_ca_file(string: &ConnectionString) -> bool {
    string.ssl_mode == SslMode::VerifyCa && string.root_cert.is_none()
}

/// Which servers are accepted. As in libpq, modes that need not verify do so if there is a CA file. `sslrootcert` stands
/// alone; `database.ca_file` adds to the system's CAs, since it can be there for Redis.
fn trust(string: &ConnectionString, ca_file: Option<&Path>) -> Result<Trust, String> {
    let file = match &string.root_cert {
        Some(RootCert::File(file)) => Some((file.as_path(), false)),
        Some(RootCert::System) => None,
        None => ca_file.map(|file| (file, true)),
    };
    match (string.ssl_mode, file) {
        (mode, Some((file, or_system))) => {
            Ok(Trust::File { file: file.to_owned(), any_name: mode != SslMode::VerifyFull, or_system })
        }
        (SslMode::VerifyFull, None) => Ok(Trust::System),
        (SslMode::VerifyCa, None) => Err(CA_FILE_MISSING.to_owned()),
        (_, None) => Ok(Trust::Anyone),
    }
}

pub(super) const CA_FILE_MISSING: &str = "sslmode=verify-ca requires sslrootcert or database.ca_file: with the \
     system's CAs, a certificate for any name would be accepted; use verify-full for these";

fn access(string: ConnectionString, ca_file: Option<&Path>, generation: u64) -> Result<Access, String> {
    let uses_tls = string.ssl_mode != SslMode::Disable && !string.servers.iter().all(Server::is_socket);
    let trust = if uses_tls { trust(&string, ca_file)? } else { Trust::Anyone };
    let identity = string.identity.as_ref().filter(|_| uses_tls);
    let mut tls = trusting_client_config(&trust, identity.map(|(cert, key)| (cert.as_path(), key.as_path()))).map_err(
        |error| match ca_file.is_some() && string.root_cert.is_none() {
            true => format!("database.ca_file or another TLS file: {error}"),
            false => error.to_string(),
        },
    )?;
    if string.config.get_ssl_negotiation() == SslNegotiation::Direct {
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    let passfile = match &string.passfile {
        None => None,
        Some(file) => {
            Some(std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?)
        }
    };
    let is_verified = trust != Trust::Anyone;
    Ok(Access { tls: MakeRustlsConnect::new(tls), is_verified, generation, passfile, string })
}

/// Hash of the connection string and of its files' contents; a missing file counts as contents of its own.
fn contents(text: &str, string: &ConnectionString, ca_file: Option<&Path>) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let root = match &string.root_cert {
        Some(RootCert::File(file)) => Some(file.as_path()),
        Some(RootCert::System) => None,
        None => ca_file,
    };
    let identity = string.identity.iter().flat_map(|(cert, key)| [cert.as_path(), key.as_path()]);
    for file in root.into_iter().chain(identity).chain(string.passfile.as_deref()) {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}
