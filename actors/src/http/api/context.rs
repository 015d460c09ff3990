//! `GET /api/v1/context`: what the same service on the same host logged around one record.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::super::described::{READ, Read};
use super::asked::{Asked, bad};
use super::record::RecordBody;
use crate::query::page::Position;

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Context)]
struct Body<'a> {
    #[schema(value_type = Vec<super::record::Body<'a>>)]
    before: Vec<RecordBody<'a>>,
    #[schema(value_type = super::record::Body<'a>)]
    record: RecordBody<'a>,
    #[schema(value_type = Vec<super::record::Body<'a>>)]
    after: Vec<RecordBody<'a>>,
}

/// The handler.
#[utoipa::path(
    get,
    tag = READ,
    path = "/api/v1/context",
    params(
        ("id" = String, Query, description = "the record's id"),
        ("ts" = String, Query, description = "the record's ts"),
        ("before" = Option<usize>, Query, description = "records before it; 10"),
        ("after" = Option<usize>, Query, description = "records after it; 10"),
    ),
    responses(
        (status = 200, description = "what the same service on the same host logged around a record", body = Body<'_>),
        Read,
    )
)]
pub async fn context(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let id = asked.text("id")?.and_then(|id| id.parse().ok());
    let ts_us = asked.moment("ts")?;
    let (before, after) = (asked.number("before", 10, 0, 1_000)?, asked.number("after", 10, 0, 1_000)?);
    asked.finish()?;
    let (Some(id), Some(ts_us)) = (id, ts_us) else {
        return Err(bad("a record is named by its id and its ts, as they stand in the record".to_owned()));
    };
    let found = shared.searcher()?.context(Position { ts_us, id }, before, after).await?;
    let Some(context) = found else {
        return Err(Refused::new(404, "no_such_record", "there is no record with this id and ts (any more)"));
    };
    Ok(Answer::json(
        200,
        &Body {
            before: context.before.iter().map(RecordBody).collect(),
            record: RecordBody(&context.record),
            after: context.after.iter().map(RecordBody).collect(),
        },
    ))
}
