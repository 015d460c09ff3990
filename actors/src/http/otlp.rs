//! `POST /v1/logs`: OTLP over HTTP, answered in the encoding of the request.
//!
//! - A client of OTLP tries again after 429, 502, 503 and 504 only: whatever may be mended by waiting is one of these.
//! - Records that were discarded are told as `partial_success`, and are not to be sent again.

use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, web};
use prost::Message as _;
use serde_json::json;

use super::Shared;
use super::answer::{Answer, Refused};
use super::intake::take;
use super::loki::is_json;
use super::parameters::Parameters;
use crate::message::{Format, ParseReport};

const PROTOBUF: &str = "application/x-protobuf";

/// What opentelemetry/proto/collector/logs/v1/logs_service.proto calls so.
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

/// `google.rpc.Status`, without its details.
#[derive(prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// The handler.
pub async fn export(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    let json = is_json(request.headers());
    match stored(&shared, &request, payload, json).await {
        Ok(report) => success(&report, json),
        Err(refused) => refusal(refused.counted(), request.headers()),
    }
}

async fn stored(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    json: bool,
) -> Result<ParseReport, Refused> {
    let (mut parameters, _) = Parameters::read(request, &shared.config)?;
    parameters.format = if json { Format::OtlpJson } else { Format::OtlpProtobuf };
    take(shared, request, payload, parameters).await.map(|receipt| receipt.report)
}

fn success(report: &ParseReport, json: bool) -> Answer {
    let rejected = report.rejected;
    let message = report.errors.first().map_or_else(String::new, |error| error.error.clone());
    if !json {
        let partial_success =
            (rejected > 0).then(|| PartialSuccess { rejected_log_records: rejected.into(), error_message: message });
        return Answer::body(200, PROTOBUF, ExportLogsServiceResponse { partial_success }.encode_to_vec());
    }
    // An int64 is a string in protobuf's JSON.
    let partial = json!({ "rejectedLogRecords": rejected.to_string(), "errorMessage": message });
    Answer::json(200, &if rejected > 0 { json!({ "partialSuccess": partial }) } else { json!({}) })
}

/// A refusal as `google.rpc.Status`.
pub fn refusal(mut refused: Refused, headers: &HeaderMap) -> Answer {
    if refused.status == 408 {
        refused.status = 503; // a client would take 408 for final
    }
    let code = match refused.status {
        401 => 16,      // UNAUTHENTICATED
        413 | 429 => 8, // RESOURCE_EXHAUSTED
        503 => 14,      // UNAVAILABLE
        400 | 415 => 3, // INVALID_ARGUMENT
        _ => 2,         // UNKNOWN
    };
    let message = format!("{}: {}", refused.reason, refused.detail);
    let answer = if is_json(headers) {
        Answer::json(refused.status, &json!({ "code": code, "message": message }))
    } else {
        Answer::body(refused.status, PROTOBUF, Status { code, message }.encode_to_vec())
    };
    answer.of(&refused)
}
