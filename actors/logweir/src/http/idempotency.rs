//! `Idempotency-Key`: a request that is sent again with the same key is stored once.
//!
//! - The key is hashed together with the token that came with it into a dedup key, which is journaled with the records:
//!   it is known again after a restart, for [`DEDUP_WINDOW`](logweir_engine::journal::DEDUP_WINDOW) (or less, if there
//!   are many keys).
//! - A repeated request gets the same response as the first one once that is on disk, and 503 with `Retry-After` until
//!   then.
//! - Each process has its own dedup index: a key is effective only for requests to the same process.

use actix_web::http::header::HeaderMap;
use logweir_engine::journal::DedupKey;
use sha2::{Digest, Sha256};

use super::answer::HttpError;

/// Longer keys are rejected.
const KEY_BYTES_MAX: usize = 255;

/// The dedup key of a request with an `Idempotency-Key`.
///
/// # Errors
/// The length of the key is invalid.
pub fn key(headers: &HeaderMap, received_us: i64) -> Result<Option<DedupKey>, HttpError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.as_bytes();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = format!("invalid Idempotency-Key: expected 1 to {KEY_BYTES_MAX} bytes");
        return Err(HttpError::new(400, "bad_idempotency_key", detail));
    }
    let sender = headers.get("authorization").map_or(&[][..], |value| value.as_bytes());
    let mut hash = Sha256::new();
    hash.update((sender.len() as u64).to_le_bytes());
    hash.update(sender);
    hash.update(key);
    let key = hash.finalize()[..16].try_into().expect("a hash has 32 bytes");
    Ok(Some(DedupKey { key, position: 0, at_us: received_us }))
}
