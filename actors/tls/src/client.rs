//! Clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ResolvesClientCert, Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::TlsError;
use crate::pem::{add_roots, certificates, key, provider, roots};
use crate::reload::{self, Reloadable};

/// A client configuration that trusts the system's CA certificates and those in `ca_file` (PEM).
///
/// A system without CA certificates (a bare container) is not an error here: the connection then reports the
/// certificate that it does not trust.
///
/// # Errors
/// The CA file is missing, unreadable or contains no certificate.
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = system_roots();
    if let Some(path) = ca_file {
        add_roots(&mut roots, path)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Which servers a client accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trust {
    /// Any: this protects from eavesdroppers, but not from a server that pretends to be another one.
    Anyone,
    /// A server whose certificate was issued for its name by a CA that the system trusts.
    System,
    /// A server whose certificate was issued by a CA of a PEM file.
    File {
        /// The file.
        file: PathBuf,
        /// Whether the certificate may be for any name.
        any_name: bool,
        /// Whether [`Trust::System`] is enough, too. Anybody can get a certificate of a public CA for a name of their own,
        /// so that such a certificate must be for the server's name whatever `any_name` says.
        or_system: bool,
    },
}

/// A client configuration that accepts the servers of `trust`, with a client certificate chain and private key (PEM) if
/// `identity` names them. The files are read once.
///
/// The server must always prove that it has the private key of its certificate, whatever version that has: SCRAM binds a
/// password to the certificate. A certificate that is itself in the file is accepted although it is a CA's: a self-signed
/// one is usually made like that.
///
/// # Errors
/// A file is missing, unreadable or contains nothing of its kind, or the key does not belong to the certificate.
pub fn trusting_client_config(trust: &Trust, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::System => builder.with_root_certificates(system_roots()),
        Trust::Anyone => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustVerifier::new(None, false, None)?))
        }
        Trust::File { file, any_name, or_system } => {
            let system = or_system.then(system_roots);
            let verifier = TrustVerifier::new(Some(file), !any_name, system)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, file)) => Ok(builder.with_client_cert_resolver(Arc::new(OneKey(key(cert, file)?)))),
    }
}

/// The CA certificates that the system trusts.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The only client certificate.
#[derive(Debug)]
struct OneKey(Arc<CertifiedKey>);

impl ResolvesClientCert for OneKey {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Verifies what a [`Trust`] with a file, or none, asks for. Signatures of the handshake are verified in any case.
#[derive(Debug)]
struct TrustVerifier {
    /// CAs, also as they are in the file; `None` accepts every certificate.
    issuers: Option<(RootCertStore, Vec<CertificateDer<'static>>)>,
    checks_name: bool,
    /// Further CAs, of which a certificate must be for the server's name.
    system: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl TrustVerifier {
    fn new(file: Option<&Path>, checks_name: bool, system: Option<RootCertStore>) -> Result<Self, TlsError> {
        let issuers = file.map(|file| Ok::<_, TlsError>((roots(file)?, certificates(file)?))).transpose()?;
        let system = system.filter(|roots| !roots.is_empty());
        // Fails only without a CA.
        let system = system
            .and_then(|roots| WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok());
        Ok(Self { issuers, checks_name, system, provider: provider() })
    }

    /// Whether a CA of the file has issued the certificate, for `name` if that counts.
    fn verify_by_file(
        &self,
        (roots, trusted): &(RootCertStore, Vec<CertificateDer<'static>>),
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms) {
            // A CA's certificate as the server's. Its validity was checked before.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if trusted.contains(end_entity) => {}
            verified => verified?,
        }
        if self.checks_name {
            verify_server_name(&certificate, name)?;
        }
        Ok(())
    }
}

impl ServerCertVerifier for TrustVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(issuers) = &self.issuers else { return Ok(ServerCertVerified::assertion()) };
        let Err(by_file) = self.verify_by_file(issuers, end_entity, intermediates, name, now) else {
            return Ok(ServerCertVerified::assertion());
        };
        let Some(system) = &self.system else { return Err(by_file) };
        match system.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // The file's CAs know more about it.
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Err(by_file),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, &readable(cert), signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, &readable(cert), signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate as the library can read it, to verify a signature by its key. One of version 1, as programs make for
/// themselves (Citus does), gets the number of version 3; its own signature, which nobody looks at here, no longer fits.
fn readable<'c>(cert: &'c CertificateDer<'c>) -> CertificateDer<'c> {
    with_version(cert).map_or_else(|| CertificateDer::from_slice(cert), CertificateDer::from)
}

/// Adds a version field to a version 1 certificate, which has none. Returns `None` if it has one or is not a certificate.
fn with_version(der: &[u8]) -> Option<Vec<u8>> {
    const SEQUENCE: u8 = 0x30;
    const EXPLICIT_VERSION: u8 = 0xa0;
    const VERSION_3: [u8; 5] = [EXPLICIT_VERSION, 3, 2, 1, 2];
    let signed = element(der, SEQUENCE)?.0;
    let (certificate, signature) = element(signed, SEQUENCE)?;
    if element(certificate, EXPLICIT_VERSION).is_some() {
        return None;
    }
    let sequence = |first: &[u8], second: &[u8]| {
        let [high, low] = u16::try_from(first.len() + second.len()).ok()?.to_be_bytes();
        let header = match (high, low) {
            (0, ..0x80) => &[SEQUENCE, low][..],
            (0, _) => &[SEQUENCE, 0x81, low],
            _ => &[SEQUENCE, 0x82, high, low],
        };
        Some([header, first, second].concat())
    };
    sequence(&sequence(&VERSION_3, certificate)?, signature)
}

/// The contents of the DER element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(length).checked_sub(0x80) {
        None => (usize::from(length), rest),
        Some(bytes @ 1..=2) => {
            let (length, rest) = rest.split_at_checked(bytes)?;
            (length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
        }
        Some(_) => return None,
    };
    (first == tag).then_some(rest.split_at_checked(length)?)
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

    /// Makes a CA's certificate for `name` that is valid until `year`.
    fn authority(name: &str, year: i32) -> (rcgen::CertificateParams, rcgen::KeyPair) {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        (params, rcgen::KeyPair::generate().unwrap())
    }

    #[test]
    fn each_trust_accepts_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, pem: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let (params, key) = authority("db.example", 2500);
        let (expired_params, expired_key) = authority("db.example", 2001);
        let (other_params, other_key) = authority("db.example", 2500);
        let own = params.self_signed(&key).unwrap();
        let expired = expired_params.self_signed(&expired_key).unwrap();
        let files = [
            file("ca", own.pem()),
            file("expired", expired.pem()),
            file("other", other_params.self_signed(&other_key).unwrap().pem()),
        ];
        let [ca_file, expired_file, other_file] = &files;
        let server_key = rcgen::KeyPair::generate().unwrap();
        let server = rcgen::CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
        let issued = server.signed_by(&server_key, &rcgen::Issuer::new(params, key)).unwrap();

        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_764_000_000));
        let accepts = |file: Option<&Path>, checks_name, certificate: &rcgen::Certificate, name: &'static str| {
            let verifier = TrustVerifier::new(file, checks_name, None).unwrap();
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(certificate.der(), &[], &name, &[], now).is_ok()
        };
        // CA file, whether the name counts, certificate, name of the server.
        for (file, checks_name, certificate, name, expected) in [
            (None, false, &issued, "db.example", true),
            (None, false, &expired, "elsewhere", true),
            (Some(ca_file), false, &issued, "elsewhere", true),
            (Some(ca_file), true, &issued, "db.example", true),
            (Some(ca_file), true, &issued, "elsewhere", false),
            (Some(other_file), false, &issued, "db.example", false),
            // A self-signed certificate that is a CA's, as `openssl req -x509` makes it.
            (Some(ca_file), false, &own, "elsewhere", true),
            (Some(ca_file), true, &own, "db.example", true),
            (Some(ca_file), true, &own, "elsewhere", false),
            (Some(other_file), false, &own, "db.example", false),
            (Some(expired_file), false, &expired, "db.example", false),
        ] {
            let accepted = accepts(file.map(PathBuf::as_path), checks_name, certificate, name);
            assert_eq!(accepted, expected, "{file:?} {checks_name} {name}");
        }
        // With the system's CAs, of which a certificate must be for the name. One of them has issued `issued`.
        for (file, checks_name, certificate, name, expected) in [
            (other_file, true, &issued, "db.example", true),
            (other_file, false, &issued, "db.example", true),
            (other_file, false, &issued, "elsewhere", false),
            (other_file, true, &issued, "elsewhere", false),
            (ca_file, false, &issued, "elsewhere", true),
            (other_file, false, &expired, "db.example", false),
        ] {
            let verifier = TrustVerifier::new(Some(file), checks_name, Some(roots(ca_file).unwrap())).unwrap();
            let server = ServerName::try_from(name).unwrap();
            let accepted = verifier.verify_server_cert(certificate.der(), &[], &server, &[], now).is_ok();
            assert_eq!(accepted, expected, "{file:?} and the system {checks_name} {name}");
        }
        // A system without any.
        let bare = TrustVerifier::new(Some(other_file), true, Some(RootCertStore::empty())).unwrap();
        let server = ServerName::try_from("db.example").unwrap();
        assert!(bare.verify_server_cert(issued.der(), &[], &server, &[], now).is_err());
    }

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
