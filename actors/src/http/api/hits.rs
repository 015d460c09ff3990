//! `GET /api/v1/hits`: how many records there are per step of time.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::super::described::{READ, Read};
use super::asked::Asked;
use crate::query::hits::{By, Series};

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Hits)]
struct Body {
    start_ms: i64,
    end_ms: i64,
    step_ms: i64,
    series: Vec<Series>,
    total: u64,
    source: &'static str,
}

/// The handler.
#[utoipa::path(
    get,
    tag = READ,
    path = "/api/v1/hits",
    params(
        ("query" = Option<String>, Query, description = "which records, in the query language; all of them without it"),
        ("start" = Option<String>, Query, description = "RFC 3339, a number since 1970 (s, ms, us, ns), now, now-15m or -15m; an hour before end"),
        ("end" = Option<String>, Query, description = "the moment behind the last, in the same forms; now"),
        ("step" = Option<String>, Query, description = "auto, or a duration such as 30s, 1m, 6h"),
        ("by" = Option<String>, Query, description = "severity or service"),
    ),
    responses(
        (status = 200, description = "counts per step of time", body = Body),
        Read,
    )
)]
pub async fn hits(request: HttpRequest, shared: web::Data<Shared>) -> Result<Answer, Refused> {
    let mut asked = Asked::of(&request)?;
    let (filter, range, step_us) = (asked.filter()?, asked.range()?, asked.step()?);
    let by = asked.word("by", By::Severity, &[("severity", By::Severity), ("service", By::Service)])?;
    asked.finish()?;
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
        },
    ))
}
