//! `GET /api/v1/context`: records that the same service logged on the same host around one record.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::answer::{Answer, HttpError};
use super::super::error_responses::{QUERIES, QueryErrors};
use super::super::shared::Shared;
use super::query_parameters::{QueryParameters, bad_parameter};
use super::record::RecordBody;
use crate::search::Completeness;
use logweir_query::page::Position;

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Context)]
struct Body<'a> {
    #[schema(value_type = Vec<super::record::Body<'a>>)]
    before: Vec<RecordBody<'a>>,
    #[schema(value_type = super::record::Body<'a>)]
    record: RecordBody<'a>,
    #[schema(value_type = Vec<super::record::Body<'a>>)]
    after: Vec<RecordBody<'a>>,
    #[serde(flatten)]
    completeness: Completeness,
}

/// Returns the records around a record.
#[utoipa::path(
    get,
    tag = QUERIES,
    path = "/api/v1/context",
    params(
        ("id" = String, Query, description = "The `id` of the record."),
        ("ts" = String, Query, description = "The `ts` of the record."),
        ("before" = Option<usize>, Query, description = "Number of records before it; default 10."),
        ("after" = Option<usize>, Query, description = "Number of records after it; default 10."),
    ),
    responses(
        (status = 200, description = "Records that the same service logged on the same host around the given one.", body = Body<'_>),
        QueryErrors,
    )
)]
pub async fn context(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let mut parameters = QueryParameters::of(&request)?;
    let id = parameters.text("id")?.and_then(|id| id.parse().ok());
    let ts_us = parameters.time_us("ts")?;
    let (before, after) = (parameters.number("before", 10, 0, 1_000)?, parameters.number("after", 10, 0, 1_000)?);
    parameters.finish()?;
    let (Some(id), Some(ts_us)) = (id, ts_us) else {
        return Err(bad_parameter(
            "missing or invalid parameter: expected both id and ts, as they are in the record".to_owned(),
        ));
    };
    let found = shared.searcher()?.context(Position { ts_us, id }, before, after).await?;
    let Some(context) = found else {
        return Err(HttpError::new(
            404,
            "record_not_found",
            "no record has this id and ts: retention may have removed it",
        ));
    };
    Ok(Answer::json(
        200,
        &Body {
            before: context.before.iter().map(RecordBody).collect(),
            record: RecordBody(&context.record),
            after: context.after.iter().map(RecordBody).collect(),
            completeness: context.completeness,
        },
    ))
}
