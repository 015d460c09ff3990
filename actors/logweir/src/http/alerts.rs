//! `GET /api/v1/alerts`: the state of every alert. A gateway lists those of each processor, with its name: each
//! processor evaluates the records that pass through itself.

use actix_web::web;
use serde::Serialize;

use super::answer::{Answer, HttpError};
use super::error_responses::{STATUS, StatusErrors};
use super::shared::Shared;
use crate::alerts::Status;

#[derive(Serialize, utoipa::ToSchema)]
struct Alerts<T> {
    alerts: Vec<T>,
}

/// Lists the state of every alert.
#[utoipa::path(
    get,
    tag = STATUS,
    path = "/api/v1/alerts",
    responses((status = 200, description = "State of every alert; on a gateway, of the alerts of every processor.", body = Alerts<Status>), StatusErrors)
)]
pub async fn alerts(shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    Ok(match &shared.gateway {
        Some(gateway) => Answer::json(200, &Alerts { alerts: gateway.alerts().await }),
        None => Answer::json(200, &Alerts { alerts: shared.running()?.alerts.alerts() }),
    })
}
