//! `GET /api/v1/alerts`: how every alert stands. A gateway tells those of each processor, with its name: each judges what
//! passes through itself.

use actix_web::web;
use serde::Serialize;

use super::Shared;
use super::answer::{Answer, Refused};
use super::described::{STATE, Told};
use crate::alerts::Status;

#[derive(Serialize, utoipa::ToSchema)]
struct Alerts<T> {
    alerts: Vec<T>,
}

/// The handler.
#[utoipa::path(
    get,
    tag = STATE,
    path = "/api/v1/alerts",
    responses((status = 200, description = "how every alert stands; of a gateway, those of each processor", body = Alerts<Status>), Told)
)]
pub async fn alerts(shared: web::Data<Shared>) -> Result<Answer, Refused> {
    Ok(match &shared.gateway {
        Some(gateway) => Answer::json(200, &Alerts { alerts: gateway.alerts().await }),
        None => Answer::json(200, &Alerts { alerts: shared.running()?.alerts.alerts() }),
    })
}
