//! `POST /ingest`: a body of lines (or a JSON document) in, an account of them out.
//!
//! `?debug=1` answers the records that the body would become, and stores nothing.

use std::sync::Arc;

use actix_web::{HttpRequest, web};
use jiff::Timestamp;
use logweir_engine::clock::wall_us;
use logweir_engine::journal::LaneId;
use logweir_engine::record::Record;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::Shared;
use super::answer::{Answer, Refused};
use super::intake::{read_body, take};
use super::parameters::{Parameters, format};
use crate::message::{AckLevel, LineError, ParseReport, Receipt};
use crate::parser::{Memory, Parsed, parse_by};
use crate::producer::decompress;

/// Records that `?debug=1` shows.
const SHOWN_MAX: usize = 100;

/// One body at a time is looked at: it takes memory beside what the stages may take.
static DEBUG: Semaphore = Semaphore::const_new(1);

/// The answer to a body that was taken.
#[derive(Serialize)]
struct Taken<'a> {
    accepted: u32,
    rejected: u32,
    parse_errors: u32,
    errors: &'a [LineError],
    lane: LaneId,
    seq: u64,
    ack: AckLevel,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
}

/// The handler.
pub async fn ingest(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    answer(&shared, &request, payload).await.unwrap_or_else(|refused| refused.counted().into())
}

async fn answer(shared: &Shared, request: &HttpRequest, payload: web::Payload) -> Result<Answer, Refused> {
    let (mut parameters, others) = Parameters::read(request, &shared.config)?;
    let mut debug = false;
    for (name, value) in others {
        match (&*name, &*value) {
            ("format", _) => parameters.format = format(&value, &shared.config)?,
            ("debug", "1" | "true") => debug = true,
            ("debug", "0" | "false") => debug = false,
            ("debug", _) => return Err(Refused::new(400, "bad_parameter", "debug is 1 or 0")),
            _ => {
                let detail = format!(
                    "there is no parameter {name:?}; there are ack, format, service, host, debug, _time_field, \
                     _level_field, _msg_field, _service_field, _host_field, ignore_fields, extra_fields"
                );
                return Err(Refused::new(400, "bad_parameter", detail));
            }
        }
    }
    if debug {
        return show(shared, request, payload, parameters).await;
    }
    let ack = parameters.ack;
    let Receipt { lane, seq, report, repeated } = take(shared, request, payload, parameters).await?;
    let ParseReport { accepted, rejected, parse_errors, errors, .. } = report;
    Ok(Answer::json(200, &Taken { accepted, rejected, parse_errors, errors: &errors, lane, seq, ack, repeated }))
}

#[derive(Serialize)]
struct Shown<'a> {
    stored: bool,
    accepted: u32,
    rejected: u32,
    parse_errors: u32,
    errors: &'a [LineError],
    records: Vec<ShownRecord<'a>>,
}

#[derive(Serialize)]
struct ShownRecord<'a> {
    ts: String,
    severity: u8,
    severity_text: &'static str,
    service: &'a str,
    host: &'a str,
    message: &'a str,
    attributes: Option<&'a RawValue>,
}

/// Parses the body as the stages would, and answers what came out.
async fn show(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    parameters: Parameters,
) -> Result<Answer, Refused> {
    let (body, _share) = read_body(shared, request, payload).await?;
    let Ok(_turn) = DEBUG.try_acquire() else {
        return Err(Refused::new(429, "debug_busy", "another body is being looked at: try again"));
    };
    let Parameters { encoding, format, defaults, .. } = parameters;
    let config = Arc::clone(&shared.config);
    let parsed = web::block(move || {
        let plain = decompress(&body, encoding, config.http.decompressed_bytes_max)?;
        let memory = &mut Memory::default();
        parse_by(&config.parse, memory, &plain, format, &defaults, wall_us(), config.http.line_bytes_max)
    });
    let unfinished = |_| Refused::new(503, "restarted", "the body was not looked at to the end");
    let Parsed { chunk, report, .. } = parsed.await.map_err(unfinished)??;
    let ParseReport { accepted, rejected, parse_errors, errors, .. } = &report;
    let records = chunk.iter().take(SHOWN_MAX).map(shown).collect();
    let (accepted, rejected, parse_errors) = (*accepted, *rejected, *parse_errors);
    Ok(Answer::json(200, &Shown { stored: false, accepted, rejected, parse_errors, errors, records }))
}

fn shown(record: Record<'_>) -> ShownRecord<'_> {
    let Record { ts_us, severity, service, host, message, attributes } = record;
    ShownRecord {
        ts: Timestamp::from_microsecond(ts_us).map(|ts| ts.to_string()).unwrap_or_default(),
        severity: severity.number(),
        severity_text: severity.name(),
        service,
        host,
        message,
        attributes: serde_json::from_str(attributes).ok(),
    }
}
