//! Clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::TlsError;
use crate::pem::{add_roots, key, provider, roots};
use crate::reload::{self, Reloadable};

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

/// TLS files of a client (PEM).
#[derive(Clone, Debug)]
pub struct ClientFiles {
    /// CA certificates of servers; those of the system are not trusted.
    pub ca: PathBuf,
    /// Client certificate chain and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    /// Checks whether the files can be used.
    ///
    /// # Errors
    /// The same as [`ServerFiles::check`](crate::ServerFiles::check).
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

/// A client configuration that reloads `files` when they change. Servers are connected to by address: their certificate
/// must be valid for one of `names`.
///
/// # Errors
/// The same as [`ServerFiles::check`](crate::ServerFiles::check).
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
