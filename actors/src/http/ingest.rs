//! `POST /ingest`: a body of lines (or a JSON document) in, an account of them out.
//!
//! - Whatever can be refused without the body is refused before it is read: a wrong parameter, the way down, a journal
//!   that takes nothing, a length above the limit.
//! - A success says what was asked for (`?ack=`) and no less. Where that cannot be said in time the answer is 503, which
//!   says that the records may be stored all the same.
//! - The name of every refusal is counted once, here.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderValue};
use actix_web::{HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use logweir_engine::clock::wall_us;
use logweir_engine::drain::Phase;
use logweir_engine::journal::LaneId;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::answer::Answer;
use super::{Shared, stream_of};
use crate::config::Config;
use crate::message::{AckLevel, Defaults, Delivery, Encoding, Format, LineError, Receipt, Refusal};
use crate::parser::NAME_BYTES_MAX;
use crate::producer::answer_channel;

/// A body whose length is not announced is read in steps of at least this many bytes of the budget.
const STEP_BYTES: usize = 64 << 10;

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
}

/// What a request says besides its body.
#[derive(Debug, PartialEq, Eq)]
struct Parameters {
    encoding: Encoding,
    format: Format,
    ack: AckLevel,
    defaults: Defaults,
}

/// The handler.
pub async fn ingest(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    match take(&shared, &request, payload).await {
        Ok(answer) => answer,
        Err(Refused { reason, answer }) => {
            metrics::counter!("logweir_refused_total", "reason" => reason).increment(1);
            answer
        }
    }
}

/// A refusal with the name that it is counted by.
#[derive(Debug)]
struct Refused {
    reason: &'static str,
    answer: Answer,
}

impl Refused {
    fn new(status: u16, reason: &'static str, detail: impl AsRef<str>) -> Self {
        Self { reason, answer: Answer::error(status, reason, detail) }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason, answer: refusal.into() }
    }
}

async fn take(shared: &Shared, request: &HttpRequest, payload: web::Payload) -> Result<Answer, Refused> {
    let parameters = Parameters::read(request.query_string(), request.headers(), &shared.config)?;
    let in_flight = Arc::clone(&shared.in_flight); // before the look at the phase: the way down waits for it
    if shared.drain.phase() >= Phase::Draining {
        return Err(Refusal::draining().into());
    }
    let running = shared.running().map_err(|answer| Refused { reason: "starting", answer })?;
    running.journal.check_writable().map_err(|error| Refused::from(Refusal::of_journal(&error)))?;

    let length = announced_length(request.headers())?;
    let body = read_body(shared, payload, length).await?;
    let Parameters { encoding, format, ack, defaults } = parameters;
    let (reply, answer) = answer_channel();
    let received_us = wall_us();
    let stream = stream_of(request);
    let delivery = Delivery { stream, body, encoding, format, defaults, received_us, ack, reply };
    running.intake.try_submit(delivery)?;
    drop(in_flight); // the stages have it: they drain

    let patience = Patience::new(shared.config.http.ack_timeout_ms);
    let receipt = patience.wait(answer.wait(), "it may be stored or not").await??;
    if ack == AckLevel::Committed && receipt.seq > 0 {
        let committed = async {
            tokio::select! {
                () = shared.progress.committed(receipt.lane, receipt.seq) => Ok(()),
                () = shared.drain.reached(Phase::Persisting) => Err(Refusal::not_committed()),
            }
        };
        patience.wait(committed, "it is in the journal and will be committed").await??;
    }
    Ok(Answer::json(200, &Taken::new(&receipt, ack)))
}

impl<'a> Taken<'a> {
    fn new(receipt: &'a Receipt, ack: AckLevel) -> Self {
        let Receipt { lane, seq, report } = receipt;
        Self {
            accepted: report.accepted,
            rejected: report.rejected,
            parse_errors: report.parse_errors,
            errors: &report.errors,
            lane: *lane,
            seq: *seq,
            ack,
        }
    }
}

/// One limit on all that an answer waits for.
struct Patience {
    until: Instant,
    ack_timeout_ms: u64,
}

impl Patience {
    fn new(ack_timeout_ms: u64) -> Self {
        Self { until: Instant::now() + Duration::from_millis(ack_timeout_ms), ack_timeout_ms }
    }

    /// Waits for `future`; `standing` says what is known of the body if that takes too long.
    async fn wait<F: Future>(&self, future: F, standing: &str) -> Result<F::Output, Refused> {
        timeout_at(self.until, future).await.map_err(|_| {
            let detail = format!(
                "the body did not come as far as ?ack= asks within {} ms: {standing}; a re-send would be a new record",
                self.ack_timeout_ms
            );
            Refused { reason: "ack_timeout", answer: Answer::unavailable("ack_timeout", detail) }
        })
    }
}

/// The length that the sender announces, if it is one that is taken.
fn announced_length(headers: &HeaderMap) -> Result<Option<usize>, Refused> {
    let Some(value) = headers.get("content-length") else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| Refused::new(400, "bad_length", "Content-Length is no number"))
}

/// Reads the body, within the limits of length, time and the budget for all bodies.
async fn read_body(shared: &Shared, mut payload: web::Payload, length: Option<usize>) -> Result<Bytes, Refused> {
    let config = &shared.config.http;
    let bytes_max = config.body_bytes_max;
    let too_large = || {
        let detail = format!("the body is above http.body_bytes_max of {bytes_max}: send smaller bodies");
        Refused::new(413, "body_too_large", detail)
    };
    let no_room = || Refused {
        reason: "inflight_bytes",
        answer: Answer::busy(
            "inflight_bytes",
            format!("the bodies being read take more than http.inflight_bytes_max of {}", config.inflight_bytes_max),
        ),
    };
    let too_slow = || {
        let detail = format!("the body did not arrive within http.request_timeout_ms of {}", config.request_timeout_ms);
        Refused { reason: "request_timeout", answer: Answer::error(408, "request_timeout", detail).and_close() }
    };

    let announced = length.unwrap_or(0);
    if announced > bytes_max {
        return Err(too_large());
    }
    // Held until the body is handed on: from there the mailboxes count it.
    let mut share = shared.inflight.share();
    if !share.grow_to(announced) {
        return Err(no_room());
    }
    let until = Instant::now() + Duration::from_millis(config.request_timeout_ms);
    let mut body = BytesMut::with_capacity(announced);
    while let Some(piece) = timeout_at(until, payload.next()).await.map_err(|_| too_slow())? {
        let piece = piece.map_err(|error| {
            Refused::new(400, "body_incomplete", format!("the body broke off after {} bytes: {error}", body.len()))
        })?;
        let len = body.len() + piece.len();
        if len > bytes_max {
            return Err(too_large());
        }
        if len > announced && !share.grow_to(len.next_multiple_of(STEP_BYTES)) {
            return Err(no_room());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

impl Parameters {
    /// Reads query and headers; in the query is what counts.
    fn read(query: &str, headers: &HeaderMap, config: &Config) -> Result<Self, Refused> {
        let mut parameters = Self {
            encoding: encoding(headers.get("content-encoding"))?,
            format: Format::Auto,
            ack: config.ack,
            defaults: Defaults {
                service: header_name(headers, "X-Logweir-Service")?,
                host: header_name(headers, "X-Logweir-Host")?,
                attributes: None,
            },
        };
        let pairs = web::Query::<Vec<(String, String)>>::from_query(query)
            .map_err(|error| Refused::new(400, "bad_query", format!("the query cannot be read: {error}")))?;
        for (name, value) in pairs.into_inner() {
            match &*name {
                "ack" => parameters.ack = ack(&value)?,
                "format" => parameters.format = format(&value, config)?,
                "service" => parameters.defaults.service = Some(sender_name("service", &value)?),
                "host" => parameters.defaults.host = Some(sender_name("host", &value)?),
                _ => {
                    let detail = format!("there is no parameter {name:?}; there are ack, format, service, host");
                    return Err(Refused::new(400, "bad_parameter", detail));
                }
            }
        }
        Ok(parameters)
    }
}

fn encoding(header: Option<&HeaderValue>) -> Result<Encoding, Refused> {
    let name = header.map_or("", |value| value.to_str().unwrap_or("?")).trim().to_ascii_lowercase();
    match &*name {
        "" | "identity" => Ok(Encoding::Identity),
        "gzip" | "x-gzip" => Ok(Encoding::Gzip),
        "zstd" => Ok(Encoding::Zstd),
        _ => {
            let detail = format!("Content-Encoding {name:?} is not understood; there are gzip, zstd, identity");
            Err(Refused::new(415, "unknown_encoding", detail))
        }
    }
}

fn ack(value: &str) -> Result<AckLevel, Refused> {
    match value {
        "received" => Ok(AckLevel::Received),
        "journal" => Ok(AckLevel::Journal),
        "committed" => Ok(AckLevel::Committed),
        _ => {
            let detail = format!("ack={value:?} is not understood; there are received, journal, committed");
            Err(Refused::new(400, "bad_parameter", detail))
        }
    }
}

fn format(value: &str, config: &Config) -> Result<Format, Refused> {
    config.parse.format_named(value).ok_or_else(|| {
        let detail = format!("format={value:?} is not understood; there are {}", config.parse.format_names());
        Refused::new(400, "bad_parameter", detail)
    })
}

fn header_name(headers: &HeaderMap, header: &'static str) -> Result<Option<std::sync::Arc<str>>, Refused> {
    let Some(value) = headers.get(header) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| Refused::new(400, "bad_parameter", format!("{header} is no UTF-8")))?;
    sender_name(header, text).map(Some)
}

/// A service or host that a sender names: what an index can hold and PostgreSQL takes.
fn sender_name(parameter: &str, value: &str) -> Result<std::sync::Arc<str>, Refused> {
    let value = value.trim();
    if value.is_empty() || value.len() > NAME_BYTES_MAX || value.contains('\0') {
        let detail = format!("{parameter} must have 1 to {NAME_BYTES_MAX} bytes and no NUL");
        return Err(Refused::new(400, "bad_parameter", detail));
    }
    Ok(value.into())
}
