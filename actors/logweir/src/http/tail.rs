//! `GET /api/v1/tail`: durable records as server-sent events, as they arrive.
//!
//! `event: record` has as its `id` the token to resume after it, `event: dropped` the number of records that the client
//! missed, and `event: gap` marks a token whose records are no longer available. A gateway merges the streams of all
//! processors.

use std::convert::Infallible;
use std::sync::Arc;

use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;

use super::answer::{Answer, HttpError};
use super::api::query_parameters::QueryParameters;
use super::error_responses::{LIVE_TAIL, LiveTailErrors};
use super::shared::Shared;
use crate::tail::{Matches, TailRejection};
use logweir_query::QueryText;

/// Streams durable records as they arrive.
#[utoipa::path(
    get,
    tag = LIVE_TAIL,
    path = "/api/v1/tail",
    params(
        ("query" = Option<String>, Query, description = "Filter in the query language; default all records."),
        ("last_event_id" = Option<String>, Query, description = "Id of the last event received, to resume after it; default the current end of the stream."),
        ("Last-Event-ID" = Option<String>, Header, description = "The same, as sent automatically by browsers; takes precedence over the parameter."),
    ),
    responses(
        (status = 200, description = "Endless stream of server-sent events: `record`; `dropped`, with the number of records missed; `gap`, if the records after the given id are no longer available."
            , content((String = "text/event-stream"))),
        LiveTailErrors,
    )
)]
pub async fn tail(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let mut parameters = QueryParameters::of(&request)?;
    let query = parameters.text("query")?;
    // Used by a gateway on behalf of Grafana.
    let query_text =
        parameters.text("logql")?.map(QueryText::LogQl).unwrap_or(QueryText::Query(query.unwrap_or_default()));
    let token = parameters.text("last_event_id")?;
    parameters.finish()?;
    // The header, which a browser updates itself, is newer than the parameter that the web UI put into the URL.
    let header = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let token = header.filter(|header| !header.is_empty()).or(token.as_deref());
    let pieces = subscribe(&shared, &query_text, token)?;
    let pieces = stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    let answer = Answer::stream("text/event-stream; charset=utf-8", pieces);
    // Proxies that buffer a response would delay the events.
    Ok(answer.with_header("Cache-Control", "no-store").with_header("X-Accel-Buffering", "no"))
}

/// Starts a stream of server-sent events.
pub fn subscribe(
    shared: &Shared,
    query_text: &QueryText,
    token: Option<&str>,
) -> Result<mpsc::Receiver<Bytes>, HttpError> {
    let filter = query_text.filter()?;
    match &shared.gateway {
        Some(gateway) => {
            gateway.tail(query_text, token, shared.drain.clone()).ok_or(TailRejection::TooMany).map_err(tail_error)
        }
        None => {
            let matches: Matches = Arc::new(move |record| filter.matches(record));
            shared.running()?.tail.subscribe_sse(matches, token).map_err(tail_error)
        }
    }
}

fn tail_error(rejection: TailRejection) -> HttpError {
    match rejection {
        TailRejection::TooMany => HttpError::new(
            429,
            "too_many_tails",
            "too many live tails: tail.clients_max are open; close one, or raise the limit",
        ),
        TailRejection::Draining => {
            HttpError::new(503, "draining", "this process is shutting down: reconnect to another one").and_close()
        }
        TailRejection::BadToken => HttpError::new(
            400,
            "bad_last_event_id",
            "invalid Last-Event-ID: expected the id of an event from this endpoint; omit it to start at the end",
        ),
    }
}
