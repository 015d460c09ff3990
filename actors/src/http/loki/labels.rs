//! What labels there are, which values they have, and how many records.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, web};
use serde::Serialize;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::super::described::{LOKI, LokiRead};
use super::asked::{Asked, bad, bad_query};
use super::metric::{points, rows, windows};
use super::query::{result, success, whole};
use super::refusal;
use super::streams::Labels;
use crate::query::logql::{Group, LEVELS, Label, Metric, parse_selector};
use crate::query::page::Range;
use crate::query::windows::Windows;
use crate::query::{Field, Filter};
use crate::search::Searcher;

/// Values of one label.
const VALUES_MAX: usize = 1_000;

/// `labels`
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/labels",
    responses((status = 200, description = "names of labels, in Loki's envelope", body = Object), LokiRead)
)]
pub(super) async fn labels() -> Answer {
    success(["host", "level", "service_name"])
}

/// `label/{name}/values`
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/label/{name}/values",
    params(
        ("name" = String, Path, description = "service_name, host, level or an attribute"),
        ("query" = Option<String>, Query, description = "a selector such as {service_name=\"cart\"}; every record without it"),
        ("start" = Option<String>, Query, description = "RFC 3339 or a number since 1970; an hour before end"),
        ("end" = Option<String>, Query, description = "the same; now"),
    ),
    responses((status = 200, description = "values of a label, in Loki's envelope", body = Object), LokiRead)
)]
pub(super) async fn values(
    request: HttpRequest,
    body: web::Bytes,
    name: web::Path<String>,
    shared: web::Data<Shared>,
) -> Answer {
    let found = async {
        let asked = Asked::of(&request, &body)?;
        let (filter, range) = (asked.selector()?, whole(asked.range()?));
        values_of(shared.searcher()?, Label::named(&name), filter, range).await
    };
    found.await.map(success).unwrap_or_else(|refused| refusal(refused.counted(), request.headers()))
}

async fn values_of(
    searcher: &Searcher,
    label: Label,
    filter: Filter,
    range: Range,
) -> Result<BTreeSet<String>, Refused> {
    match label {
        Label::Never => Ok(BTreeSet::new()),
        Label::Level => Ok(LEVELS.iter().map(|level| (*level).to_owned()).collect()),
        Label::Fields(fields) if fields == [Field::Service] && filter == Filter::All => {
            let services = searcher.services(range).await?;
            Ok(services.into_iter().map(|service| service.name).filter(|name| !name.is_empty()).collect())
        }
        Label::Fields(fields) => {
            let names = fields.into_iter().map(name).collect();
            let facets = searcher.facets(&filter, range, names, VALUES_MAX).await?.value;
            Ok(facets.into_iter().flat_map(|facet| facet.values).map(|value| value.value).collect())
        }
    }
}

fn name(field: Field) -> String {
    match field {
        Field::Service => "service".to_owned(),
        Field::Host => "host".to_owned(),
        Field::Message => "message".to_owned(),
        Field::Attribute(name) => name,
    }
}

/// `series`: the services that each selector finds.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/series",
    params(
        ("match[]" = Option<Vec<String>>, Query, description = "selectors; every service without one"),
        ("start" = Option<String>, Query, description = "RFC 3339 or a number since 1970; an hour before end"),
        ("end" = Option<String>, Query, description = "the same; now"),
    ),
    responses((status = 200, description = "the services that each selector finds, in Loki's envelope", body = Object), LokiRead)
)]
pub(super) async fn series(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let asked = Asked::of(&request, &body)?;
        let range = whole(asked.range()?);
        let mut filters = Vec::new();
        for selector in asked.all("match[]").chain(asked.all("match")) {
            filters.push(parse_selector(selector).map_err(bad_query)?);
        }
        if filters.is_empty() {
            filters.push(Filter::All);
        }
        let mut services = BTreeSet::new();
        for filter in filters {
            services.extend(values_of(shared.searcher()?, Label::Fields(vec![Field::Service]), filter, range).await?);
        }
        let series = services.into_iter().map(|service| Labels::from([("service_name".to_owned(), service)]));
        Ok(success(series.collect::<Vec<_>>()))
    };
    found.await.unwrap_or_else(|refused: Refused| refusal(refused.counted(), request.headers()))
}

#[derive(Serialize)]
struct Stats {
    streams: usize,
    chunks: u64,
    bytes: u64,
    entries: u64,
}

/// `index/stats`: how many records and services. There are no chunks, and nobody counts bytes.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/index/stats",
    params(
        ("query" = Option<String>, Query, description = "a selector such as {service_name=\"cart\"}; every record without it"),
        ("start" = Option<String>, Query, description = "RFC 3339 or a number since 1970; an hour before end"),
        ("end" = Option<String>, Query, description = "the same; now"),
    ),
    responses((status = 200, description = "how many records and services", body = Object), LokiRead)
)]
pub(super) async fn stats(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let asked = Asked::of(&request, &body)?;
        let range = whole(asked.range()?);
        let by = crate::query::hits::By::Service;
        let histogram = shared.searcher()?.hits(&asked.selector()?, range, None, by).await?;
        let entries = histogram.series.iter().map(|series| series.total).sum();
        Ok(Answer::json(200, &Stats { streams: histogram.series.len(), chunks: 0, bytes: 0, entries }))
    };
    found.await.unwrap_or_else(|refused: Refused| refusal(refused.counted(), request.headers()))
}

/// `index/volume`: records of each service, or level.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/index/volume",
    params(
        ("query" = Option<String>, Query, description = "a selector such as {service_name=\"cart\"}; every record without it"),
        ("start" = Option<String>, Query, description = "RFC 3339 or a number since 1970; an hour before end"),
        ("end" = Option<String>, Query, description = "the same; now"),
        ("targetLabels" = Option<String>, Query, description = "service_name or level"),
    ),
    responses((status = 200, description = "records of each service or level, in Loki's envelope", body = Object), LokiRead)
)]
pub(super) async fn volume(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let asked = Asked::of(&request, &body)?;
        let range = asked.range()?;
        let metric = Metric { window_ms: ((range.end_us - range.start_us) / 1_000).max(1), ..counted(&asked)? };
        let windows = Windows::at(range.end_us, metric.window_ms * 1_000);
        Ok(result("vector", points(rows(shared.searcher()?, &metric, windows).await?)))
    };
    found.await.unwrap_or_else(|refused: Refused| refusal(refused.counted(), request.headers()))
}

/// `index/volume_range`: the same per step.
#[utoipa::path(
    method(get, post),
    tag = LOKI,
    path = "/loki/api/v1/index/volume_range",
    params(
        ("query" = Option<String>, Query, description = "a selector such as {service_name=\"cart\"}; every record without it"),
        ("start" = Option<String>, Query, description = "RFC 3339 or a number since 1970; an hour before end"),
        ("end" = Option<String>, Query, description = "the same; now"),
        ("targetLabels" = Option<String>, Query, description = "service_name or level"),
        ("step" = Option<String>, Query, description = "seconds, or a time such as 30s; a 250th of the range"),
    ),
    responses((status = 200, description = "records of each service or level, per step, in Loki's envelope", body = Object), LokiRead)
)]
pub(super) async fn volume_range(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> Answer {
    let found = async {
        let asked = Asked::of(&request, &body)?;
        let range = asked.range()?;
        let step_us = asked.step_us(range)?;
        let metric = Metric { window_ms: step_us / 1_000, ..counted(&asked)? };
        Ok(result("matrix", rows(shared.searcher()?, &metric, windows(range, step_us, metric.window_ms)?).await?))
    };
    found.await.unwrap_or_else(|refused: Refused| refusal(refused.counted(), request.headers()))
}

/// What is counted, and by which label.
fn counted(asked: &Asked) -> Result<Metric, Refused> {
    let by = asked.text("targetLabels").unwrap_or("service_name");
    let names = vec![by.to_owned()];
    let group = match Label::named(by) {
        Label::Level => Group::Level(names),
        Label::Fields(fields) if fields == [Field::Service] => Group::Service(names),
        _ => return Err(bad(format!("targetLabels={by:?} must be service_name or level"))),
    };
    Ok(Metric { filter: asked.selector()?, window_ms: 1, per_second: false, group })
}

#[cfg(test)]
mod tests {
    use super::super::streams::level;
    use super::*;

    #[test]
    fn every_severity_has_a_level() {
        for number in 0..=24 {
            let severity = logweir_engine::record::Severity::from_number(number).unwrap();
            assert!(LEVELS.contains(&level(severity.name())));
        }
    }
}
