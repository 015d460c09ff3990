//! `GET /api/v1/status`: the complete state of this process, for users and scripts.

use actix_web::web;
use logweir_engine::drain::Phase;
use logweir_engine::journal::JournalStats;
use logweir_engine::observe::Observation;
use serde::Serialize;

use super::answer::Answer;
use super::error_responses::{STATUS, StatusErrors};
use super::shared::Shared;
use crate::config::Role;
use crate::progress::Snapshot;

/// The state of this process.
#[derive(Serialize)]
pub struct Status<'a> {
    version: &'static str,
    role: Role,
    instance: &'a str,
    uptime_s: u64,
    phase: Phase,
    writer: Option<uuid::Uuid>,
    run: Option<uuid::Uuid>,
    /// `batch.linger_ms`: a gateway knows by it how long a record may wait for others of its batch.
    linger_ms: u64,
    #[serde(flatten)]
    progress: Snapshot,
    journal: Option<JournalStats>,
    actors: Vec<Observation>,
}

impl<'a> Status<'a> {
    /// The current state.
    pub fn of(shared: &'a Shared) -> Self {
        let running = shared.running().ok();
        let tails = running.map(|running| running.journal.lanes()).unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            role: shared.config.role,
            instance: &shared.instance,
            uptime_s: shared.started.elapsed().as_secs(),
            phase: shared.drain.phase(),
            writer: running.map(|running| running.writer),
            run: running.map(|running| running.run),
            linger_ms: shared.config.batch.linger_ms,
            progress: shared.progress.snapshot(&tails),
            journal: running.map(|running| running.journal.stats()),
            actors: running.map(|running| running.observer.observe()).unwrap_or_default(),
        }
    }
}

/// Reports the state of this process.
#[utoipa::path(
    get,
    tag = STATUS,
    path = "/api/v1/status",
    responses((status = 200, description = "State of this process: accounting per lane, journal, circuit breakers and actors.", body = Object), StatusErrors)
)]
pub async fn status(shared: web::Data<Shared>) -> Answer {
    Answer::json(200, &Status::of(&shared))
}
