//! The token of a request, in the form of each kind of client.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The token in an `Authorization` header; `None` for an unknown scheme.
pub fn token(header: &[u8]) -> Option<Cow<'_, [u8]>> {
    let space = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, value) = (&header[..space], header[space..].trim_ascii());
    let after_colon = |decoded: Vec<u8>| {
        let colon = decoded.iter().position(|&byte| byte == b':')?;
        Some(Cow::Owned(decoded[colon + 1..].to_vec()))
    };
    let decoded = || STANDARD.decode(value).ok().and_then(after_colon);
    match &*scheme.to_ascii_lowercase() {
        b"bearer" | b"splunk" => Some(Cow::Borrowed(value)),
        b"basic" => decoded(),
        // Elasticsearch issues the base64 of `id:key`; users type the token itself.
        b"apikey" => Some(decoded().unwrap_or(Cow::Borrowed(value))),
        _ => None,
    }
}
