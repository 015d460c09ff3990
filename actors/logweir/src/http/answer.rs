//! HTTP responses: a status, a JSON body, and whether and when to retry.

use std::convert::Infallible;

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Responder, ResponseError};
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;

use crate::message::{Rejection, RejectionKind};
use crate::search::SearchError;
use logweir_query::QueryError;
use logweir_store::read::ReadError;

/// Seconds that a sender that exceeds a limit should wait.
const RETRY_BUSY_S: u64 = 1;
/// Seconds after which an unavailable process may have recovered or have been replaced.
const RETRY_UNAVAILABLE_S: u64 = 5;

/// A response.
#[derive(Debug)]
pub struct Answer(Box<HttpResponse>);

/// An error response before its protocol gives it a shape.
#[derive(Debug)]
pub struct HttpError {
    /// The HTTP status code; a protocol may use a more specific one.
    pub status: u16,
    /// Reason in snake case, used as a metric label.
    pub reason: &'static str,
    /// One sentence for the user.
    pub detail: String,
    /// Index of the offending item of the body, from 0, if known.
    pub item: Option<u32>,
    /// Position of the error in the query, in characters, from 1; if known.
    pub column: Option<usize>,
    /// Seconds after which to retry, if known.
    pub retry_after_s: Option<u64>,
    /// Whether the connection is closed after the response, so that the sender's next request reaches another process.
    pub close: bool,
}

/// The body of an error response.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    /// Reason code, in snake case.
    error: &'a str,
    /// What is wrong, what is expected, and what to do.
    detail: &'a str,
    /// Position of the error in the query, in characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
}

impl Answer {
    /// `value` as JSON, followed by a newline: in a terminal the prompt then starts on its own line.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(mut body) => {
                body.push(b'\n');
                Self::body(status, "application/json", body)
            }
            Err(error) => Self::body(500, "text/plain; charset=utf-8", format!("internal error: {error}\n")),
        }
    }

    /// A body of any content type.
    pub fn body(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self(Box::new(HttpResponse::build(status_code(status)).content_type(content_type).body(body.into())))
    }

    /// Plain text.
    pub fn text(content_type: &'static str, text: String) -> Self {
        Self::body(200, content_type, text)
    }

    /// A streamed body.
    pub fn stream(content_type: &'static str, pieces: impl Stream<Item = Result<Bytes, Infallible>> + 'static) -> Self {
        Self(Box::new(HttpResponse::Ok().content_type(content_type).streaming(pieces)))
    }

    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self(Box::new(HttpResponse::build(status_code(status)).finish()))
    }

    /// An error: its reason code, and one sentence for the user.
    pub fn error(status: u16, error: &'static str, detail: impl AsRef<str>) -> Self {
        Self::json(status, &ErrorBody { error, detail: detail.as_ref(), column: None })
    }

    /// Adds a header.
    pub fn with_header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value.as_ref())) {
            self.0.headers_mut().insert(name, value);
        }
        self
    }

    /// Adds the headers of a rejection, which are the same whatever the shape of the body.
    pub fn of(self, rejection: &HttpError) -> Self {
        let answer = match rejection.retry_after_s() {
            Some(seconds) => self.with_header("Retry-After", seconds.to_string()),
            None => self,
        };
        let answer = match rejection.status {
            401 => answer.with_header("WWW-Authenticate", "Bearer realm=\"logweir\""),
            _ => answer,
        };
        if rejection.close { answer.and_close() } else { answer }
    }

    fn and_close(mut self) -> Self {
        self.0.head_mut().set_connection_type(actix_web::http::ConnectionType::Close);
        self.with_header("Connection", "close")
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl HttpError {
    /// A rejection with this reason.
    pub fn new(status: u16, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), item: None, column: None, retry_after_s: None, close: false }
    }

    /// 405, with the allowed `methods` as a comma-separated list.
    pub fn method_not_allowed(request: &HttpRequest, methods: &str) -> Self {
        let detail = format!("method {} is not allowed for {}: expected {methods}", request.method(), request.path());
        Self::new(405, "method_not_allowed", detail)
    }

    /// Closes the connection after the response.
    pub fn and_close(self) -> Self {
        Self { close: true, ..self }
    }

    /// Counts the rejection.
    pub fn counted(self) -> Self {
        metrics::counter!("logweir_rejected_requests_total", "reason" => self.reason).increment(1);
        self
    }

    /// Sets the seconds after which to retry.
    pub fn with_retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds.max(RETRY_BUSY_S)), ..self }
    }

    /// Seconds after which the same request may be accepted; `None` where a retry alone cannot succeed.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self.status {
            429 => Some(self.retry_after_s.unwrap_or(RETRY_BUSY_S)),
            503 => Some(self.retry_after_s.unwrap_or(RETRY_UNAVAILABLE_S)),
            _ => None,
        }
    }
}

impl From<Rejection> for HttpError {
    fn from(rejection: Rejection) -> Self {
        let Rejection { kind, reason, detail } = rejection;
        let status = match kind {
            RejectionKind::Busy => 429,
            RejectionKind::Unavailable => 503,
            RejectionKind::TooLarge => 413,
            RejectionKind::Malformed | RejectionKind::MalformedItem(_) => 400,
            RejectionKind::Contradiction => 422,
        };
        let item = match kind {
            RejectionKind::MalformedItem(item) => Some(item),
            _ => None,
        };
        Self { status, reason, detail, item, column: None, retry_after_s: None, close: reason == "draining" }
    }
}

impl From<QueryError> for HttpError {
    fn from(QueryError { column, detail, .. }: QueryError) -> Self {
        Self { column: Some(column), ..Self::new(400, "bad_query", detail) }
    }
}

impl From<SearchError> for HttpError {
    fn from(error: SearchError) -> Self {
        let detail = error.to_string();
        match error {
            SearchError::TooManyQueries(..) | SearchError::TooManyStreams(_) => {
                Self::new(429, "too_many_queries", detail)
            }
            SearchError::InvalidRequest(_) => Self::new(400, "bad_parameter", detail),
            SearchError::NotSearchable => Self::new(501, "not_searchable", detail),
            SearchError::Read(ReadError::Timeout(_) | ReadError::Preempted) => Self::new(504, "query_timeout", detail),
            SearchError::Read(ReadError::Unavailable(_)) => Self::new(503, "database_unavailable", detail),
            // Tables that are only missing until a processor has connected are there in a moment.
            SearchError::Read(ReadError::Unprepared(_)) => {
                Self::new(503, "database_unprepared", detail).with_retry_after(RETRY_BUSY_S)
            }
            SearchError::Read(ReadError::Unanswerable(_)) => Self::new(400, "bad_query", detail),
            SearchError::Read(_) => Self::new(500, "query_failed", detail),
        }
    }
}

impl From<HttpError> for Answer {
    fn from(rejection: HttpError) -> Self {
        Self::from(&rejection)
    }
}

impl From<&HttpError> for Answer {
    fn from(rejection: &HttpError) -> Self {
        let &HttpError { status, reason: error, ref detail, column, .. } = rejection;
        Self::json(status, &ErrorBody { error, detail, column }).of(rejection)
    }
}

impl From<Answer> for HttpResponse {
    fn from(answer: Answer) -> Self {
        *answer.0
    }
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

/// Lets a handler return early with a rejection.
impl ResponseError for HttpError {
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
