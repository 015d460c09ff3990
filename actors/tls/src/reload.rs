//! Reloads files when they change.
//!
//! - Their contents are compared every second: a Kubernetes Secret volume is updated through a symbolic link two levels
//!   up, which changes neither the files' times nor triggers a watch on them. Reading a few kilobytes takes
//!   microseconds.
//! - Unusable contents (half written, a key of another certificate) leave the previous ones in use, and are logged
//!   once.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::error::TlsError;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The latest usable contents.
#[derive(Debug)]
pub(crate) struct Reloadable<T>(RwLock<T>);

impl<T: Clone> Reloadable<T> {
    pub(crate) fn current(&self) -> T {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads now, and again whenever one of `files` has changed, until the result is dropped.
pub(crate) fn start<T: Clone + Send + Sync + 'static>(
    owner: &'static str,
    files: Vec<PathBuf>,
    read: impl Fn() -> Result<T, TlsError> + Send + 'static,
) -> Result<Arc<Reloadable<T>>, TlsError> {
    let mut previous = contents(&files); // before reading, so that no change in between is missed
    let contents_in_use = Arc::new(Reloadable(RwLock::new(read()?)));
    let weak = Arc::downgrade(&contents_in_use);
    let check = move || {
        loop {
            std::thread::sleep(CHECK_INTERVAL);
            let Some(in_use) = weak.upgrade() else { return };
            let current = contents(&files);
            if current == previous {
                continue;
            }
            previous = current;
            let outcome = match read() {
                Ok(fresh) => {
                    *in_use.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                    tracing::info!(owner, "TLS certificates reloaded; new connections use them");
                    "accepted"
                }
                Err(error) => {
                    tracing::error!(owner, %error, "cannot reload TLS certificates; the previous ones stay in use");
                    "rejected"
                }
            };
            metrics::counter!("logweir_tls_certificate_reloads_total", "owner" => owner, "outcome" => outcome)
                .increment(1);
        }
    };
    std::thread::Builder::new().name(format!("tls-{owner}")).spawn(check).expect("the thread can be started");
    Ok(contents_in_use)
}

/// Hash of the files' contents; a missing file counts as contents of its own.
fn contents(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}
