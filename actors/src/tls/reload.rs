//! Files that are read again when they change.
//!
//! - Looked at by content, each second: a Secret's volume changes by a symbolic link two levels up, of which neither the files' times nor
//!   a watch on them says anything; and a few kilobytes are read in microseconds.
//! - What cannot be used (half written, a key that is another certificate's) leaves what was there in place, and is told once.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::TlsError;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was read last and could be used.
#[derive(Debug)]
pub(super) struct Reloadable<T>(RwLock<T>);

impl<T: Clone> Reloadable<T> {
    pub(super) fn now(&self) -> T {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads, and reads again when one of `files` has changed, for as long as somebody holds the result.
pub(super) fn keep<T: Clone + Send + Sync + 'static>(
    what: &'static str,
    files: Vec<PathBuf>,
    read: impl Fn() -> Result<T, TlsError> + Send + 'static,
) -> Result<Arc<Reloadable<T>>, TlsError> {
    let mut seen = contents(&files); // before it is read, so that nothing in between is missed
    let kept = Arc::new(Reloadable(RwLock::new(read()?)));
    let held = Arc::downgrade(&kept);
    let look = move || {
        loop {
            std::thread::sleep(LOOK_EVERY);
            let Some(kept) = held.upgrade() else { return };
            let now = contents(&files);
            if now == seen {
                continue;
            }
            seen = now;
            let outcome = match read() {
                Ok(fresh) => {
                    *kept.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                    tracing::info!(what, "the certificates have changed: new connections use them");
                    "taken"
                }
                Err(error) => {
                    tracing::error!(what, %error, "the certificates have changed and cannot be used: the ones before stay");
                    "refused"
                }
            };
            metrics::counter!("logweir_tls_certificate_reloads_total", "what" => what, "outcome" => outcome)
                .increment(1);
        }
    };
    std::thread::Builder::new().name(format!("tls-{what}")).spawn(look).expect("a thread can be started");
    Ok(kept)
}

/// What tells one content of the files from another; a file that is missing has one, too.
fn contents(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}
