#![doc = include_str!("../README.md")]
//!
//! TLS with rustls: connections to the database and to Redis (the system's CA certificates and those of a CA file),
//! listeners (HTTP and syslog, with an optional CA file for client certificates), and connections of the gateway to the
//! processors (a private CA and an optional client certificate).
//!
//! - Certificates are always verified: verification cannot be disabled, on purpose. TLS can only be turned off
//!   in the URL.
//! - Short-lived certificates (cert-manager) are replaced under a running process: the files of listeners and gateway
//!   are reloaded (`reload`). New handshakes use the new files, existing connections continue.

mod reload;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use reload::Reloadable;

/// Size of a connection in memory, in bytes: the incoming TLS record, encrypted and in plain text, and the outgoing
/// buffer of rustls (64 KiB).
pub const CONNECTION_BYTES: usize = 96 << 10;

/// Why a TLS configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates or a private key cannot be used.
    #[error("{path}: {why}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Reason.
        why: String,
    },
    /// rustls rejected the configuration.
    #[error("invalid TLS configuration: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A client configuration that trusts the system's CA certificates and those in `ca_file` (PEM).
///
/// A system without CA certificates (a bare container) is not an error here: the connection then reports the
/// certificate that it does not trust.
///
/// # Errors
/// The CA file is missing, unreadable or contains no certificate.
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        add_roots(&mut roots, path)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// TLS files of a listener (PEM).
#[derive(Clone, Debug)]
pub struct ServerFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// CA certificates of clients. If set, clients must present a certificate issued by one of them.
    pub client_ca: Option<PathBuf>,
}

/// TLS files of a client (PEM).
#[derive(Clone, Debug)]
pub struct ClientFiles {
    /// CA certificates of servers; those of the system are not trusted.
    pub ca: PathBuf,
    /// Client certificate chain and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ServerFiles {
    /// Checks whether the files can be used.
    ///
    /// # Errors
    /// A file is missing, unreadable or contains nothing of its kind, or the key does not belong to the certificate.
    pub fn check(&self) -> Result<(), TlsError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<ServerIdentity, TlsError> {
        let Some(path) = &self.client_ca else {
            return Ok(ServerIdentity { key: key(&self.cert, &self.key)?, clients: None });
        };
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider())
            .build()
            .map_err(|error| TlsError::CaFile { path: path.clone(), why: error.to_string() })?;
        Ok(ServerIdentity { key: key(&self.cert, &self.key)?, clients: Some(clients) })
    }

    fn all(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }
}

impl ClientFiles {
    /// Checks whether the files can be used.
    ///
    /// # Errors
    /// As of [`ServerFiles::check`].
    pub fn check(&self) -> Result<(), TlsError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<ClientIdentity, TlsError> {
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&self.ca)?), provider())
            .build()
            .map_err(|error| TlsError::CaFile { path: self.ca.clone(), why: error.to_string() })?;
        let key = self.identity.as_ref().map(|(cert, file)| key(cert, file)).transpose()?;
        Ok(ClientIdentity { servers, key })
    }

    fn all(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        [&self.ca].into_iter().chain(identity).cloned().collect()
    }
}

/// A server configuration that reloads `files` when they change; `listener` is its name in logs and metrics.
///
/// # Errors
/// As of [`ServerFiles::check`].
///
/// # Panics
/// The reload thread cannot be started.
pub fn server_config(listener: &'static str, files: ServerFiles) -> Result<ServerConfig, TlsError> {
    let verifies_clients = files.client_ca.is_some();
    let identity = reload::start(listener, files.all(), move || files.read())?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match verifies_clients {
        true => builder.with_client_cert_verifier(Arc::clone(&identity) as Arc<dyn ClientCertVerifier>),
        false => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(identity);
    if verifies_clients {
        // A resumed session is not verified again: clients of a removed CA could still connect.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// A client configuration that reloads `files` when they change. Servers are connected to by address: their certificate
/// must be valid for one of `names`.
///
/// # Errors
/// As of [`ServerFiles::check`].
///
/// # Panics
/// The reload thread cannot be started.
pub fn reloading_client_config(
    client: &'static str,
    files: ClientFiles,
    names: Vec<ServerName<'static>>,
) -> Result<ClientConfig, TlsError> {
    let trusted = reload::start(client, files.all(), move || files.read())?;
    let verifier = NameVerifier { trusted: Arc::clone(&trusted), names };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(trusted);
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A client configuration that trusts no certificate, for a client that requires one but uses no TLS.
///
/// # Errors
/// Never in practice.
pub fn empty_client_config() -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// Contents of a listener's files.
#[derive(Clone, Debug)]
struct ServerIdentity {
    key: Arc<CertifiedKey>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl ResolvesServerCert for Reloadable<ServerIdentity> {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().key)
    }
}

impl Reloadable<ServerIdentity> {
    fn clients(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        self.current().clients.ok_or_else(|| rustls::Error::General("no CA certificates for clients".to_owned()))
    }
}

impl ClientCertVerifier for Reloadable<ServerIdentity> {
    /// Only a hint to the client, which cannot be borrowed from reloadable contents.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.clients()?.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients()?.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients()?.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Contents of a client's files.
#[derive(Clone, Debug)]
struct ClientIdentity {
    servers: Arc<WebPkiServerVerifier>,
    key: Option<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for Reloadable<ClientIdentity> {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current().key
    }

    fn has_certs(&self) -> bool {
        self.current().key.is_some()
    }
}

/// Verifies a server that was connected to by address against the configured names.
#[derive(Debug)]
struct NameVerifier {
    trusted: Arc<Reloadable<ClientIdentity>>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for NameVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let servers = self.trusted.current().servers;
        let mut rejection = rustls::Error::General("no server name is configured".to_owned());
        for name in &self.names {
            match servers.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => rejection = error,
            }
        }
        Err(rejection)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trusted.current().servers.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trusted.current().servers.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusted.current().servers.supported_verify_schemes()
    }
}

fn key(cert_file: &Path, key_file: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(cert_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| TlsError::CaFile { path: key_file.to_owned(), why: error.to_string() })?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, path)?;
    Ok(roots)
}

/// Explicit, so that no process-wide provider needs to be installed.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::CaFile { path: path.to_owned(), why: error.to_string() })?;
    }
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::CaFile { path: path.to_owned(), why };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong(
            "expected a PEM certificate (-----BEGIN CERTIFICATE-----), but the file has none".to_owned(),
        ));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_ca_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(client_config(Some(&path)).unwrap_err().to_string().contains("ca.pem"));
        std::fs::write(&path, "nothing").unwrap();
        assert!(client_config(Some(&path)).unwrap_err().to_string().contains("expected a PEM certificate"));
        assert!(client_config(None).is_ok());
    }
}
