//! TLS towards the database and Redis: rustls with the system's roots, and a CA file beside them. Of the listeners (HTTP,
//! syslog): with a certificate of their own, and with the clients' where a CA file is given. And from the gateway to the processors:
//! with a private CA, and a certificate of its own.
//!
//! - Certificates are always verified. There is no switch against that: who does not want it turns TLS off by name.
//! - Where certificates are short-lived (cert-manager), files change under a running process: those of listeners and gateway are
//!   read again (`reread`), new handshakes use them, connections go on.

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

/// What a connection holds in both directions: the record that comes in, as it was sent and in the clear, and what rustls keeps to
/// be sent (64 KiB).
pub const CONNECTION_BYTES: usize = 96 << 10;

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates or a key cannot be read.
    #[error("{path}: {why}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// rustls refused the configuration.
    #[error("TLS cannot be configured: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A client configuration that trusts the system's roots and those in `ca_file` (PEM).
///
/// A system without roots (a bare container) is no error by itself: the connection then says which certificate it does not trust.
///
/// # Errors
/// The CA file is missing, unreadable or holds no certificate.
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

/// What a listener shows, and whose certificates it asks for. PEM.
#[derive(Clone, Debug)]
pub struct ServerFiles {
    /// The certificate and what leads to its root.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Where this is given, whoever connects must have a certificate of these.
    pub client_ca: Option<PathBuf>,
}

/// Whom a client trusts, and what it shows. PEM.
#[derive(Clone, Debug)]
pub struct ClientFiles {
    /// Servers must have a certificate of these; the system's roots do not count.
    pub ca: PathBuf,
    /// A certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ServerFiles {
    /// Whether it can be used.
    ///
    /// # Errors
    /// A file is missing, unreadable or holds nothing of the kind, or the key is another certificate's.
    pub fn check(&self) -> Result<(), TlsError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<Shown, TlsError> {
        let Some(path) = &self.client_ca else { return Ok(Shown { key: key(&self.cert, &self.key)?, clients: None }) };
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider())
            .build()
            .map_err(|error| TlsError::CaFile { path: path.clone(), why: error.to_string() })?;
        Ok(Shown { key: key(&self.cert, &self.key)?, clients: Some(clients) })
    }

    fn all(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }
}

impl ClientFiles {
    /// Whether it can be used.
    ///
    /// # Errors
    /// As of [`ServerFiles::check`].
    pub fn check(&self) -> Result<(), TlsError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<Trusted, TlsError> {
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&self.ca)?), provider())
            .build()
            .map_err(|error| TlsError::CaFile { path: self.ca.clone(), why: error.to_string() })?;
        let key = self.identity.as_ref().map(|(cert, file)| key(cert, file)).transpose()?;
        Ok(Trusted { servers, key })
    }

    fn all(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        [&self.ca].into_iter().chain(identity).cloned().collect()
    }
}

/// A server configuration that reads `files` again when they change; `listener` is what it is called where that is told.
///
/// # Errors
/// As of [`ServerFiles::check`].
///
/// # Panics
/// No thread can be started.
pub fn server_config(listener: &'static str, files: ServerFiles) -> Result<ServerConfig, TlsError> {
    let asks = files.client_ca.is_some();
    let shown = reload::keep(listener, files.all(), move || files.read())?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match asks {
        true => builder.with_client_cert_verifier(Arc::clone(&shown) as Arc<dyn ClientCertVerifier>),
        false => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(shown);
    if asks {
        // A session that is taken up again is not verified again: a CA that is taken away would go on letting in.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// A client configuration that reads `files` again when they change. Servers are asked by address: a certificate must be for
/// one of `names`.
///
/// # Errors
/// As of [`ServerFiles::check`].
///
/// # Panics
/// No thread can be started.
pub fn asking_config(
    client: &'static str,
    files: ClientFiles,
    names: Vec<ServerName<'static>>,
) -> Result<ClientConfig, TlsError> {
    let trusted = reload::keep(client, files.all(), move || files.read())?;
    let verifier = Named { trusted: Arc::clone(&trusted), names };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(trusted);
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For a client that must be given a configuration, and speaks no TLS.
///
/// # Errors
/// None that can come about.
pub fn trusting_nobody() -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// What a listener has of its files.
#[derive(Clone, Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl ResolvesServerCert for Reloadable<Shown> {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now().key)
    }
}

impl Reloadable<Shown> {
    fn clients(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        self.now().clients.ok_or_else(|| rustls::Error::General("no CA for clients".to_owned()))
    }
}

impl ClientCertVerifier for Reloadable<Shown> {
    /// Only a hint, and one that could not be borrowed from what changes.
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

/// What a client has of its files.
#[derive(Clone, Debug)]
struct Trusted {
    servers: Arc<WebPkiServerVerifier>,
    key: Option<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for Reloadable<Trusted> {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.now().key
    }

    fn has_certs(&self) -> bool {
        self.now().key.is_some()
    }
}

/// Verifies a server that is connected to by its address, by the names that stand for it.
#[derive(Debug)]
struct Named {
    trusted: Arc<Reloadable<Trusted>>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let servers = self.trusted.now().servers;
        let mut refused = rustls::Error::General("there is no name that a certificate could be for".to_owned());
        for name in &self.names {
            match servers.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trusted.now().servers.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trusted.now().servers.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusted.now().servers.supported_verify_schemes()
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

/// Named here so that nobody has to install one for the whole process.
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
        return Err(wrong("it holds no certificate (PEM, `-----BEGIN CERTIFICATE-----`)".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_that_helps_nobody_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(client_config(Some(&path)).unwrap_err().to_string().contains("ca.pem"));
        std::fs::write(&path, "nothing").unwrap();
        assert!(client_config(Some(&path)).unwrap_err().to_string().contains("no certificate"));
        assert!(client_config(None).is_ok());
    }
}
