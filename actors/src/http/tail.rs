//! `GET /api/v1/tail`: durable records as server-sent events, as they come.
//!
//! `event: record` with the token to go on after it as its `id`, `event: dropped` with how many records went past unseen,
//! `event: gap` where a token stands for what is here no more.

use std::convert::Infallible;
use std::sync::Arc;

use actix_web::{HttpRequest, web};
use futures_util::stream;
use serde::Deserialize;

use super::Shared;
use super::answer::{Answer, Refused};
use crate::query;
use crate::tail::{Matches, Unheard};

/// What may be asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    #[serde(default)]
    query: String,
    last_event_id: Option<String>,
}

/// The handler.
pub async fn tail(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    stream_of_records(&shared, &request).unwrap_or_else(|refused| refused.counted().into())
}

fn stream_of_records(shared: &Shared, request: &HttpRequest) -> Result<Answer, Refused> {
    let asked = web::Query::<Parameters>::from_query(request.query_string())
        .map_err(|error| Refused::new(400, "bad_parameter", error.to_string()))?;
    // What a browser says by itself is newer than what the page had put into the address.
    let header = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let token = header.or(asked.last_event_id.as_deref()).filter(|token| !token.is_empty());
    let filter = query::parse(&asked.query)?;
    let pieces = match &shared.gateway {
        Some(gateway) => {
            gateway.tail(&asked.query, token, shared.drain.clone()).ok_or(Unheard::TooMany).map_err(refusal)?
        }
        None => {
            let matches: Matches = Arc::new(move |record| filter.matches(record));
            shared.running()?.tail.subscribe(matches, token).map_err(refusal)?
        }
    };
    let pieces = stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    let answer = Answer::stream("text/event-stream; charset=utf-8", pieces);
    // Proxies that gather an answer before they pass it on would make it anything but live.
    Ok(answer.with_header("Cache-Control", "no-store").with_header("X-Accel-Buffering", "no"))
}

fn refusal(why: Unheard) -> Refused {
    match why {
        Unheard::TooMany => Refused::new(
            429,
            "too_many_tails",
            "there are as many live tails as tail.clients_max allows: close one, or allow more",
        ),
        Unheard::Draining => {
            Refused::new(503, "draining", "this process is shutting down: ask another one").and_close()
        }
        Unheard::BadToken => Refused::new(
            400,
            "bad_last_event_id",
            "Last-Event-ID is not one that this endpoint has given out: leave it out to begin now",
        ),
    }
}
