//! `GET /api/v1/hits`: number of records per time step.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::answer::{Answer, HttpError};
use super::super::error_responses::{QUERIES, QueryErrors};
use super::super::shared::Shared;
use super::query_parameters::QueryParameters;
use crate::search::Completeness;
use logweir_query::hits::{By, Series};

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Hits)]
struct Body {
    start_ms: i64,
    end_ms: i64,
    step_ms: i64,
    series: Vec<Series>,
    total: u64,
    source: &'static str,
    #[serde(flatten)]
    completeness: Completeness,
}

/// Counts records per time step.
#[utoipa::path(
    get,
    tag = QUERIES,
    path = "/api/v1/hits",
    params(
        ("query" = Option<String>, Query, description = "Filter in the query language; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339, a Unix timestamp (s, ms, µs or ns), now, now-15m or -15m; default one hour before end."),
        ("end" = Option<String>, Query, description = "End of the range, exclusive, in the same formats; default now."),
        ("step" = Option<String>, Query, description = "auto or a duration such as 30s, 1m or 6h; default auto."),
        ("by" = Option<String>, Query, description = "severity or service; default severity."),
    ),
    responses(
        (status = 200, description = "Record counts per time step.", body = Body),
        QueryErrors,
    )
)]
pub async fn hits(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, HttpError> {
    let mut parameters = QueryParameters::of(&request)?;
    let (filter, range, step_us) = (parameters.filter()?, parameters.range()?, parameters.step()?);
    let by = parameters.one_of("by", By::Severity, &[("severity", By::Severity), ("service", By::Service)])?;
    parameters.finish()?;
    let histogram = shared.searcher()?.hits(&filter, range, step_us, by).await?;
    let steps = histogram.steps;
    Ok(Answer::json(
        200,
        &Body {
            start_ms: steps.range.start_us.div_euclid(1_000),
            end_ms: steps.range.end_us.div_euclid(1_000),
            step_ms: steps.step_us / 1_000,
            total: histogram.series.iter().map(|series| series.total).sum(),
            series: histogram.series,
            source: if histogram.from_counters { "counters" } else { "records" },
            completeness: histogram.completeness,
        },
    ))
}
