//! Opens the configured cache.

use std::path::Path;
use std::sync::Arc;

use super::hot_cache::{CacheError, HotCache};
use super::memory::MemoryCache;
#[cfg(feature = "redis")]
use super::redis::RedisCache;
use crate::config;

/// Opens the cache that `settings` selects. `ca_file` holds PEM certificates that `rediss://` trusts in addition to the
/// system's. An unavailable Redis is not an error: the connection is retried in the background.
///
/// Must be called on the runtime that lives as long as the process: the connection task is spawned on it.
///
/// # Errors
/// The URL or the certificates are invalid.
pub async fn open(settings: &config::Cache, ca_file: Option<&Path>) -> Result<Arc<dyn HotCache>, CacheError> {
    Ok(match &settings.url {
        config::CacheUrl::Memory => Arc::new(MemoryCache::new(settings)),
        #[cfg(feature = "redis")]
        config::CacheUrl::Redis(url) => Arc::new(RedisCache::connect(url, settings, ca_file).await?),
        #[cfg(not(feature = "redis"))]
        config::CacheUrl::Redis(_) => {
            let _ = ca_file;
            let detail = "cannot use Redis: this program was built without the feature `redis`".to_owned();
            return Err(CacheError { reason: "unsupported", detail });
        }
    })
}
