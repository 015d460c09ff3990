//! `GET /api/v1/fields` and `/api/v1/services`: the names that can be queried.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::answer::{Answer, HttpError};
use super::super::error_responses::{QUERIES, QueryErrors};
use super::super::shared::Shared;
use super::query_parameters::QueryParameters;
use crate::search::{Completeness, Sampled};
use logweir_query::facets::NameCount;

#[derive(Serialize, utoipa::ToSchema)]
struct Fields {
    fields: Vec<NameCount>,
    sampled: Option<u64>,
    #[serde(flatten)]
    completeness: Completeness,
}

#[derive(Serialize, utoipa::ToSchema)]
struct Services {
    services: Vec<Service>,
    #[serde(flatten)]
    completeness: Completeness,
}

#[derive(Serialize, utoipa::ToSchema)]
struct Service {
    name: String,
    records: u64,
}

/// Lists attribute names.
#[utoipa::path(
    get,
    tag = QUERIES,
    path = "/api/v1/fields",
    params(
        ("query" = Option<String>, Query, description = "Filter in the query language; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339, a Unix timestamp (s, ms, µs or ns), now, now-15m or -15m; default one hour before end."),
        ("end" = Option<String>, Query, description = "End of the range, exclusive, in the same formats; default now."),
    ),
    responses(
        (status = 200, description = "Attribute names and the number of records that have each.", body = Fields),
        QueryErrors,
    )
)]
pub async fn fields(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let mut parameters = QueryParameters::of(&request)?;
    let (filter, range) = (parameters.filter()?, parameters.range()?);
    parameters.finish()?;
    let Sampled { value: fields, sampled, completeness } = shared.searcher()?.fields(&filter, range).await?;
    Ok(Answer::json(200, &Fields { fields, sampled, completeness }))
}

/// Lists service names.
#[utoipa::path(
    get,
    tag = QUERIES,
    path = "/api/v1/services",
    params(
        ("start" = Option<String>, Query, description = "RFC 3339, a Unix timestamp (s, ms, µs or ns), now, now-15m or -15m; default one hour before end."),
        ("end" = Option<String>, Query, description = "End of the range, exclusive, in the same formats; default now."),
    ),
    responses(
        (status = 200, description = "Service names and the number of records of each.", body = Services),
        QueryErrors,
    )
)]
pub async fn services(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let mut parameters = QueryParameters::of(&request)?;
    let range = parameters.range()?;
    parameters.finish()?;
    let Sampled { value: services, completeness, .. } = shared.searcher()?.services(range).await?;
    let service = |NameCount { name, count }| Service { name, records: count };
    Ok(Answer::json(200, &Services { services: services.into_iter().map(service).collect(), completeness }))
}
