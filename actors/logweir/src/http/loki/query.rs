//! `query_range` and `query`.

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::answer::{Answer, HttpError};
use super::super::error_responses::{LOKI, LokiErrors};
use super::super::shared::Shared;
use super::answer::error_response;
use super::loki_parameters::{LokiParameters, bad_parameter};
use super::metric::{points, rows, sample, windows};
use super::streams::{CATEGORIZE_LABELS, categorize, streams};
use crate::search::{Completeness, PageRequest};
use logweir_query::logql::Expression;
use logweir_query::page::Range;
use logweir_query::windows::Windows;

#[derive(Serialize)]
pub(super) struct Success<T> {
    status: &'static str,
    data: T,
    /// Loki's own member for what the client should know; Grafana shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<[String; 1]>,
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

/// Loki's query statistics: Grafana hides them if they are empty.
#[derive(Serialize)]
struct Stats {}

/// A response in Loki's envelope.
pub(super) fn success(data: impl Serialize, completeness: Completeness) -> Answer {
    let warnings = completeness.partial_reason.map(|reason| [format!("partial result: {reason}")]);
    Answer::json(200, &Success { status: "success", data, warnings })
}

/// A response with series or a vector of values.
pub(super) fn result(result_type: &'static str, (result, completeness): (impl Serialize, Completeness)) -> Answer {
    success(Data { result_type, encoding_flags: Vec::new(), result, stats: Stats {} }, completeness)
}

/// Queries records, or counts per step, over a time range.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/query_range",
    params(
        ("query" = String, Query, description = "LogQL: a selector with filters, or rate or count_over_time of one."),
        ("start" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default one hour before end."),
        ("end" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default now."),
        ("since" = Option<String>, Query, description = "Duration before end, such as 1h, instead of start."),
        ("step" = Option<String>, Query, description = "Seconds, or a duration such as 30s; default 1/250 of the range."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 5000, description = "Maximum number of records; default 100."),
        ("direction" = Option<String>, Query, description = "backward (latest first) or forward; default backward."),
    ),
    responses((status = 200, description = "Records, or counts per step, in Loki's envelope.", body = Object), LokiErrors)
)]
pub(super) async fn query_range(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    over_range(&request, &body, &shared)
        .await
        .unwrap_or_else(|rejection| error_response(rejection.counted(), request.headers()))
}

async fn over_range(request: &HttpRequest, body: &web::Bytes, shared: &Shared) -> Result<Answer, HttpError> {
    let parameters = LokiParameters::of(request, body)?;
    let (expression, range) = (parameters.expression()?, parameters.range()?);
    let searcher = shared.searcher()?;
    match expression {
        Expression::Log(filter) => {
            let (direction, limit) = (parameters.direction()?, parameters.limit()?);
            let page = searcher.page(&PageRequest { filter, range, direction, after: None, limit }).await?;
            let categorize = categorize(request.headers());
            let encoding_flags = if categorize { vec![CATEGORIZE_LABELS] } else { Vec::new() };
            let result = streams(&page.records, categorize);
            let data = Data { result_type: "streams", encoding_flags, result, stats: Stats {} };
            Ok(success(data, page.source.completeness))
        }
        Expression::Metric(metric) => {
            let windows = windows(range, parameters.step_us(range)?, metric.window_ms)?;
            Ok(result("matrix", rows(searcher, &metric, windows).await?))
        }
        Expression::Constant(value) => {
            let windows = windows(range, parameters.step_us(range)?, 1_000)?;
            let values: Vec<_> = (0..windows.points).map(|point| sample(windows.point_us(point), value)).collect();
            let series = [serde_json::json!({ "metric": {}, "values": values })];
            Ok(result("matrix", (series, Completeness::default())))
        }
    }
}

/// Evaluates a metric query at one point in time.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/query",
    params(
        ("query" = String, Query, description = "LogQL: rate, count_over_time or sum of a selector with filters."),
        ("time" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default now."),
    ),
    responses((status = 200, description = "Counts at one point in time, in Loki's envelope.", body = Object), LokiErrors)
)]
pub(super) async fn query(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    at_once(&request, &body, &shared)
        .await
        .unwrap_or_else(|rejection| error_response(rejection.counted(), request.headers()))
}

async fn at_once(request: &HttpRequest, body: &web::Bytes, shared: &Shared) -> Result<Answer, HttpError> {
    let parameters = LokiParameters::of(request, body)?;
    let (expression, at_us) = (parameters.expression()?, parameters.time()?);
    match expression {
        Expression::Log(_) => Err(bad_parameter(
            "unsupported query: expected rate, count_over_time or sum; use query_range for records".to_owned(),
        )),
        Expression::Metric(metric) => {
            let windows = Windows::at(at_us, metric.window_ms.saturating_mul(1_000));
            let (rows, completeness) = rows(shared.searcher()?, &metric, windows).await?;
            Ok(result("vector", (points(rows), completeness)))
        }
        Expression::Constant(value) => {
            let points = [serde_json::json!({ "metric": {}, "value": sample(at_us, value) })];
            Ok(result("vector", (points, Completeness::default())))
        }
    }
}

/// Includes the end of the range: a record of this very moment belongs to a query up to now.
pub(super) fn whole(range: Range) -> Range {
    Range { end_us: range.end_us.saturating_add(1), ..range }
}
