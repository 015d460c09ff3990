//! `GET /api/v1/fields` and `/api/v1/services`: what can be asked for.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::asked::Asked;
use crate::query::facets::NameCount;

#[derive(Serialize)]
struct Fields {
    fields: Vec<NameCount>,
    sampled: Option<u64>,
}

#[derive(Serialize)]
struct Services {
    services: Vec<Service>,
}

#[derive(Serialize)]
struct Service {
    name: String,
    records: u64,
}

/// The names of attributes.
pub async fn fields(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let (filter, range) = (asked.filter()?, asked.range()?);
    asked.finish()?;
    let sampled = shared.searcher()?.fields(&filter, range).await?;
    Ok(Answer::json(200, &Fields { fields: sampled.value, sampled: sampled.sampled }))
}

/// The names of services.
pub async fn services(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let range = asked.range()?;
    asked.finish()?;
    let services = shared.searcher()?.services(range).await?;
    let service = |NameCount { name, count }| Service { name, records: count };
    Ok(Answer::json(200, &Services { services: services.into_iter().map(service).collect() }))
}
