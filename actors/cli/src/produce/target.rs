//! Where and how each body is sent.

use std::time::Duration;

use clap::ValueEnum;
use uuid::Uuid;

use crate::remote::Remote;

/// Compression of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
    Deflate,
    Snappy,
}

impl Compression {
    /// Value of `Content-Encoding`.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
            Self::Deflate => Some("deflate"),
            Self::Snappy => Some("snappy"),
        }
    }
}

/// The request that each body is sent with; the same for all connections.
pub(super) struct Target {
    pub(super) remote: Remote,
    /// With the parameters.
    pub(super) url: String,
    pub(super) content_type: &'static str,
    pub(super) compression: Compression,
    pub(super) retry_for: Duration,
    /// Distinguishes the bodies of this run from those of any other.
    pub(super) run: Uuid,
}
