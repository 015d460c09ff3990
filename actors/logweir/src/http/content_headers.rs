//! What the headers of a request say about its body.

use actix_web::http::header::{HeaderMap, HeaderValue};

use super::answer::HttpError;
use crate::message::Encoding;

/// The announced length of the body.
pub fn content_length(headers: &HeaderMap) -> Result<Option<usize>, HttpError> {
    let Some(value) = headers.get("content-length") else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length
        .map(Some)
        .ok_or_else(|| HttpError::new(400, "bad_length", "invalid Content-Length: expected a number of bytes"))
}

/// Whether the body is declared as JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// The compression of the body, from `Content-Encoding`.
pub fn encoding(header: Option<&HeaderValue>) -> Result<Encoding, HttpError> {
    let name = header.map_or("", |value| value.to_str().unwrap_or("?")).trim().to_ascii_lowercase();
    match &*name {
        "" | "identity" => Ok(Encoding::Identity),
        "gzip" | "x-gzip" => Ok(Encoding::Gzip),
        "zstd" => Ok(Encoding::Zstd),
        "deflate" => Ok(Encoding::Deflate),
        "snappy" | "x-snappy-framed" => Ok(Encoding::Snappy),
        _ => {
            let detail =
                format!("unsupported Content-Encoding {name:?}: expected one of gzip, zstd, deflate, snappy, identity");
            Err(HttpError::new(415, "unknown_encoding", detail))
        }
    }
}
