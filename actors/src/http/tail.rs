//! `GET /api/v1/tail`: durable records as server-sent events, as they come.
//!
//! `event: record` with the token to go on after it as its `id`, `event: dropped` with how many records went past unseen,
//! `event: gap` where a token stands for what is here no more. A gateway sends what all processors send.

use std::convert::Infallible;
use std::sync::Arc;

use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;

use super::Shared;
use super::answer::{Answer, Refused};
use super::api::asked::Asked;
use super::described::{LIVE, Live};
use crate::query::Wanted;
use crate::tail::{Matches, TailRejection};

/// The handler.
#[utoipa::path(
    get,
    tag = LIVE,
    path = "/api/v1/tail",
    params(
        ("query" = Option<String>, Query, description = "which records, in the query language; all of them without it"),
        ("last_event_id" = Option<String>, Query, description = "where to go on: the id of the last event that came; now without it"),
        ("Last-Event-ID" = Option<String>, Header, description = "the same, as browsers send it by themselves; it comes before the parameter"),
    ),
    responses(
        (status = 200, description = "server-sent events without end: `record`, `dropped` with how many went past unseen, `gap` where what the token stands for is kept no more"
            , content((String = "text/event-stream"))),
        Live,
    )
)]
pub async fn tail(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let query = asked.text("query")?;
    // What a gateway asks for Grafana.
    let wanted = asked.text("logql")?.map(Wanted::LogQl).unwrap_or(Wanted::Query(query.unwrap_or_default()));
    let token = asked.text("last_event_id")?;
    asked.finish()?;
    // What a browser says by itself is newer than what the page had put into the address.
    let header = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let token = header.filter(|header| !header.is_empty()).or(token.as_deref());
    let pieces = subscribe(&shared, &wanted, token)?;
    let pieces = stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    let answer = Answer::stream("text/event-stream; charset=utf-8", pieces);
    // Proxies that gather an answer before they pass it on would make it anything but live.
    Ok(answer.with_header("Cache-Control", "no-store").with_header("X-Accel-Buffering", "no"))
}

/// Begins a stream of server-sent events.
pub fn subscribe(shared: &Shared, wanted: &Wanted, token: Option<&str>) -> Result<mpsc::Receiver<Bytes>, Refused> {
    let filter = wanted.filter()?;
    match &shared.gateway {
        Some(gateway) => {
            gateway.tail(wanted, token, shared.drain.clone()).ok_or(TailRejection::TooMany).map_err(refusal)
        }
        None => {
            let matches: Matches = Arc::new(move |record| filter.matches(record));
            shared.running()?.tail.subscribe(matches, token).map_err(refusal)
        }
    }
}

fn refusal(why: TailRejection) -> Refused {
    match why {
        TailRejection::TooMany => Refused::new(
            429,
            "too_many_tails",
            "there are as many live tails as tail.clients_max allows: close one, or allow more",
        ),
        TailRejection::Draining => {
            Refused::new(503, "draining", "this process is shutting down: ask another one").and_close()
        }
        TailRejection::BadToken => Refused::new(
            400,
            "bad_last_event_id",
            "Last-Event-ID is not one that this endpoint has given out: leave it out to begin now",
        ),
    }
}
