//! Responses in Loki's format.

use actix_web::http::header::HeaderMap;

use super::super::answer::{Answer, HttpError};

/// A rejection in the shape of a Loki error.
pub fn error_response(rejection: HttpError, _: &HeaderMap) -> Answer {
    text(rejection.status, format!("{}: {}", rejection.reason, rejection.detail)).of(&rejection)
}

/// Plain text.
pub fn text(status: u16, text: String) -> Answer {
    Answer::body(status, "text/plain; charset=utf-8", text + "\n")
}
