//! `Idempotency-Key`: a request that is sent again under the same key is stored once.
//!
//! - The key, together with the token that it came with, becomes a mark that travels with the records into the journal: it
//!   is known again after a restart, for [`WINDOW`](logweir_engine::journal::WINDOW) (of many keys only the newest ones).
//! - A repetition is answered like the first request, as soon as that is on disk; until then with 503 and `Retry-After`.
//! - Each process has its own memory: a key holds for those who send to the same one.

use actix_web::http::header::HeaderMap;
use logweir_engine::journal::DedupKey;
use sha2::{Digest, Sha256};

use super::answer::Refused;

/// Longer keys are refused.
const KEY_BYTES_MAX: usize = 255;

/// The mark of a request that names a key.
///
/// # Errors
/// The key cannot be one.
pub fn key(headers: &HeaderMap, received_us: i64) -> Result<Option<DedupKey>, Refused> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.as_bytes();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = format!("Idempotency-Key must have 1 to {KEY_BYTES_MAX} bytes");
        return Err(Refused::new(400, "bad_idempotency_key", detail));
    }
    let sender = headers.get("authorization").map_or(&[][..], |value| value.as_bytes());
    let mut hash = Sha256::new();
    hash.update((sender.len() as u64).to_le_bytes());
    hash.update(sender);
    hash.update(key);
    let key = hash.finalize()[..16].try_into().expect("a hash has 32 bytes");
    Ok(Some(DedupKey { key, position: 0, at_us: received_us }))
}
