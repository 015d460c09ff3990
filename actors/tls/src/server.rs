//! Listeners.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use crate::error::TlsError;
use crate::pem::{key, provider, roots};
use crate::reload::{self, Reloadable};

/// Size of a connection in memory, in bytes: the incoming TLS record, encrypted and in plain text, and the outgoing
/// buffer of rustls (64 KiB).
pub const CONNECTION_BYTES: usize = 96 << 10;

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
