//! `GET /api/v1/alerts`: how every alert stands.

use actix_web::web;
use serde::Serialize;

use super::Shared;
use super::answer::Answer;
use crate::alerts::Status;

#[derive(Serialize)]
struct Alerts {
    alerts: Vec<Status>,
}

/// The handler.
pub async fn alerts(shared: web::Data<Shared>) -> Answer {
    match shared.running() {
        Ok(running) => Answer::json(200, &Alerts { alerts: running.alerts.alerts() }),
        Err(refused) => refused.into(),
    }
}
