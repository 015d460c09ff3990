//! What a handler says: a status, a JSON body, and whether and when to try again.

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Responder};
use serde::Serialize;

use crate::message::{Refusal, RefusalKind};

/// Seconds that a sender that is too fast should wait.
const RETRY_BUSY_S: &str = "1";
/// Seconds after which a process that takes nothing now may have recovered, or have been replaced.
const RETRY_UNAVAILABLE_S: &str = "5";

/// An answer on its way out.
#[derive(Debug)]
pub struct Answer(Box<HttpResponse>);

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    detail: &'a str,
}

impl Answer {
    /// `value` as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self(Box::new(HttpResponse::build(status).json(value)))
    }

    /// Plain text.
    pub fn text(content_type: &'static str, text: String) -> Self {
        Self(Box::new(HttpResponse::Ok().content_type(content_type).body(text)))
    }

    /// An error: its name, and one sentence for a person.
    pub fn error(status: u16, error: &'static str, detail: impl AsRef<str>) -> Self {
        Self::json(status, &ErrorBody { error, detail: detail.as_ref() })
    }

    /// 503, to be tried again.
    pub fn unavailable(error: &'static str, detail: impl AsRef<str>) -> Self {
        Self::error(503, error, detail).with_header("Retry-After", RETRY_UNAVAILABLE_S)
    }

    /// 429, to be tried again.
    pub fn busy(error: &'static str, detail: impl AsRef<str>) -> Self {
        Self::error(429, error, detail).with_header("Retry-After", RETRY_BUSY_S)
    }

    /// The same with a header.
    pub fn with_header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value.as_ref())) {
            self.0.headers_mut().insert(name, value);
        }
        self
    }

    /// The same, and the connection is closed after it, so that the sender's next request finds another process.
    pub fn and_close(mut self) -> Self {
        self.0.head_mut().set_connection_type(actix_web::http::ConnectionType::Close);
        self.with_header("Connection", "close")
    }

    /// Its status code.
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let Refusal { kind, reason, detail } = refusal;
        match kind {
            RefusalKind::Busy => Self::busy(reason, detail),
            RefusalKind::Unavailable if reason == "draining" => Self::unavailable(reason, detail).and_close(),
            RefusalKind::Unavailable => Self::unavailable(reason, detail),
            RefusalKind::TooLarge => Self::error(413, reason, detail),
            RefusalKind::Malformed => Self::error(400, reason, detail),
        }
    }
}

impl From<Answer> for HttpResponse {
    fn from(answer: Answer) -> Self {
        *answer.0
    }
}

impl Responder for Answer {
    type Body = BoxBody;

    fn respond_to(self, _request: &HttpRequest) -> HttpResponse {
        *self.0
    }
}
