//! `/api/v1/dead-letters`: lists, replays and purges records that the database rejected.
//!
//! - Changes are serialized, require an admin token, and are rejected for requests from another site that is open in
//!   the same browser.
//! - A request retries a limited number of dead letters and reports whether there are more, so none runs without end.

use actix_web::web::{self, Bytes, ServiceConfig};
use actix_web::{FromRequest as _, HttpRequest};
use logweir_engine::clock;
use serde::Serialize;
use tokio::sync::SemaphorePermit;

use super::answer::{Answer, ErrorBody, HttpError};
use super::api::query_parameters::QueryParameters;
use super::error_responses::{DEAD_LETTERS, DeadLetterChangeErrors, DeadLetterErrors};
use super::routing::with_methods;
use super::shared::Shared;
use crate::config::{Unit, quantity};
use logweir_store::StoreError;
use logweir_store::replay::{DeadLetterJson, Replayed, replay_all, replay_one};

/// Maximum number of dead letters in one response.
const LIMIT_MAX: u32 = 1000;
/// Maximum number of dead letters that one request retries.
const REPLAYS_MAX: usize = 1000;

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    routes
        .service(with_methods("/api/v1/dead-letters", &["GET"]).route(web::get().to(list)))
        .service(with_methods("/api/v1/dead-letters/replay", &["POST"]).route(web::post().to(replay)))
        .service(with_methods("/api/v1/dead-letters/purge", &["POST"]).route(web::post().to(purge)));
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = DeadLetters)]
struct DeadLetterList<'a> {
    dead_letters: Vec<DeadLetterJson<'a>>,
    more: bool,
}

/// Lists the latest dead letters.
#[utoipa::path(
    get,
    tag = DEAD_LETTERS,
    path = "/api/v1/dead-letters",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Maximum number of dead letters; default 100.")),
    responses((status = 200, description = "Dead letters: records that the database rejected, latest first.", body = DeadLetterList<'_>), DeadLetterErrors)
)]
pub(super) async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let mut parameters = QueryParameters::of(&request)?;
    let limit = parameters.number("limit", 100, 1, LIMIT_MAX)?;
    parameters.finish()?;
    let letters = shared.dead_letter_store()?.dead_letters(limit + 1).await.map_err(store_error)?;
    let more = letters.len() > limit as usize;
    let dead_letters = letters.iter().take(limit as usize).map(DeadLetterJson::from).collect();
    Ok(Answer::json(200, &DeadLetterList { dead_letters, more }))
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Replayed)]
struct ReplayBody {
    replayed: u64,
    failed: Vec<FailedReplay>,
    more: bool,
}

#[derive(Serialize, utoipa::ToSchema)]
struct FailedReplay {
    id: String,
    reason: String,
}

/// Replays dead letters: one, optionally with an edited record, or all of them.
#[utoipa::path(
    post,
    tag = DEAD_LETTERS,
    path = "/api/v1/dead-letters/replay",
    params(
        ("id" = Option<String>, Query, description = "The dead letter to replay."),
        ("all" = Option<bool>, Query, description = "true replays up to 1000 dead letters, latest first."),
    ),
    request_body(content = Option<Object>, content_type = "application/json", description = "With `id`: the edited record, a JSON object such as `record` in the list. Without a body, the original record is replayed."),
    responses(
        (status = 200, description = "Number of replayed records, and those that the database rejected again.", body = ReplayBody),
        (status = 413, description = "The edited record is too large.", body = ErrorBody<'_>),
        DeadLetterChangeErrors,
    )
)]
pub(super) async fn replay(
    request: HttpRequest,
    shared: web::Data<Shared>,
    body: web::Payload,
) -> Result<Answer, HttpError> {
    let _lock = lock_changes(&request, &shared)?;
    let mut parameters = QueryParameters::of(&request)?;
    let (id, all) = (parameters.text("id")?, parameters.one_of("all", false, &[("true", true), ("false", false)])?);
    parameters.finish()?;
    let store = shared.dead_letter_store()?;
    let replayed = match (id, all) {
        (Some(id), false) => {
            let id = id.parse().map_err(|_| {
                bad_parameter("invalid id: expected the id of a dead letter, as listed by GET /api/v1/dead-letters")
            })?;
            let raw = edited_record(&request, body).await?;
            replay_one(store.as_ref(), id, raw.as_deref()).await
        }
        (None, true) => match edited_record(&request, body).await? {
            None => replay_all(store.as_ref(), REPLAYS_MAX).await,
            Some(_) => return Err(bad_parameter("an edited record requires its id: expected id=ID")),
        },
        _ => return Err(bad_parameter("missing parameter: expected either id=ID or all=true")),
    };
    let Replayed { done, failed, more, .. } = replayed.map_err(store_error)?;
    tracing::info!(replayed = done, failed = failed.len(), "replayed dead letters");
    let failed = failed.into_iter().map(|(id, reason)| FailedReplay { id: id.to_string(), reason }).collect();
    Ok(Answer::json(200, &ReplayBody { replayed: done, failed, more }))
}

/// The record as the user edited it; `None` if the body is empty.
async fn edited_record(request: &HttpRequest, body: web::Payload) -> Result<Option<String>, HttpError> {
    let mut payload = body.into_inner();
    let body = Bytes::from_request(request, &mut payload).await;
    let body =
        body.map_err(|error| HttpError::new(413, "body_too_large", format!("cannot read the record: {error}")))?;
    if body.is_empty() {
        return Ok(None);
    }
    let record = serde_json::from_slice::<serde_json::Value>(&body).ok().filter(serde_json::Value::is_object);
    record
        .map(|record| Some(record.to_string()))
        .ok_or_else(|| bad_parameter("invalid body: expected a JSON object such as `record` in the list"))
}

#[derive(Serialize, utoipa::ToSchema)]
struct Purged {
    purged: u64,
}

/// Deletes dead letters older than a given age.
#[utoipa::path(
    post,
    tag = DEAD_LETTERS,
    path = "/api/v1/dead-letters/purge",
    params(("older_than" = String, Query, description = "Minimum age, such as 7d or 12h; 0s deletes all.")),
    responses((status = 200, description = "Number of deleted dead letters.", body = Purged), DeadLetterChangeErrors)
)]
pub(super) async fn purge(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let _lock = lock_changes(&request, &shared)?;
    let mut parameters = QueryParameters::of(&request)?;
    let age = parameters.text("older_than")?.unwrap_or_default();
    parameters.finish()?;
    // Without a unit, 7 would mean 7 ms.
    let age_us = quantity(&age, Unit::Millis).filter(|_| !age.ends_with(|c: char| c.is_ascii_digit()));
    let age_us = age_us.and_then(|millis| i64::try_from(millis).ok()?.checked_mul(1000));
    let age_us = age_us.ok_or_else(|| {
        bad_parameter("invalid older_than: expected an age with a unit, such as 7d or 12h, or 0s for all")
    })?;
    let purged = shared
        .dead_letter_store()?
        .purge_dead_letters(clock::wall_us().saturating_sub(age_us))
        .await
        .map_err(store_error)?;
    tracing::info!(purged, "purged dead letters");
    Ok(Answer::json(200, &Purged { purged }))
}

/// Admits one change at a time, and none from another site's page.
fn lock_changes<'a>(request: &HttpRequest, shared: &'a Shared) -> Result<SemaphorePermit<'a>, HttpError> {
    let site = request.headers().get("sec-fetch-site").map(|value| value.as_bytes());
    if !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Err(HttpError::new(
            403,
            "cross_site",
            "cross-site request: dead letters can be changed only from the web UI itself, or outside of a browser",
        ));
    }
    shared.dead_letters_lock.try_acquire().map_err(|_| {
        HttpError::new(
            429,
            "in_progress",
            "another request is replaying or purging dead letters: retry when it has finished",
        )
    })
}

fn bad_parameter(detail: &str) -> HttpError {
    HttpError::new(400, "bad_parameter", detail)
}

fn store_error(error: StoreError) -> HttpError {
    match &error {
        StoreError::Transient(_) => HttpError::new(503, "database_unavailable", error.to_string()),
        _ => HttpError::new(500, "store_failed", error.to_string()),
    }
}
