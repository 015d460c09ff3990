//! `query_range` and `query`.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::super::described::{LOKI, LokiRead};
use super::asked::{Asked, bad};
use super::metric::{points, rows, sample, windows};
use super::refusal;
use super::streams::{APART, apart, streams};
use crate::query::logql::Expression;
use crate::query::page::Range;
use crate::query::windows::Windows;
use crate::search::PageRequest;

#[derive(Serialize)]
pub(super) struct Success<T> {
    status: &'static str,
    data: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<T> {
    result_type: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    encoding_flags: Vec<&'static str>,
    result: T,
    stats: Stats,
}

/// What Loki tells of its work: Grafana shows nothing where there is none.
#[derive(Serialize)]
struct Stats {}

/// An answer in Loki's envelope.
pub(super) fn success(data: impl Serialize) -> Answer {
    Answer::json(200, &Success { status: "success", data })
}

/// An answer of series or a vector of values.
pub(super) fn result(result_type: &'static str, result: impl Serialize) -> Answer {
    success(Data { result_type, encoding_flags: Vec::new(), result, stats: Stats {} })
}

/// `GET`/`POST /loki/api/v1/query_range`
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/query_range",
    params(
        ("query" = String, Query, description = "LogQL: a selector with filters, or rate or count_over_time of it"),
        ("start" = Option<String>, Query, description = "RFC 3339 or a number since 1970; an hour before end"),
        ("end" = Option<String>, Query, description = "the same; now"),
        ("since" = Option<String>, Query, description = "instead of start: such as 1h"),
        ("step" = Option<String>, Query, description = "seconds, or a time such as 30s; a 250th of the range"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 5000, description = "records; 100"),
        ("direction" = Option<String>, Query, description = "backward (newest first) or forward"),
    ),
    responses((status = 200, description = "records, or counts per step, in Loki's envelope", body = Object), LokiRead)
)]
pub(super) async fn query_range(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    over_range(&request, &body, &shared).await.unwrap_or_else(|refused| refusal(refused.counted(), request.headers()))
}

async fn over_range(request: &HttpRequest, body: &web::Bytes, shared: &Shared) -> Result<Answer, Refused> {
    let asked = Asked::of(request, body)?;
    let (expression, range) = (asked.expression()?, asked.range()?);
    let searcher = shared.searcher()?;
    match expression {
        Expression::Log(filter) => {
            let (direction, limit) = (asked.direction()?, asked.limit()?);
            let page = searcher.page(&PageRequest { filter, range, direction, after: None, limit }).await?;
            let apart = apart(request.headers());
            let encoding_flags = if apart { vec![APART] } else { Vec::new() };
            let result = streams(&page.records, apart);
            Ok(success(Data { result_type: "streams", encoding_flags, result, stats: Stats {} }))
        }
        Expression::Metric(metric) => {
            let windows = windows(range, asked.step_us(range)?, metric.window_ms)?;
            Ok(result("matrix", rows(searcher, &metric, windows).await?))
        }
        Expression::Constant(value) => {
            let windows = windows(range, asked.step_us(range)?, 1_000)?;
            let values: Vec<_> = (0..windows.points).map(|point| sample(windows.point_us(point), value)).collect();
            Ok(result("matrix", [serde_json::json!({ "metric": {}, "values": values })]))
        }
    }
}

/// `GET`/`POST /loki/api/v1/query`
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/query",
    params(
        ("query" = String, Query, description = "LogQL: rate, count_over_time or sum of a selector with filters"),
        ("time" = Option<String>, Query, description = "RFC 3339 or a number since 1970; now"),
    ),
    responses((status = 200, description = "counts at one moment, in Loki's envelope", body = Object), LokiRead)
)]
pub(super) async fn query(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    at_once(&request, &body, &shared).await.unwrap_or_else(|refused| refusal(refused.counted(), request.headers()))
}

async fn at_once(request: &HttpRequest, body: &web::Bytes, shared: &Shared) -> Result<Answer, Refused> {
    let asked = Asked::of(request, body)?;
    let (expression, at_us) = (asked.expression()?, asked.time()?);
    match expression {
        Expression::Log(_) => {
            Err(bad("records are asked for with query_range; query answers rate, count_over_time and sum".to_owned()))
        }
        Expression::Metric(metric) => {
            let windows = Windows::at(at_us, metric.window_ms.saturating_mul(1_000));
            Ok(result("vector", points(rows(shared.searcher()?, &metric, windows).await?)))
        }
        Expression::Constant(value) => {
            Ok(result("vector", [serde_json::json!({ "metric": {}, "value": sample(at_us, value) })]))
        }
    }
}

/// The range, with its end in it: what is asked for up to now has just happened.
pub(super) fn whole(range: Range) -> Range {
    Range { end_us: range.end_us.saturating_add(1), ..range }
}
