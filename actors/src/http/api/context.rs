//! `GET /api/v1/context`: what the same service on the same host logged around one record.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::asked::{Asked, bad};
use super::record::RecordBody;
use crate::query::page::Position;

#[derive(Serialize)]
struct Body<'a> {
    before: Vec<RecordBody<'a>>,
    record: RecordBody<'a>,
    after: Vec<RecordBody<'a>>,
}

/// The handler.
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
