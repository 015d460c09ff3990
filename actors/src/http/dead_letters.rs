//! `/api/v1/dead-letters`: what the database would not take, to look at, to try again, to let go.
//!
//! - Whoever changes something does so alone, with a token for administration, and not by a page of somebody else's that a
//!   browser has open too.
//! - Each request tries so many letters at most, and says whether there are more: none runs for ever.

use actix_web::web::{self, Bytes, ServiceConfig};
use actix_web::{FromRequest as _, HttpRequest};
use logweir_engine::clock;
use serde::Serialize;
use tokio::sync::SemaphorePermit;

use super::answer::{Answer, ErrorBody, Refused};
use super::api::asked::Asked;
use super::described::{Changed, LETTERS, Letters as LettersRefused};
use super::{Shared, only};
use crate::config::keys::Unit;
use crate::config::value::quantity;
use crate::dead_letters::{Replayed, replay_all, replay_one};
use crate::store::{DeadLetter, StoreError, time_text};

/// Letters in one answer at most.
const LIMIT_MAX: u32 = 1000;
/// Letters that one request tries at most.
const TRIES_MAX: usize = 1000;

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    routes
        .service(only("/api/v1/dead-letters", &["GET"]).route(web::get().to(list)))
        .service(only("/api/v1/dead-letters/replay", &["POST"]).route(web::post().to(replay)))
        .service(only("/api/v1/dead-letters/purge", &["POST"]).route(web::post().to(purge)));
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = DeadLetters)]
struct Letters<'a> {
    dead_letters: Vec<Letter<'a>>,
    more: bool,
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = DeadLetter)]
struct Letter<'a> {
    /// Text: it has more digits than a double holds.
    id: String,
    at: String,
    #[schema(value_type = String)]
    writer: uuid::Uuid,
    lane: u16,
    seq: String,
    row: u32,
    sqlstate: &'a str,
    reason: &'a str,
    /// The record as JSON text, which may be what was wrong with it.
    raw: &'a str,
}

impl<'a> From<&'a DeadLetter> for Letter<'a> {
    fn from(letter: &'a DeadLetter) -> Self {
        Self {
            id: letter.id.to_string(),
            at: time_text(letter.at_us),
            writer: letter.writer,
            lane: letter.lane,
            seq: letter.seq.to_string(),
            row: letter.row,
            sqlstate: &letter.sqlstate,
            reason: &letter.reason,
            raw: &letter.raw,
        }
    }
}

/// The oldest ones.
#[utoipa::path(
    get,
    tag = LETTERS,
    path = "/api/v1/dead-letters",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "100")),
    responses((status = 200, description = "records that the database would not take", body = Letters<'_>), LettersRefused)
)]
pub(super) async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let limit = asked.number("limit", 100, 1, LIMIT_MAX)?;
    asked.finish()?;
    let letters = shared.letters()?.dead_letters(limit + 1).await.map_err(refusal)?;
    let more = letters.len() > limit as usize;
    let dead_letters = letters.iter().take(limit as usize).map(Letter::from).collect();
    Ok(Answer::json(200, &Letters { dead_letters, more }))
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Replayed)]
struct ReplayBody {
    replayed: u64,
    failed: Vec<StillDead>,
    more: bool,
}

#[derive(Serialize, utoipa::ToSchema)]
struct StillDead {
    id: String,
    reason: String,
}

/// `?id=` for one, with its mended record as the body where it is to be another; `?all=true` for every one.
#[utoipa::path(
    post,
    tag = LETTERS,
    path = "/api/v1/dead-letters/replay",
    params(
        ("id" = Option<String>, Query, description = "the one to try again"),
        ("all" = Option<bool>, Query, description = "true: the thousand oldest of those that the database refused"),
    ),
    request_body(content = Option<Object>, content_type = "application/json", description = "with id: the mended record, a JSON object such as `raw` in the list; as it was without it"),
    responses(
        (status = 200, description = "how many are stored now, and which were refused again", body = ReplayBody),
        (status = 413, description = "the mended record is too large", body = ErrorBody<'_>),
        Changed,
    )
)]
pub(super) async fn replay(
    request: HttpRequest,
    shared: web::Data<Shared>,
    body: web::Payload,
) -> Result<Answer, Refused> {
    let _turn = turn(&request, &shared)?;
    let mut asked = Asked::of(&request)?;
    let (id, all) = (asked.text("id")?, asked.word("all", false, &[("true", true), ("false", false)])?);
    asked.finish()?;
    let store = shared.letters()?;
    let replayed = match (id, all) {
        (Some(id), false) => {
            let id = id.parse().map_err(|_| bad("id is a whole number, as the list has it"))?;
            let raw = mended(&request, body).await?;
            replay_one(store.as_ref(), id, raw.as_deref()).await
        }
        (None, true) => match mended(&request, body).await? {
            None => replay_all(store.as_ref(), TRIES_MAX).await,
            Some(_) => return Err(bad("a mended record goes with its id")),
        },
        _ => return Err(bad("say which: id=ID or all=true")),
    };
    let Replayed { done, failed, more } = replayed.map_err(refusal)?;
    tracing::info!(replayed = done, failed = failed.len(), "dead letters were tried again");
    let failed = failed.into_iter().map(|(id, reason)| StillDead { id: id.to_string(), reason }).collect();
    Ok(Answer::json(200, &ReplayBody { replayed: done, failed, more }))
}

/// The record that a person has mended; none where the body is empty.
async fn mended(request: &HttpRequest, body: web::Payload) -> Result<Option<String>, Refused> {
    let mut payload = body.into_inner();
    let body = Bytes::from_request(request, &mut payload).await;
    let body =
        body.map_err(|error| Refused::new(413, "body_too_large", format!("the record cannot be read: {error}")))?;
    if body.is_empty() {
        return Ok(None);
    }
    let record = serde_json::from_slice::<serde_json::Value>(&body).ok().filter(serde_json::Value::is_object);
    record
        .map(|record| Some(record.to_string()))
        .ok_or_else(|| bad("the body is no JSON object, such as `raw` in the list"))
}

#[derive(Serialize, utoipa::ToSchema)]
struct Purged {
    purged: u64,
}

/// `?older_than=7d`; `0s` for all.
#[utoipa::path(
    post,
    tag = LETTERS,
    path = "/api/v1/dead-letters/purge",
    params(("older_than" = String, Query, description = "an age such as 7d or 12h; 0s for all")),
    responses((status = 200, description = "how many are gone", body = Purged), Changed)
)]
pub(super) async fn purge(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let _turn = turn(&request, &shared)?;
    let mut asked = Asked::of(&request)?;
    let age = asked.text("older_than")?.unwrap_or_default();
    asked.finish()?;
    // Without a unit, 7 would be 7 ms.
    let age_us = quantity(&age, Unit::Millis).filter(|_| !age.ends_with(|c: char| c.is_ascii_digit()));
    let age_us = age_us.and_then(|millis| i64::try_from(millis).ok()?.checked_mul(1000));
    let age_us = age_us.ok_or_else(|| bad("older_than must be an age such as 7d, 12h or 0s"))?;
    let purged =
        shared.letters()?.purge_dead_letters(clock::wall_us().saturating_sub(age_us)).await.map_err(refusal)?;
    tracing::info!(purged, "dead letters were removed");
    Ok(Answer::json(200, &Purged { purged }))
}

/// Who may change something now: one at a time, and no other site's page.
fn turn<'a>(request: &HttpRequest, shared: &'a Shared) -> Result<SemaphorePermit<'a>, Refused> {
    let site = request.headers().get("sec-fetch-site").map(|value| value.as_bytes());
    if !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Err(Refused::new(403, "cross_site", "another site's page may not change dead letters"));
    }
    shared.letters_turn.try_acquire().map_err(|_| {
        Refused::new(429, "in_progress", "somebody else is replaying or removing dead letters: try again after that")
    })
}

fn bad(detail: &str) -> Refused {
    Refused::new(400, "bad_parameter", detail)
}

fn refusal(error: StoreError) -> Refused {
    match &error {
        StoreError::Transient(_) => Refused::new(503, "database_unavailable", error.to_string()),
        _ => Refused::new(500, "store_failed", error.to_string()),
    }
}
