//! `GET /api/v1/facets`: the most frequent values of fields.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::super::described::{READ, Read};
use super::asked::{Asked, bad};
use crate::query::facets::Facet;

/// Fields that one request may ask for.
const FIELDS_MAX: usize = 32;

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Facets)]
struct Body {
    facets: Vec<Facet>,
    sampled: Option<u64>,
}

/// The handler.
#[utoipa::path(
    get,
    tag = READ,
    path = "/api/v1/facets",
    params(
        ("query" = Option<String>, Query, description = "which records, in the query language; all of them without it"),
        ("start" = Option<String>, Query, description = "RFC 3339, a number since 1970 (s, ms, us, ns), now, now-15m or -15m; an hour before end"),
        ("end" = Option<String>, Query, description = "the moment behind the last, in the same forms; now"),
        ("fields" = Option<String>, Query, description = "names with commas; severity,service,host"),
        ("limit" = Option<usize>, Query, description = "values of each field; 10"),
    ),
    responses(
        (status = 200, description = "the most frequent values of fields", body = Body),
        Read,
    )
)]
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
