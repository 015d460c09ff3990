//! `Idempotency-Key`: a request that is sent again with the same key is stored once.
//!
//! - The key is hashed together with the token that came with it into a dedup key, which is journaled with the records:
//!   it is known again after a restart, for [`DEDUP_WINDOW`](logweir_engine::journal::DEDUP_WINDOW) (or less, if its
//!   sender has many).
//! - A repeated request gets the same response as the first one once that is on disk, and 503 with `Retry-After` until
//!   then. If its body differs, the answer is 422: one of the two would be lost without a word.
//! - Each process has its own dedup index, for the quick answer. Whether records are stored is decided in the database,
//!   which knows the requests of all processes: see `protocol::requests` in `logweir-store`.

use actix_web::http::header::HeaderMap;
use logweir_engine::journal::{DedupKey, DedupKind};
use sha2::{Digest, Sha256};

use super::answer::HttpError;
use super::limits::Sender;
use super::token::token;

/// Longer keys are rejected.
const KEY_BYTES_MAX: usize = 255;

/// The dedup key of a request with an `Idempotency-Key` from `sender`; without its body.
///
/// # Errors
/// The length of the key is invalid.
pub fn key(headers: &HeaderMap, sender: Sender) -> Result<Option<DedupKey>, HttpError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.as_bytes();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = format!("invalid Idempotency-Key: expected 1 to {KEY_BYTES_MAX} bytes");
        return Err(HttpError::new(400, "bad_idempotency_key", detail));
    }
    let authorization = headers.get("authorization").map_or(&[][..], |value| value.as_bytes());
    Ok(Some(dedup_key(authorization, sender, key)))
}

/// Four bytes for the sender, which has a share of the dedup index of its own, and twelve for the key. The token itself
/// stands for the sender, since its index in the configuration changes. Requests without authentication have one share
/// together: a client could make up any number of senders.
fn dedup_key(authorization: &[u8], sender: Sender, key: &[u8]) -> DedupKey {
    let token = token(authorization).unwrap_or(authorization.into());
    let mut hash = Sha256::new();
    hash.update((token.len() as u64).to_le_bytes());
    hash.update(&token);
    let mut bytes = [0; 16];
    if sender.0.is_some() {
        bytes[..4].copy_from_slice(&hash.clone().finalize()[..4]);
    }
    hash.update(key);
    bytes[4..].copy_from_slice(&hash.finalize()[..12]);
    DedupKey { key: bytes, kind: DedupKind::Request { body: None } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_senders() {
        let of = |authorization: &str, key: &str| dedup_key(authorization.as_bytes(), Sender(Some(0)), key.as_bytes());
        assert_eq!(of("Bearer one", "a"), of("Splunk one", "a"));
        assert_ne!(of("Bearer one", "a"), of("Bearer one", "b"));
        assert_ne!(of("Bearer one", "a"), of("Bearer two", "a"));
        assert_eq!(of("Bearer one", "a").key[..4], of("Bearer one", "b").key[..4], "one share");
        assert_ne!(of("Bearer one", "a").key[..4], of("Bearer two", "a").key[..4]);
        let anonymous = |authorization: &str| dedup_key(authorization.as_bytes(), Sender(None), b"a");
        assert_eq!(anonymous("Bearer one").key[..4], anonymous("Bearer two").key[..4]);
        assert_ne!(anonymous("Bearer one"), anonymous("Bearer two"));
    }
}
