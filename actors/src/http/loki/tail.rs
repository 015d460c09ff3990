//! `tail`: records over a websocket as they come, after the newest that are stored.
//!
//! - The stream is that of `/api/v1/tail`, in other clothes: what went past unseen is in `dropped_entries`, as one entry whose
//!   labels say how much.
//! - It is begun before the store is asked, so that nothing falls between; what comes twice by that is left out.

use std::collections::HashSet;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{AggregatedMessage, Closed, Session};
use bytes::Bytes;
use jiff::Timestamp;
use logweir_engine::clock;
use logweir_engine::record::Severity;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::interval;

use super::super::Shared;
use super::super::answer::Refused;
use super::super::described::{LOKI, LokiRead};
use super::super::tail::subscribe;
use super::asked::{Asked, bad};
use super::query::whole;
use super::refusal;
use super::streams::{Labels, Stream, apart, streams};
use crate::query::Wanted;
use crate::query::page::{Direction, Found};
use crate::search::PageRequest;
use crate::sse::{Event, Events};

/// Who does not answer is not there.
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

/// A record as the event tells it.
#[derive(Deserialize)]
struct Told {
    id: Option<String>,
    ts: String,
    severity: u8,
    service: String,
    host: String,
    message: String,
    attributes: Box<RawValue>,
}

/// `GET /loki/api/v1/tail`
#[utoipa::path(
    get,
    tag = LOKI,
    path = "/loki/api/v1/tail",
    params(
        ("query" = Option<String>, Query, description = "LogQL: a selector with filters; every record without it"),
        ("start" = Option<String>, Query, description = "stored records from here on come first; an hour ago"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 5000, description = "so many of them at most; 100"),
    ),
    responses((status = 101, description = "a websocket: records as they come"), LokiRead)
)]
pub(super) async fn tail(request: HttpRequest, payload: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    match begin(&request, payload, &shared).await {
        Ok(response) => response,
        Err(refused) => refusal(refused.counted(), request.headers()).into(),
    }
}

async fn begin(request: &HttpRequest, payload: web::Payload, shared: &Shared) -> Result<HttpResponse, Refused> {
    let asked = Asked::of(request, &Bytes::new())?;
    let wanted = Wanted::LogQl(asked.text("query").unwrap_or("{}").to_owned());
    let (range, limit) = (whole(asked.range()?), asked.limit()?);
    let pieces = subscribe(shared, &wanted, None)?;
    let before = PageRequest { filter: wanted.filter()?, range, direction: Direction::Backward, after: None, limit };
    let mut stored = shared.searcher()?.page(&before).await?.records;
    stored.reverse();
    let (response, session, messages) =
        actix_ws::handle(request, payload).map_err(|error| bad(format!("this is for websockets: {error}")))?;
    let view = View { apart: apart(request.headers()), seen: stored.iter().map(|found| found.id).collect() };
    actix_web::rt::spawn(serve(session, messages.aggregate_continuations(), pieces, stored, view));
    Ok(response)
}

/// How records are shown, and which have been.
struct View {
    apart: bool,
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
    let first = Frame { streams: streams(&stored, view.apart), dropped_entries: Vec::new() };
    let mut sent = if stored.is_empty() { Ok(()) } else { send(&mut session, &first).await };
    while sent.is_ok() {
        sent = tokio::select! {
            piece = pieces.recv() => match piece.map(|piece| events.push(&piece)) {
                Some(Ok(events)) => match frame(&events, &view) {
                    Some(frame) => send(&mut session, &frame).await,
                    None => Ok(()),
                },
                Some(Err(_)) | None => break, // the process is stopping
            },
            message = messages.recv() => match message {
                Some(Ok(AggregatedMessage::Ping(bytes))) => session.pong(&bytes).await,
                Some(Ok(AggregatedMessage::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => Ok(()),
            },
            _ = ping.tick() => session.ping(b"").await,
        };
    }
    // Whoever is gone is told nothing.
    let _ = session.close(None).await;
}

async fn send(session: &mut Session, frame: &Frame) -> Result<(), Closed> {
    // A frame is made of maps and texts.
    session.text(serde_json::to_string(frame).unwrap_or_default()).await
}

/// What these events tell; none where it is nothing.
fn frame(events: &[Event], view: &View) -> Option<Frame> {
    let records = events.iter().filter(|event| event.name == "record");
    let found: Vec<Found> = records.filter_map(|event| found(&event.data)).collect();
    let new = found.iter().filter(|found| !view.seen.contains(&found.id));
    let streams = streams(new, view.apart);
    let lost = events.iter().filter(|event| matches!(&*event.name, "dropped" | "gap"));
    let dropped_entries: Vec<Dropped> = lost.map(dropped).collect();
    let nothing = streams.is_empty() && dropped_entries.is_empty();
    (!nothing).then_some(Frame { streams, dropped_entries })
}

fn found(data: &str) -> Option<Found> {
    let told: Told = serde_json::from_str(data).ok()?;
    Some(Found {
        id: told.id.and_then(|id| id.parse().ok()).unwrap_or(-1),
        ts_us: told.ts.parse::<Timestamp>().ok()?.as_microsecond(),
        severity: Severity::from_number(told.severity)?,
        service: told.service,
        host: told.host,
        message: told.message,
        attributes: told.attributes.get().to_owned(),
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
