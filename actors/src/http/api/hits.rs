//! `GET /api/v1/hits`: how many records there are per step of time.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::asked::Asked;
use crate::query::hits::{By, Series};

#[derive(Serialize)]
struct Body {
    start_ms: i64,
    end_ms: i64,
    step_ms: i64,
    series: Vec<Series>,
    total: u64,
    source: &'static str,
}

/// The handler.
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
