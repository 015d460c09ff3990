//! `GET /api/v1/status`: all that is known of this process, for people and scripts.

use actix_web::web;
use logweir_engine::drain::Phase;
use logweir_engine::journal::JournalStats;
use logweir_engine::observe::Observation;
use serde::Serialize;

use super::Shared;
use super::answer::Answer;
use super::described::{STATE, Told};
use crate::config::Role;
use crate::progress::Snapshot;

/// What is known.
#[derive(Serialize)]
pub struct Status<'a> {
    version: &'static str,
    role: Role,
    instance: &'a str,
    uptime_s: u64,
    phase: Phase,
    writer: Option<uuid::Uuid>,
    #[serde(flatten)]
    progress: Snapshot,
    journal: Option<JournalStats>,
    actors: Vec<Observation>,
}

impl<'a> Status<'a> {
    /// Now.
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
            progress: shared.progress.snapshot(&tails),
            journal: running.map(|running| running.journal.stats()),
            actors: running.map(|running| running.observer.observe()).unwrap_or_default(),
        }
    }
}

/// The handler.
#[utoipa::path(
    get,
    tag = STATE,
    path = "/api/v1/status",
    responses((status = 200, description = "this process: accounting per lane, journal, breakers, every actor", body = Object), Told)
)]
pub async fn status(shared: web::Data<Shared>) -> Answer {
    Answer::json(200, &Status::of(&shared))
}
