//! `POST /v1/logs`: OTLP over HTTP, answered in the encoding of the request.
//!
//! - An OTLP client retries only after 429, 502, 503 and 504, so every rejection that a retry can resolve has one of
//!   these.
//! - Discarded records are reported as `partial_success` and must not be sent again.

use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, web};
use prost::Message as _;
use serde_json::json;

use super::answer::{Answer, HttpError};
use super::content_headers::is_json;
use super::intake::accept;
use super::parameters::Parameters;
use super::shared::Shared;
use logweir_formats::{Format, ParseReport};

const PROTOBUF: &str = "application/x-protobuf";

/// As in opentelemetry/proto/collector/logs/v1/logs_service.proto.
#[derive(prost::Message)]
struct ExportLogsServiceResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_log_records: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// `google.rpc.Status` without its details.
#[derive(prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// Handles `POST /v1/logs`.
pub async fn export(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    let json = is_json(request.headers());
    match store_body(&shared, &request, payload, json).await {
        Ok(report) => success(&report, json),
        Err(rejection) => error_response(rejection.counted(), request.headers()),
    }
}

async fn store_body(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    json: bool,
) -> Result<ParseReport, HttpError> {
    let (mut parameters, _) = Parameters::read(request, &shared.config)?;
    parameters.format = if json { Format::OtlpJson } else { Format::OtlpProtobuf };
    accept(shared, request, payload, parameters).await.map(|receipt| receipt.report)
}

fn success(report: &ParseReport, json: bool) -> Answer {
    let rejected = report.rejected;
    let message = report.errors.first().map_or_else(String::new, |error| error.error.clone());
    if !json {
        let partial_success =
            (rejected > 0).then(|| PartialSuccess { rejected_log_records: rejected.into(), error_message: message });
        return Answer::body(200, PROTOBUF, ExportLogsServiceResponse { partial_success }.encode_to_vec());
    }
    // In the JSON of protobuf an int64 is a string.
    let partial = json!({ "rejectedLogRecords": rejected.to_string(), "errorMessage": message });
    Answer::json(200, &if rejected > 0 { json!({ "partialSuccess": partial }) } else { json!({}) })
}

/// A rejection as `google.rpc.Status`.
pub fn error_response(mut rejection: HttpError, headers: &HeaderMap) -> Answer {
    if rejection.status == 408 {
        rejection.status = 503; // a client treats 408 as permanent
    }
    let code = match rejection.status {
        401 => 16,      // UNAUTHENTICATED
        413 | 429 => 8, // RESOURCE_EXHAUSTED
        503 => 14,      // UNAVAILABLE
        400 | 415 => 3, // INVALID_ARGUMENT
        _ => 2,         // UNKNOWN
    };
    let message = format!("{}: {}", rejection.reason, rejection.detail);
    let answer = if is_json(headers) {
        Answer::json(rejection.status, &json!({ "code": code, "message": message }))
    } else {
        Answer::body(rejection.status, PROTOBUF, Status { code, message }.encode_to_vec())
    };
    answer.of(&rejection)
}
