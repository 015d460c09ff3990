//! `GET /api/v1/fields` and `/api/v1/services`: what can be asked for.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::super::described::{READ, Read};
use super::asked::Asked;
use crate::query::facets::NameCount;

#[derive(Serialize, utoipa::ToSchema)]
struct Fields {
    fields: Vec<NameCount>,
    sampled: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
struct Services {
    services: Vec<Service>,
}

#[derive(Serialize, utoipa::ToSchema)]
struct Service {
    name: String,
    records: u64,
}

/// The names of attributes.
#[utoipa::path(
    get,
    tag = READ,
    path = "/api/v1/fields",
    params(
        ("query" = Option<String>, Query, description = "which records, in the query language; all of them without it"),
        ("start" = Option<String>, Query, description = "RFC 3339, a number since 1970 (s, ms, us, ns), now, now-15m or -15m; an hour before end"),
        ("end" = Option<String>, Query, description = "the moment behind the last, in the same forms; now"),
    ),
    responses(
        (status = 200, description = "names of attributes", body = Fields),
        Read,
    )
)]
pub async fn fields(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let (filter, range) = (asked.filter()?, asked.range()?);
    asked.finish()?;
    let sampled = shared.searcher()?.fields(&filter, range).await?;
    Ok(Answer::json(200, &Fields { fields: sampled.value, sampled: sampled.sampled }))
}

/// The names of services.
#[utoipa::path(
    get,
    tag = READ,
    path = "/api/v1/services",
    params(
        ("start" = Option<String>, Query, description = "RFC 3339, a number since 1970 (s, ms, us, ns), now, now-15m or -15m; an hour before end"),
        ("end" = Option<String>, Query, description = "the moment behind the last, in the same forms; now"),
    ),
    responses(
        (status = 200, description = "services and how many records they have", body = Services),
        Read,
    )
)]
pub async fn services(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let range = asked.range()?;
    asked.finish()?;
    let services = shared.searcher()?.services(range).await?;
    let service = |NameCount { name, count }| Service { name, records: count };
    Ok(Answer::json(200, &Services { services: services.into_iter().map(service).collect() }))
}
