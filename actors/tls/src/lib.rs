#![doc = include_str!("../README.md")]
//!
//! # Code map
//!
//! Each module uses only those above it in this list.
//!
//! ```text
//! error    why a configuration cannot be used
//! pem      reads certificates and keys
//! reload   reads files again when they change
//! server   listeners, with optional client certificates
//! client   clients that trust the system's CAs, a private one with reloaded files, or as a URL says
//! ```

#![forbid(unsafe_code)]

mod error;
mod pem;
mod reload;
mod server;
mod client;

pub use self::client::{
    ClientFiles, Trust, client_config, empty_client_config, reloading_client_config, trusting_client_config,
};
pub use self::error::TlsError;
pub use self::server::{CONNECTION_BYTES, ServerFiles, server_config};
/// The rustls whose types are in this API, for programs without a dependency on the same version.
pub use rustls;
