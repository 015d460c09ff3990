//! What a handler says: a status, a JSON body, and whether and when to try again.

use std::convert::Infallible;

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Responder, ResponseError};
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;

use crate::message::{Rejection, RejectionKind};
use crate::query::BadQuery;

/// Seconds that a sender that is too fast should wait.
const RETRY_BUSY_S: u64 = 1;
/// Seconds after which a process that takes nothing now may have recovered, or have been replaced.
const RETRY_UNAVAILABLE_S: u64 = 5;

/// An answer on its way out.
#[derive(Debug)]
pub struct Answer(Box<HttpResponse>);

/// Why a request is refused, before it has the shape that its protocol gives it.
#[derive(Debug)]
pub struct Refused {
    /// The status code in HTTP's own sense; a protocol may know a better one.
    pub status: u16,
    /// Its name, which it is counted by.
    pub reason: &'static str,
    /// One sentence for a person.
    pub detail: String,
    /// The item of the body that is to blame, from 0, where there is one.
    pub item: Option<u32>,
    /// The character of the query that is to blame, from 1, where there is one.
    pub column: Option<usize>,
    /// Seconds after which it may be tried again, where they are known.
    pub retry_after_s: Option<u64>,
    /// The connection is closed after the answer, so that the sender's next request finds another process.
    pub close: bool,
}

/// The body of an error.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    /// Its name, in snake case.
    error: &'a str,
    /// What is wrong, where, and what to do.
    detail: &'a str,
    /// The character of the query that is to blame, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
}

impl Answer {
    /// `value` as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        Self(Box::new(HttpResponse::build(status_code(status)).json(value)))
    }

    /// A body of any kind.
    pub fn body(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self(Box::new(HttpResponse::build(status_code(status)).content_type(content_type).body(body.into())))
    }

    /// Plain text.
    pub fn text(content_type: &'static str, text: String) -> Self {
        Self::body(200, content_type, text)
    }

    /// A body that comes piece by piece, as long as it lasts.
    pub fn stream(content_type: &'static str, pieces: impl Stream<Item = Result<Bytes, Infallible>> + 'static) -> Self {
        Self(Box::new(HttpResponse::Ok().content_type(content_type).streaming(pieces)))
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self(Box::new(HttpResponse::build(status_code(status)).finish()))
    }

    /// An error: its name, and one sentence for a person.
    pub fn error(status: u16, error: &'static str, detail: impl AsRef<str>) -> Self {
        Self::json(status, &ErrorBody { error, detail: detail.as_ref(), column: None })
    }

    /// The same with a header.
    pub fn with_header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value.as_ref())) {
            self.0.headers_mut().insert(name, value);
        }
        self
    }

    /// The same with what HTTP itself says of a refusal, whatever shape the body has.
    pub fn of(self, refused: &Refused) -> Self {
        let answer = match refused.retry_after_s() {
            Some(seconds) => self.with_header("Retry-After", seconds.to_string()),
            None => self,
        };
        let answer = match refused.status {
            401 => answer.with_header("WWW-Authenticate", "Bearer realm=\"logweir\""),
            _ => answer,
        };
        if refused.close { answer.and_close() } else { answer }
    }

    fn and_close(mut self) -> Self {
        self.0.head_mut().set_connection_type(actix_web::http::ConnectionType::Close);
        self.with_header("Connection", "close")
    }

    /// Its status code.
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl Refused {
    /// A refusal of this name.
    pub fn new(status: u16, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), item: None, column: None, retry_after_s: None, close: false }
    }

    /// The same, with the end of the connection.
    pub fn and_close(self) -> Self {
        Self { close: true, ..self }
    }

    /// Counts it.
    pub fn counted(self) -> Self {
        metrics::counter!("logweir_rejected_requests_total", "reason" => self.reason).increment(1);
        self
    }

    /// The same, to be tried again after so many seconds.
    pub fn with_retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds.max(RETRY_BUSY_S)), ..self }
    }

    /// Seconds after which the same request may be taken; none where a retry alone mends nothing.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self.status {
            429 => Some(self.retry_after_s.unwrap_or(RETRY_BUSY_S)),
            503 => Some(self.retry_after_s.unwrap_or(RETRY_UNAVAILABLE_S)),
            _ => None,
        }
    }
}

impl From<Rejection> for Refused {
    fn from(refusal: Rejection) -> Self {
        let Rejection { kind, reason, detail } = refusal;
        let status = match kind {
            RejectionKind::Busy => 429,
            RejectionKind::Unavailable => 503,
            RejectionKind::TooLarge => 413,
            RejectionKind::Malformed | RejectionKind::MalformedItem(_) => 400,
        };
        let item = match kind {
            RejectionKind::MalformedItem(item) => Some(item),
            _ => None,
        };
        Self { status, reason, detail, item, column: None, retry_after_s: None, close: reason == "draining" }
    }
}

impl From<BadQuery> for Refused {
    fn from(BadQuery { column, detail }: BadQuery) -> Self {
        Self { column: Some(column), ..Self::new(400, "bad_query", detail) }
    }
}

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Self {
        Self::from(&refused)
    }
}

impl From<&Refused> for Answer {
    fn from(refused: &Refused) -> Self {
        let &Refused { status, reason: error, ref detail, column, .. } = refused;
        Self::json(status, &ErrorBody { error, detail, column }).of(refused)
    }
}

impl From<Answer> for HttpResponse {
    fn from(answer: Answer) -> Self {
        *answer.0
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

/// So that a handler can end early with one.
impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        status_code(self.status)
    }

    fn error_response(&self) -> HttpResponse {
        Answer::from(self).into()
    }
}

impl Responder for Answer {
    type Body = BoxBody;

    fn respond_to(self, _request: &HttpRequest) -> HttpResponse {
        *self.0
    }
}
