//! `GET /api/v1/alerts`: how every alert stands.

use actix_web::web;
use serde::Serialize;

use super::Shared;
use super::answer::{Answer, Refused};
use crate::alerts::Status;

#[derive(Serialize)]
struct Alerts {
    alerts: Vec<Status>,
}

/// The handler.
pub async fn alerts(shared: web::Data<Shared>) -> Result<Answer, Refused> {
    Ok(Answer::json(200, &Alerts { alerts: shared.running()?.alerts.alerts() }))
}
