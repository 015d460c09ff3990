//! Record counts as Loki series.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::answer::HttpError;
use super::loki_parameters::bad_parameter;
use super::streams::{Labels, level};
use crate::search::{Completeness, Searcher};
use logweir_query::Filter;
use logweir_query::hits::{By, STEPS_MAX};
use logweir_query::logql::{Group, Metric};
use logweir_query::page::Range;
use logweir_query::windows::Windows;

/// A series with values over time.
#[derive(Serialize)]
pub(super) struct Row {
    metric: Labels,
    values: Vec<Sample>,
}

/// A series with a single value.
#[derive(Serialize)]
pub(super) struct Point {
    metric: Labels,
    value: Sample,
}

/// Unix timestamp in seconds, and the value as Prometheus formats it.
pub(super) type Sample = (Box<RawValue>, String);

/// A value at a point in time.
pub(super) fn sample(at_us: i64, value: f64) -> Sample {
    let seconds = format!("{}.{:03}", at_us.div_euclid(1_000_000), at_us.rem_euclid(1_000_000) / 1_000);
    // The text has digits on both sides of the decimal point, so it is a valid JSON number.
    (RawValue::from_string(seconds).unwrap_or_default(), value.to_string())
}

/// Evaluates `metric` at each point of `windows`; points without records are omitted.
pub(super) async fn rows(
    searcher: &Searcher,
    metric: &Metric,
    windows: Windows,
) -> Result<(Vec<Row>, Completeness), HttpError> {
    let (parts, completeness) = parts(searcher, &metric.filter, &metric.group, windows).await?;
    #[allow(clippy::cast_precision_loss)] // counts are far below 2^53
    let value = |sum: u64| {
        if metric.per_second { sum as f64 * 1_000.0 / metric.window_ms as f64 } else { sum as f64 }
    };
    let row = |(metric, parts): (Labels, Vec<u64>)| {
        let sums = windows.sums(&parts).into_iter().enumerate().filter(|&(_, sum)| sum > 0);
        let values = sums.map(|(point, sum)| sample(windows.point_us(point), value(sum))).collect();
        Row { metric, values }
    };
    Ok((parts.into_iter().map(row).filter(|row| !row.values.is_empty()).collect(), completeness))
}

/// Reduces each series to its first value.
pub(super) fn points(rows: Vec<Row>) -> Vec<Point> {
    let point = |Row { metric, values }| values.into_iter().next().map(|value| Point { metric, value });
    rows.into_iter().filter_map(point).collect()
}

/// The counts of all parts of `windows`, per series.
async fn parts(
    searcher: &Searcher,
    filter: &Filter,
    group: &Group,
    windows: Windows,
) -> Result<(BTreeMap<Labels, Vec<u64>>, Completeness), HttpError> {
    let whole = windows.range();
    let total = usize::try_from((whole.end_us - whole.start_us) / windows.part_us).unwrap_or(0);
    let by = if matches!(group, Group::Service(_)) { By::Service } else { By::Severity };
    let mut series: BTreeMap<Labels, Vec<u64>> = BTreeMap::new();
    let mut completeness = Completeness::default();
    let mut start_us = whole.start_us;
    while start_us < whole.end_us {
        let end_us = whole.end_us.min(start_us.saturating_add(windows.part_us.saturating_mul(STEPS_MAX)));
        let histogram = searcher.hits(filter, Range { start_us, end_us }, Some(windows.part_us), by).await?;
        completeness = completeness.and(histogram.completeness);
        for one in histogram.series {
            let counts = series.entry(labels(group, &one.name)).or_insert_with(|| vec![0; total]);
            // Steps start at multiples of their length, which windows do not always do.
            let shift = (histogram.steps.range.start_us - whole.start_us) / windows.part_us;
            for (nth, count) in (shift..).zip(one.counts) {
                if let Some(sum) = usize::try_from(nth).ok().and_then(|nth| counts.get_mut(nth)) {
                    *sum += count;
                }
            }
        }
        start_us = end_us;
    }
    Ok((series, completeness))
}

fn labels(group: &Group, series: &str) -> Labels {
    let (names, value) = match group {
        Group::Nothing => return Labels::new(),
        Group::Level(names) => (names, level(series)),
        Group::Service(names) => (names, series),
    };
    if value.is_empty() {
        return Labels::new();
    }
    names.iter().map(|name| (name.clone(), value.to_owned())).collect()
}

/// The windows over a range; an error if there are too many.
pub(super) fn windows(range: Range, step_us: i64, window_ms: i64) -> Result<Windows, HttpError> {
    Windows::over(range, step_us, window_ms.saturating_mul(1_000)).map_err(bad_parameter)
}
