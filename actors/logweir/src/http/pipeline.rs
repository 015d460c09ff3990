//! `GET /api/v1/pipeline`: every processor with its status. A process with a pipeline of its own reports itself.

use std::sync::Arc;

use actix_web::web;
use serde::Serialize;

use super::answer::Answer;
use super::error_responses::{STATUS, StatusErrors};
use super::shared::Shared;
use super::status::Status;
use crate::gateway::Processor;

#[derive(Serialize, utoipa::ToSchema)]
struct Pipeline<T> {
    processors: T,
}

/// Lists every processor with its status.
#[utoipa::path(
    get,
    tag = STATUS,
    path = "/api/v1/pipeline",
    responses((status = 200, description = "Every processor with its status.", body = Pipeline<Vec<Processor>>), StatusErrors)
)]
pub async fn pipeline(shared: web::Data<Shared>) -> Answer {
    let processors = match &shared.gateway {
        Some(gateway) => gateway.statuses().await,
        None => Arc::new(vec![this_process(&shared)]),
    };
    Answer::json(200, &Pipeline { processors: &*processors })
}

fn this_process(shared: &Shared) -> Processor {
    let (status, error) = match serde_json::to_value(Status::of(shared)) {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Processor {
        name: shared.instance.clone(),
        address: Some(shared.config.http.listen),
        ok: error.is_none(),
        error,
        status,
        breaker: None,
    }
}
