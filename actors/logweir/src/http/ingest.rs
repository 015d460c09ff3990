//! `POST /ingest`: accepts a body of lines (or a JSON document) and reports what became of them.
//!
//! `?debug=1` returns the records that the body would become and stores nothing.

use std::sync::Arc;

use actix_web::{HttpRequest, web};
use logweir_engine::clock::wall_us;
use logweir_engine::journal::LaneId;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::answer::{Answer, HttpError};
use super::intake::{accept, read_body};
use super::parameters::{Parameters, format};
use super::shared::Shared;
use crate::message::{AckLevel, Receipt, Rejection};
use crate::producer::decompress;
use logweir_formats::{LineError, ParseReport};
use logweir_formats::{Memory, Parsed, parse_by};
use logweir_record::json::RecordJson;

/// Maximum number of records returned for `?debug=1`.
const DEBUG_RECORDS_MAX: usize = 100;

/// One body at a time is parsed for `?debug=1`: it takes memory beyond what the stages may use.
static DEBUG: Semaphore = Semaphore::const_new(1);

/// The response for an accepted body.
#[derive(Serialize)]
struct IngestResponse<'a> {
    accepted: u32,
    rejected: u32,
    parse_errors: u32,
    #[serde(skip_serializing_if = "is_zero")]
    beyond_retention: u32,
    errors: &'a [LineError],
    lane: LaneId,
    seq: u64,
    ack: AckLevel,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
}

/// Handles `POST /ingest`.
pub async fn ingest(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    answer(&shared, &request, payload).await.unwrap_or_else(|rejection| rejection.counted().into())
}

async fn answer(shared: &Shared, request: &HttpRequest, payload: web::Payload) -> Result<Answer, HttpError> {
    let (mut parameters, rest) = Parameters::read(request, &shared.config)?;
    let mut debug = false;
    for (name, value) in rest {
        match (&*name, &*value) {
            ("format", _) => parameters.format = format(&value, &shared.config)?,
            ("debug", "1" | "true") => debug = true,
            ("debug", "0" | "false") => debug = false,
            ("debug", _) => return Err(HttpError::new(400, "bad_parameter", "invalid debug: expected 1 or 0")),
            _ => {
                let detail = format!(
                    "unknown parameter {name:?}: expected one of ack, format, service, host, debug, _time_field, \
                     _level_field, _msg_field, _service_field, _host_field, ignore_fields, extra_fields"
                );
                return Err(HttpError::new(400, "bad_parameter", detail));
            }
        }
    }
    if debug {
        return debug_response(shared, request, payload, parameters).await;
    }
    let ack = parameters.ack;
    let Receipt { lane, seq, report, repeated } = accept(shared, request, payload, parameters).await?;
    let ParseReport { accepted, rejected, parse_errors, beyond_retention, errors, .. } = report;
    let errors = &errors;
    let response =
        IngestResponse { accepted, rejected, parse_errors, beyond_retention, errors, lane, seq, ack, repeated };
    Ok(Answer::json(200, &response))
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct DebugResponse<'a> {
    stored: bool,
    accepted: u32,
    rejected: u32,
    parse_errors: u32,
    errors: &'a [LineError],
    records: Vec<RecordJson<'a>>,
}

/// Parses the body as the pipeline would, and returns the result.
async fn debug_response(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    parameters: Parameters,
) -> Result<Answer, HttpError> {
    let (body, _share) = read_body(shared, request, payload).await?;
    let Ok(_permit) = DEBUG.try_acquire() else {
        return Err(HttpError::new(429, "debug_busy", "another ?debug=1 request is running: retry shortly"));
    };
    let Parameters { encoding, format, defaults, .. } = parameters;
    let config = Arc::clone(&shared.config);
    let parsed = web::block(move || {
        let plain = decompress(&body, encoding, config.http.decompressed_bytes_max)?;
        let memory = &mut Memory::default();
        parse_by(&config.parse, memory, &plain, format, &defaults, wall_us(), config.http.line_bytes_max)
            .map_err(Rejection::from)
    });
    let interrupted = |_| HttpError::new(503, "restarted", "parsing was interrupted: retry");
    let Parsed { chunk, report, .. } = parsed.await.map_err(interrupted)??;
    let ParseReport { accepted, rejected, parse_errors, errors, .. } = &report;
    let records = chunk.iter().take(DEBUG_RECORDS_MAX).map(RecordJson::from).collect();
    let (accepted, rejected, parse_errors) = (*accepted, *rejected, *parse_errors);
    Ok(Answer::json(200, &DebugResponse { stored: false, accepted, rejected, parse_errors, errors, records }))
}
