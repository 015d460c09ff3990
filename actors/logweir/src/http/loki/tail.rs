//! `tail`: records over a WebSocket as they arrive, preceded by the latest stored ones.
//!
//! - The stream is that of `/api/v1/tail` in Loki's shape: missed records are reported in `dropped_entries`, as one
//!   entry whose labels give their number.
//! - The live tail is subscribed before the store is queried, so that no record is missed in between; records that
//!   arrive twice because of that are sent once.

use std::collections::HashSet;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{AggregatedMessage, Closed, Session};
use bytes::Bytes;
use logweir_engine::clock;
use logweir_record::record::Severity;
use logweir_record::timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::interval;

use super::super::answer::HttpError;
use super::super::error_responses::{LOKI, LokiErrors};
use super::super::shared::Shared;
use super::super::tail::subscribe;
use super::answer::error_response;
use super::loki_parameters::{LokiParameters, bad_parameter};
use super::query::whole;
use super::streams::{Labels, Stream, categorize, streams};
use crate::search::PageRequest;
use crate::tail::sse::{Event, Events};
use logweir_query::QueryText;
use logweir_query::page::{Direction, Found};

/// A client that does not answer pings is disconnected.
const PING_EVERY: Duration = Duration::from_secs(15);

#[derive(Serialize)]
struct Frame {
    streams: Vec<Stream>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dropped_entries: Vec<Dropped>,
}

#[derive(Serialize)]
struct Dropped {
    labels: Labels,
    timestamp: String,
}

/// A record in an event of the live tail.
#[derive(Deserialize)]
struct TailRecord {
    id: Option<String>,
    ts: String,
    severity: u8,
    service: String,
    host: String,
    message: String,
    attributes: Box<RawValue>,
}

/// Streams records over a WebSocket.
#[utoipa::path(
    get,
    tag = LOKI,
    path = "/loki/api/v1/tail",
    params(
        ("query" = Option<String>, Query, description = "LogQL: a selector with filters; default all records."),
        ("start" = Option<String>, Query, description = "Start of the stored records that are sent first; default one hour ago."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 5000, description = "Maximum number of stored records; default 100."),
    ),
    responses((status = 101, description = "A WebSocket with records as they arrive."), LokiErrors)
)]
pub(super) async fn tail(request: HttpRequest, payload: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    match begin(&request, payload, &shared).await {
        Ok(response) => response,
        Err(rejection) => error_response(rejection.counted(), request.headers()).into(),
    }
}

async fn begin(request: &HttpRequest, payload: web::Payload, shared: &Shared) -> Result<HttpResponse, HttpError> {
    let parameters = LokiParameters::of(request, &Bytes::new())?;
    let query_text = QueryText::LogQl(parameters.text("query").unwrap_or("{}").to_owned());
    let (range, limit) = (whole(parameters.range()?), parameters.limit()?);
    let pieces = subscribe(shared, &query_text, None)?;
    let before =
        PageRequest { filter: query_text.filter()?, range, direction: Direction::Backward, after: None, limit };
    let mut stored = shared.searcher()?.page(&before).await?.records;
    stored.reverse();
    let (response, session, messages) = actix_ws::handle(request, payload)
        .map_err(|error| bad_parameter(format!("expected a WebSocket upgrade: {error}")))?;
    let view = View { categorize: categorize(request.headers()), seen: stored.iter().map(|found| found.id).collect() };
    actix_web::rt::spawn(serve(session, messages.aggregate_continuations(), pieces, stored, view));
    Ok(response)
}

/// How records are shaped, and which ones have been sent.
struct View {
    categorize: bool,
    seen: HashSet<i64>,
}

async fn serve(
    mut session: Session,
    mut messages: actix_ws::AggregatedMessageStream,
    mut pieces: mpsc::Receiver<Bytes>,
    stored: Vec<Found>,
    view: View,
) {
    let mut events = Events::default();
    let mut ping = interval(PING_EVERY);
    let first = Frame { streams: streams(&stored, view.categorize), dropped_entries: Vec::new() };
    let mut sent = if stored.is_empty() { Ok(()) } else { send(&mut session, &first).await };
    while sent.is_ok() {
        sent = tokio::select! {
            piece = pieces.recv() => match piece.map(|piece| events.push(&piece)) {
                Some(Ok(events)) => match frame(&events, &view) {
                    Some(frame) => send(&mut session, &frame).await,
                    None => Ok(()),
                },
                Some(Err(_)) | None => break, // shutting down
            },
            message = messages.recv() => match message {
                Some(Ok(AggregatedMessage::Ping(bytes))) => session.pong(&bytes).await,
                Some(Ok(AggregatedMessage::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => Ok(()),
            },
            _ = ping.tick() => session.ping(b"").await,
        };
    }
    // Closing fails if the client is gone already.
    let _ = session.close(None).await;
}

async fn send(session: &mut Session, frame: &Frame) -> Result<(), Closed> {
    // Cannot fail: a frame consists of maps and strings.
    session.text(serde_json::to_string(frame).unwrap_or_default()).await
}

/// The frame for these events; `None` if there is nothing to send.
fn frame(events: &[Event], view: &View) -> Option<Frame> {
    let records = events.iter().filter(|event| event.name == "record");
    let found: Vec<Found> = records.filter_map(|event| found(&event.data)).collect();
    let new = found.iter().filter(|found| !view.seen.contains(&found.id));
    let streams = streams(new, view.categorize);
    let lost = events.iter().filter(|event| matches!(&*event.name, "dropped" | "gap"));
    let dropped_entries: Vec<Dropped> = lost.map(dropped).collect();
    let is_empty = streams.is_empty() && dropped_entries.is_empty();
    (!is_empty).then_some(Frame { streams, dropped_entries })
}

fn found(data: &str) -> Option<Found> {
    let record: TailRecord = serde_json::from_str(data).ok()?;
    Some(Found {
        id: record.id.and_then(|id| id.parse().ok()).unwrap_or(-1),
        ts_us: timestamp::parse(&record.ts)?,
        severity: Severity::from_number(record.severity)?,
        service: record.service,
        host: record.host,
        message: record.message,
        attributes: record.attributes.get().to_owned(),
    })
}

fn dropped(event: &Event) -> Dropped {
    let data: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
    let number = data["dropped"].as_u64().or(data["missing"].as_u64());
    let number = number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
    Dropped {
        labels: Labels::from([(event.name.clone(), number)]),
        timestamp: (i128::from(clock::wall_us()) * 1_000).to_string(),
    }
}
