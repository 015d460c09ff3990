//! `GET /api/v1/facets`: the most frequent values of fields.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::answer::{Answer, HttpError};
use super::super::error_responses::{QUERIES, QueryErrors};
use super::super::shared::Shared;
use super::query_parameters::{QueryParameters, bad_parameter};
use crate::search::{Completeness, Sampled};
use logweir_query::facets::Facet;

/// Maximum number of fields per request.
const FIELDS_MAX: usize = 32;

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Facets)]
struct Body {
    facets: Vec<Facet>,
    sampled: Option<u64>,
    #[serde(flatten)]
    completeness: Completeness,
}

/// Returns the most frequent values of fields.
#[utoipa::path(
    get,
    tag = QUERIES,
    path = "/api/v1/facets",
    params(
        ("query" = Option<String>, Query, description = "Filter in the query language; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339, a Unix timestamp (s, ms, µs or ns), now, now-15m or -15m; default one hour before end."),
        ("end" = Option<String>, Query, description = "End of the range, exclusive, in the same formats; default now."),
        ("fields" = Option<String>, Query, description = "Comma-separated field names; default severity,service,host."),
        ("limit" = Option<usize>, Query, description = "Maximum number of values per field; default 10."),
    ),
    responses(
        (status = 200, description = "Most frequent values of fields.", body = Body),
        QueryErrors,
    )
)]
pub async fn facets(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let mut parameters = QueryParameters::of(&request)?;
    let (filter, range, mut fields) = (parameters.filter()?, parameters.range()?, parameters.list("fields")?);
    let limit = parameters.number("limit", 10, 1, 1_000)?;
    parameters.finish()?;
    if fields.is_empty() {
        fields = ["severity", "service", "host"].map(str::to_owned).into();
    }
    if fields.len() > FIELDS_MAX {
        return Err(bad_parameter(format!("invalid fields: expected at most {FIELDS_MAX} names")));
    }
    let sampled = shared.searcher()?.facets(&filter, range, fields, limit).await?;
    let Sampled { value: facets, sampled, completeness } = sampled;
    Ok(Answer::json(200, &Body { facets, sampled, completeness }))
}
