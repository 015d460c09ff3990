//! `GET /api/v1/facets`: the most frequent values of fields.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::asked::{Asked, bad};
use crate::query::facets::Facet;

/// Fields that one request may ask for.
const FIELDS_MAX: usize = 32;

#[derive(Serialize)]
struct Body {
    facets: Vec<Facet>,
    sampled: Option<u64>,
}

/// The handler.
pub async fn facets(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let (filter, range, mut fields) = (asked.filter()?, asked.range()?, asked.list("fields")?);
    let limit = asked.number("limit", 10, 1, 1_000)?;
    asked.finish()?;
    if fields.is_empty() {
        fields = ["severity", "service", "host"].map(str::to_owned).into();
    }
    if fields.len() > FIELDS_MAX {
        return Err(bad(format!("fields names more than {FIELDS_MAX}")));
    }
    let sampled = shared.searcher()?.facets(&filter, range, fields, limit).await?;
    Ok(Answer::json(200, &Body { facets: sampled.value, sampled: sampled.sampled }))
}
