//! Labels, their values, and record counts.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::answer::{Answer, HttpError};
use super::super::error_responses::{LOKI, LokiErrors};
use super::super::shared::Shared;
use super::answer::error_response;
use super::loki_parameters::{LokiParameters, bad_parameter, bad_query};
use super::metric::{points, rows, windows};
use super::query::{result, success, whole};
use super::streams::Labels;
use crate::search::{Completeness, Sampled, Searcher};
use logweir_query::logql::{Group, LEVELS, Label, Metric, parse_selector};
use logweir_query::page::Range;
use logweir_query::windows::Windows;
use logweir_query::{Field, Filter};

/// Maximum number of values of one label.
const VALUES_MAX: usize = 1_000;

/// Lists label names.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/labels",
    responses((status = 200, description = "Label names, in Loki's envelope.", body = Object), LokiErrors)
)]
pub(super) async fn labels() -> Answer {
    success(["host", "level", "service_name"], Completeness::default())
}

/// Lists the values of a label.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/label/{name}/values",
    params(
        ("name" = String, Path, description = "service_name, host, level or an attribute."),
        ("query" = Option<String>, Query, description = "Selector such as {service_name=\"cart\"}; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default one hour before end."),
        ("end" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default now."),
    ),
    responses((status = 200, description = "Values of a label, in Loki's envelope.", body = Object), LokiErrors)
)]
pub(super) async fn values(
    request: HttpRequest,
    body: web::Bytes,
    name: web::Path<String>,
    shared: web::Data<Shared>,
) -> Answer {
    let found = async {
        let parameters = LokiParameters::of(&request, &body)?;
        let (filter, range) = (parameters.selector()?, whole(parameters.range()?));
        values_of(shared.searcher()?, Label::named(&name), filter, range).await
    };
    found
        .await
        .map(|(values, completeness)| success(values, completeness))
        .unwrap_or_else(|rejection: HttpError| error_response(rejection.counted(), request.headers()))
}

async fn values_of(
    searcher: &Searcher,
    label: Label,
    filter: Filter,
    range: Range,
) -> Result<(BTreeSet<String>, Completeness), HttpError> {
    Ok(match label {
        Label::Absent => Default::default(),
        Label::Level => (LEVELS.iter().map(|level| (*level).to_owned()).collect(), Completeness::default()),
        Label::Fields(fields) if fields == [Field::Service] && filter == Filter::All => {
            let Sampled { value: services, completeness, .. } = searcher.services(range).await?;
            let names = services.into_iter().map(|service| service.name);
            (names.filter(|name| !name.is_empty()).collect(), completeness)
        }
        Label::Fields(fields) => {
            let names = fields.into_iter().map(name).collect();
            let Sampled { value: facets, completeness, .. } =
                searcher.facets(&filter, range, names, VALUES_MAX).await?;
            (facets.into_iter().flat_map(|facet| facet.values).map(|value| value.value).collect(), completeness)
        }
    })
}

fn name(field: Field) -> String {
    match field {
        Field::Service => "service".to_owned(),
        Field::Host => "host".to_owned(),
        Field::Message => "message".to_owned(),
        Field::Attribute(name) => name,
    }
}

/// Lists the services that match selectors.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/series",
    params(
        ("match[]" = Option<Vec<String>>, Query, description = "Selectors; default all services."),
        ("start" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default one hour before end."),
        ("end" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default now."),
    ),
    responses((status = 200, description = "Services that match the selectors, in Loki's envelope.", body = Object), LokiErrors)
)]
pub(super) async fn series(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let parameters = LokiParameters::of(&request, &body)?;
        let range = whole(parameters.range()?);
        let mut filters = Vec::new();
        for selector in parameters.all("match[]").chain(parameters.all("match")) {
            filters.push(parse_selector(selector).map_err(bad_query)?);
        }
        if filters.is_empty() {
            filters.push(Filter::All);
        }
        let (mut services, mut completeness) = (BTreeSet::new(), Completeness::default());
        for filter in filters {
            let label = Label::Fields(vec![Field::Service]);
            let (values, one) = values_of(shared.searcher()?, label, filter, range).await?;
            services.extend(values);
            completeness = completeness.and(one);
        }
        let series = services.into_iter().map(|service| Labels::from([("service_name".to_owned(), service)]));
        Ok(success(series.collect::<Vec<_>>(), completeness))
    };
    found.await.unwrap_or_else(|rejection: HttpError| error_response(rejection.counted(), request.headers()))
}

#[derive(Serialize)]
struct Stats {
    streams: usize,
    chunks: u64,
    bytes: u64,
    entries: u64,
    #[serde(flatten)]
    completeness: Completeness,
}

/// Counts the records and services that match a selector. Chunks and bytes are always 0.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/index/stats",
    params(
        ("query" = Option<String>, Query, description = "Selector such as {service_name=\"cart\"}; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default one hour before end."),
        ("end" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default now."),
    ),
    responses((status = 200, description = "Number of records (`entries`) and of services (`streams`).", body = Object), LokiErrors)
)]
pub(super) async fn stats(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let parameters = LokiParameters::of(&request, &body)?;
        let range = whole(parameters.range()?);
        let by = logweir_query::hits::By::Service;
        let histogram = shared.searcher()?.hits(&parameters.selector()?, range, None, by).await?;
        let entries = histogram.series.iter().map(|series| series.total).sum();
        let (streams, completeness) = (histogram.series.len(), histogram.completeness);
        Ok(Answer::json(200, &Stats { streams, chunks: 0, bytes: 0, entries, completeness }))
    };
    found.await.unwrap_or_else(|rejection: HttpError| error_response(rejection.counted(), request.headers()))
}

/// Counts records per service or level.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/index/volume",
    params(
        ("query" = Option<String>, Query, description = "Selector such as {service_name=\"cart\"}; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default one hour before end."),
        ("end" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default now."),
        ("targetLabels" = Option<String>, Query, description = "service_name or level; default service_name."),
    ),
    responses((status = 200, description = "Number of records per service or level, in Loki's envelope.", body = Object), LokiErrors)
)]
pub(super) async fn volume(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let parameters = LokiParameters::of(&request, &body)?;
        let range = parameters.range()?;
        let metric = Metric { window_ms: ((range.end_us - range.start_us) / 1_000).max(1), ..counted(&parameters)? };
        let windows = Windows::at(range.end_us, metric.window_ms * 1_000);
        let (rows, completeness) = rows(shared.searcher()?, &metric, windows).await?;
        Ok(result("vector", (points(rows), completeness)))
    };
    found.await.unwrap_or_else(|rejection: HttpError| error_response(rejection.counted(), request.headers()))
}

/// Counts records per service or level and step.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/index/volume_range",
    params(
        ("query" = Option<String>, Query, description = "Selector such as {service_name=\"cart\"}; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default one hour before end."),
        ("end" = Option<String>, Query, description = "RFC 3339 or a Unix timestamp; default now."),
        ("targetLabels" = Option<String>, Query, description = "service_name or level; default service_name."),
        ("step" = Option<String>, Query, description = "Seconds, or a duration such as 30s; default 1/250 of the range."),
    ),
    responses((status = 200, description = "Number of records per service or level and step, in Loki's envelope.", body = Object), LokiErrors)
)]
pub(super) async fn volume_range(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let parameters = LokiParameters::of(&request, &body)?;
        let range = parameters.range()?;
        let step_us = parameters.step_us(range)?;
        let metric = Metric { window_ms: step_us / 1_000, ..counted(&parameters)? };
        Ok(result("matrix", rows(shared.searcher()?, &metric, windows(range, step_us, metric.window_ms)?).await?))
    };
    found.await.unwrap_or_else(|rejection: HttpError| error_response(rejection.counted(), request.headers()))
}

/// What to count, and by which label.
fn counted(parameters: &LokiParameters) -> Result<Metric, HttpError> {
    let by = parameters.text("targetLabels").unwrap_or("service_name");
    let names = vec![by.to_owned()];
    let group = match Label::named(by) {
        Label::Level => Group::Level(names),
        Label::Fields(fields) if fields == [Field::Service] => Group::Service(names),
        _ => return Err(bad_parameter(format!("invalid targetLabels {by:?}: expected service_name or level"))),
    };
    Ok(Metric { filter: parameters.selector()?, window_ms: 1, per_second: false, group })
}

#[cfg(test)]
mod tests {
    use super::super::streams::level;
    use super::*;

    #[test]
    fn every_severity_has_a_level() {
        for number in 0..=24 {
            let severity = logweir_record::record::Severity::from_number(number).unwrap();
            assert!(LEVELS.contains(&level(severity.name())));
        }
    }
}
