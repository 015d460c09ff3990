//! Certificates of the server, each of a CA of its own.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// A certificate for 127.0.0.1, with its key and its CA, as PEM.
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The certificate of its CA.
    pub ca: String,
}

impl Identity {
    /// Creates a new one, valid at whatever time the program believes it is.
    ///
    /// # Panics
    /// If no keys can be generated.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut ca = parameters(&[]);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = ca.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(ca, key);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters(&["127.0.0.1"]).signed_by(&key, &issuer).expect("a certificate").pem();
        Self { certificate, key: key.serialize_pem(), ca: pem }
    }
}

fn parameters(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).expect("valid names");
    parameters.not_before = rcgen::date_time_ymd(1970, 1, 1);
    parameters
}
