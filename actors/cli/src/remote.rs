//! The server that `query`, `tail`, `top` and `produce` talk to: its address, a token, TLS.
//!
//! Address and token are looked up in the same order by every command: options, environment, configuration. Certificates are
//! always verified: verification cannot be disabled, on purpose. `--ca-file` trusts a private CA instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use ureq::config::ConfigBuilder;
use ureq::http::uri::Authority;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;

use crate::args::ConfigArgs;
use crate::exit;
use crate::failure::Failure;
use logweir::config::Token;
use logweir_query::QUERY_BYTES_MAX;

/// An error response is read up to this many bytes.
const ERROR_BYTES_MAX: u64 = 64 << 10;
/// A token file is read up to this many bytes.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// An address with its parameters, each byte of which may be encoded as three: the client panics above 65,534 bytes.
const ADDRESS_BYTES_MAX: usize = 60_000;

/// Options of every command that talks to a server.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct RemoteArgs {
    /// Base address of the server's data port, such as http://logs.example.com:8080
    ///
    /// Default: $LOGWEIR_URL, else http.listen of the configuration (http://127.0.0.1:8080). The proxy variables
    /// ($HTTPS_PROXY, $HTTP_PROXY, $ALL_PROXY, $NO_PROXY) apply, except to a server on this machine.
    #[arg(long, short, value_name = "URL", help_heading = "Server")]
    url: Option<String>,
    /// Bearer token; prefer --token-file or $LOGWEIR_TOKEN, which the process list does not show
    ///
    /// Default: the content of --token-file, else $LOGWEIR_TOKEN, else the content of the file $LOGWEIR_TOKEN_FILE. If the
    /// address comes from the configuration, so does the token (auth.query_tokens, or auth.ingest_tokens to send records).
    #[arg(long, value_name = "TOKEN", help_heading = "Server")]
    token: Option<String>,
    /// Read the bearer token from FILE
    #[arg(long, value_name = "FILE", conflicts_with = "token", help_heading = "Server")]
    token_file: Option<PathBuf>,
    /// Trust the CA certificates in FILE (PEM) in addition to the system's
    ///
    /// The server's certificate is always verified; verification cannot be disabled.
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    ca_file: Option<PathBuf>,
    /// Client certificate (PEM), for a server that requires one
    #[arg(long, value_name = "FILE", requires = "key_file", help_heading = "Server")]
    cert_file: Option<PathBuf>,
    /// Private key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert_file", help_heading = "Server")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// What a token must permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading records and status.
    Query,
    /// Sending records.
    Ingest,
}

/// A server and how to connect to it.
pub(super) struct Remote {
    agent: ureq::Agent,
    url: String,
    token: Option<String>,
    tls: TlsConfig,
    is_local: bool,
}

/// Why a request failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RemoteError {
    /// A retry may succeed.
    Unavailable(String),
    /// A retry cannot succeed; with the exit code.
    Rejected(u8, String),
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Unavailable(why) => Self::new(exit::UNAVAILABLE, why),
            RemoteError::Rejected(code, why) => Self::new(code, why),
        }
    }
}

/// An error response of logweir.
#[derive(Deserialize)]
struct ErrorBody {
    error: String,
    detail: String,
    column: Option<usize>,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl RemoteArgs {
    /// Looks up address and token, and reads the files.
    pub(super) fn remote(&self, access: Access) -> Result<Remote, Failure> {
        let given = match (&self.url, variable("LOGWEIR_URL")) {
            (Some(url), _) => Some(base(url).map_err(|why| invalid("--url", url, why))?),
            (None, Some(url)) => Some(base(&url).map_err(|why| invalid("$LOGWEIR_URL", &url, why))?),
            (None, None) => None,
        };
        let token = self.given_token()?;
        let (url, token, is_local) = match given {
            Some(url) => {
                let is_local = is_loopback(&url);
                (url, token, is_local)
            }
            None => {
                let (url, configured) = self.configured(access)?;
                (url, token.or(configured), true)
            }
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            let message = "invalid token: expected printable ASCII characters without spaces";
            return Err(Failure::new(exit::USAGE, message));
        }
        let tls = self.tls(url.starts_with("https:"))?;
        let remote = Remote { agent: ureq::Agent::new_with_defaults(), url, token, tls, is_local };
        let config = remote.agent_config().timeout_recv_response(Some(Duration::from_secs(120)));
        Ok(Remote { agent: config.build().into(), ..remote })
    }

    fn given_token(&self) -> Result<Option<String>, Failure> {
        let file = |name: &str, path: &Path| {
            let token = std::fs::File::open(path).and_then(|file| {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut std::io::Read::take(file, TOKEN_BYTES_MAX), &mut text)?;
                Ok(text.trim().to_owned())
            });
            match token {
                Ok(token) if token.is_empty() => {
                    Err(Failure::new(exit::NO_INPUT, format!("{name} {}: the file is empty", path.display())))
                }
                Ok(token) => Ok(Some(token)),
                Err(error) => Err(Failure::new(exit::NO_INPUT, format!("{name} {}: {error}", path.display()))),
            }
        };
        if let Some(token) = &self.token {
            return Ok(Some(token.clone()).filter(|token| !token.is_empty()));
        }
        if let Some(path) = &self.token_file {
            return file("--token-file", path);
        }
        match (variable("LOGWEIR_TOKEN"), variable("LOGWEIR_TOKEN_FILE")) {
            (Some(token), _) => Ok(Some(token)),
            (None, Some(path)) => file("$LOGWEIR_TOKEN_FILE", Path::new(&path)),
            (None, None) => Ok(None),
        }
    }

    /// Address and token of the configured server, which is on this machine: a `logweir.toml` in the current directory
    /// must not be able to send a token elsewhere.
    fn configured(&self, access: Access) -> Result<(String, Option<String>), Failure> {
        let loaded = logweir::config::load(&self.config.inputs([])).map_err(|error| {
            let hint = "to ignore the configuration, specify the server with --url or $LOGWEIR_URL";
            Failure::new(exit::CONFIG, format!("{error}\n{hint}"))
        })?;
        let config = loaded.config;
        let address = reachable(config.http.listen);
        if !is_of_this_machine(address.ip()) {
            let why = format!("{} is not an address of this machine", address.ip());
            let how = "specify the server with --url or $LOGWEIR_URL";
            return Err(Failure::new(exit::CONFIG, format!("invalid http.listen \"{address}\": {why}; {how}")));
        }
        let scheme = if config.http.tls_cert_file.is_some() { "https" } else { "http" };
        let tokens = match access {
            Access::Query => &config.auth.query_tokens,
            Access::Ingest => &config.auth.ingest_tokens,
        };
        let token = tokens.first().map(Token::secret).map(str::to_owned);
        Ok((format!("{scheme}://{address}"), token))
    }

    fn tls(&self, used: bool) -> Result<TlsConfig, Failure> {
        let mut tls = TlsConfig::builder();
        if used {
            let system = rustls_native_certs::load_native_certs().certs;
            let mut roots: Vec<_> = system.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
            if let Some(path) = &self.ca_file {
                roots.extend(certificates("--ca-file", path)?);
            }
            tls = tls.root_certs(RootCerts::Specific(Arc::new(roots)));
        }
        if let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) {
            let chain = certificates("--cert-file", cert)?;
            let key = PrivateKey::from_pem(&read("--key-file", key)?).map_err(|error| {
                Failure::new(
                    exit::NO_INPUT,
                    format!("--key-file {}: no private key in PEM form: {error}", key.display()),
                )
            })?;
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
        }
        Ok(tls.build())
    }
}

fn invalid(name: &str, value: &str, why: &str) -> Failure {
    // Before an @ there may be a password.
    let value = if value.contains('@') { String::new() } else { format!(" {value:?}") };
    Failure::new(exit::USAGE, format!("invalid {name}{value}: {why}"))
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::new(exit::NO_INPUT, format!("{option} {}: {error}", path.display())))
}

fn certificates(option: &str, path: &Path) -> Result<Vec<Certificate<'static>>, Failure> {
    let pem = read(option, path)?;
    let found: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(Result::ok)
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        let why = format!("{option} {}: no certificate in PEM form (-----BEGIN CERTIFICATE-----)", path.display());
        return Err(Failure::new(exit::NO_INPUT, why));
    }
    Ok(found)
}

/// The base address in `url`: with a scheme, without `/ingest` and without a slash at its end. `HOST:PORT` means HTTP.
fn base(url: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected the base address of a server, such as http://127.0.0.1:8080";
    const CREDENTIALS: &str = "expected no user name and password: specify a token with --token-file or $LOGWEIR_TOKEN";
    let url = url.trim();
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = url.parse().map_err(|_| EXPECTED)?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(CREDENTIALS);
    }
    if !matches!(uri.scheme_str(), Some("http" | "https"))
        || uri.host().is_none_or(str::is_empty)
        // Without a valid port, that of the scheme would be used.
        || (uri.port().is_none() && uri.authority().map(Authority::as_str) != uri.host())
        || uri.query().is_some()
        || url.contains('#')
    {
        return Err(EXPECTED);
    }
    let url = url.trim_end_matches('/');
    Ok(url.strip_suffix("/ingest").unwrap_or(url).trim_end_matches('/').to_owned())
}

/// The address on which a listener that may listen on every address is reached from this machine.
pub(super) fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

/// Whether `ip` can be bound. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether the host of `url` is the loopback interface.
fn is_loopback(url: &str) -> bool {
    let uri: Option<Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    ip.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |ip| ip.to_canonical().is_loopback())
}

impl Remote {
    /// The base address.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The bearer token.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// What all connections to the server have in common; limits are up to the caller.
    ///
    /// Redirects are not followed: the token is for this server only. A server on this machine is not connected to
    /// through a proxy, which could not reach it and would see the token.
    pub(super) fn agent_config(&self) -> ConfigBuilder<AgentScope> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .tls_config(self.tls.clone())
            .user_agent(concat!("logweir/", env!("CARGO_PKG_VERSION")));
        if self.is_local { config.proxy(None) } else { config }
    }

    /// Requests `path` with `parameters`; the body is still to be read. The column of an error refers to the parameter `query`.
    pub(super) fn get(
        &self,
        path: &str,
        parameters: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<Response<ureq::Body>, RemoteError> {
        let url = format!("{}{path}", self.url);
        let encoded = parameters.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum::<usize>();
        if url.len() + encoded > ADDRESS_BYTES_MAX {
            let why = format!("query or address too long: expected at most {QUERY_BYTES_MAX} bytes");
            return Err(RemoteError::Rejected(exit::USAGE, why));
        }
        let mut request = self.agent.get(&url);
        for (name, value) in parameters {
            request = request.query(name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                RemoteError::Rejected(exit::USAGE, format!("invalid address {url:?}: {error}"))
            }
            error => RemoteError::Unavailable(format!("cannot reach {}: {}", self.url, connection_error(&error))),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let text = response.body_mut().with_config().limit(ERROR_BYTES_MAX).read_to_string().unwrap_or_default();
        let query = parameters.iter().find(|(name, _)| *name == "query").map_or("", |(_, query)| query);
        Err(rejection(response.status().as_u16(), &text, &url, query))
    }
}

/// A connection error, with what to do about it.
pub(super) fn connection_error(error: &ureq::Error) -> String {
    let error = error.to_string();
    let error = error.strip_prefix("io: ").unwrap_or(&error);
    let how = if error.contains("UnknownIssuer") {
        "; trust a private CA with --ca-file"
    } else if error.contains("InvalidContentType") {
        "; the server does not use TLS on this port: try http://"
    } else if error.contains("Connection refused") {
        "; check that the server is running"
    } else {
        ""
    };
    format!("{error}{how}")
}

/// Whether TLS fails in a way that no retry fixes: the certificate is invalid, or the server does not use TLS on this port.
pub(super) fn tls_cannot_succeed(error: &ureq::Error) -> bool {
    let tls = match error {
        ureq::Error::Rustls(error) => Some(error),
        // The handshake takes place in the first read or write.
        ureq::Error::Io(error) => error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    let not_tls = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
    tls.is_some_and(|error| matches!(error, rustls::Error::InvalidCertificate(_)) || *error == not_tls)
}

/// What an error response to a request of `url` means.
fn rejection(status: u16, text: &str, url: &str, query: &str) -> RemoteError {
    let error = serde_json::from_str::<ErrorBody>(text).ok();
    let detail = match &error {
        Some(error) => error.detail.clone(),
        None => text.chars().take(200).collect::<String>().trim().to_owned(),
    };
    let responded = format!("{url} responded with {status}: {detail}");
    let wrong_role = error.as_ref().is_some_and(|error| error.error == "wrong_role");
    match (status, error.and_then(|error| error.column)) {
        (429 | 502..=504, _) => RemoteError::Unavailable(responded),
        (401 | 403, _) => {
            let how = "specify a token with --token-file, --token or $LOGWEIR_TOKEN";
            RemoteError::Rejected(exit::FAILED, format!("{responded}; {how}"))
        }
        (404 | 405, None) if !wrong_role => {
            let how = "expected the base address of a logweir server as --url";
            RemoteError::Rejected(exit::FAILED, format!("{responded}; {how}"))
        }
        (_, Some(column)) => {
            let mark = " ".repeat(column.saturating_sub(1));
            RemoteError::Rejected(exit::USAGE, format!("{detail}\n  {query}\n  {mark}^"))
        }
        (400, None) => RemoteError::Rejected(exit::USAGE, detail),
        _ => RemoteError::Rejected(exit::FAILED, responded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_retryable_or_final_and_shows_the_column_of_a_query() {
        let rejection = |status, text, query| rejection(status, text, "http://h/api/v1/query", query);
        let busy = r#"{"error":"too_many_queries","detail":"too many queries"}"#;
        let unavailable = "http://h/api/v1/query responded with 429: too many queries";
        assert_eq!(rejection(429, busy, ""), RemoteError::Unavailable(unavailable.to_owned()));
        let bad = r#"{"error":"bad_query","detail":"unclosed parenthesis","column":3}"#;
        let shown = "unclosed parenthesis\n  a (\n    ^";
        assert_eq!(rejection(400, bad, "a ("), RemoteError::Rejected(exit::USAGE, shown.to_owned()));
        for (status, part) in
            [(401, "--token"), (404, "http://h/api/v1/query responded with 404: <html>"), (404, "--url")]
        {
            let RemoteError::Rejected(exit::FAILED, why) = rejection(status, "<html>", "") else { panic!("{status}") };
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn a_base_address_may_lack_the_scheme_and_may_end_in_ingest() {
        for url in [
            "127.0.0.1:8080",
            "http://127.0.0.1:8080",
            " http://127.0.0.1:8080/ ",
            "http://127.0.0.1:8080/ingest",
            "127.0.0.1:8080/ingest/",
        ] {
            assert_eq!(base(url).as_deref(), Ok("http://127.0.0.1:8080"), "{url}");
        }
        assert_eq!(base("https://h/logs/").as_deref(), Ok("https://h/logs"));
        assert_eq!(base("[::1]:8080").as_deref(), Ok("http://[::1]:8080"));
        for url in
            ["ftp://x/", "", "http://", "http:// x", "http://h/?a=b", "http://h/#a", "http://h:99999", "h:x", "[::1]:"]
        {
            assert!(base(url).unwrap_err().contains("http://127.0.0.1:8080"), "{url}");
        }
        assert!(base("http://me:secret@h/").unwrap_err().contains("--token-file"));
        let Failure::Message(code, message) = invalid("--url", "http://me:secret@h/", "why") else { panic!() };
        assert_eq!((code, message.as_str()), (exit::USAGE, "invalid --url: why"));
    }

    #[test]
    fn only_a_server_on_another_machine_is_reached_through_a_proxy() {
        for (url, local) in [
            ("http://127.0.0.1:8080", true),
            ("http://127.1.2.3", true),
            ("https://[::1]:8080/logs", true),
            ("http://LOCALHOST:1", true),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("http://[::2]:1", false),
        ] {
            assert_eq!(is_loopback(url), local, "{url}");
        }
        assert!(is_of_this_machine(Ipv4Addr::LOCALHOST.into()) && is_of_this_machine(Ipv4Addr::UNSPECIFIED.into()));
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        for (listen, reached) in
            [("0.0.0.0:9600", "127.0.0.1:9600"), ("[::]:1", "[::1]:1"), ("10.0.0.7:2", "10.0.0.7:2")]
        {
            let address = |text: &str| text.parse().expect("an address");
            assert_eq!(reachable(address(listen)), address(reached));
        }
    }
}
