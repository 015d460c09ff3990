//! Why a TLS configuration cannot be used.

use std::path::PathBuf;

/// Why a TLS configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
