//! Counts of records as Loki's series.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::answer::Refused;
use super::asked::bad;
use super::streams::{Labels, level};
use crate::query::Filter;
use crate::query::hits::{By, STEPS_MAX};
use crate::query::logql::{Group, Metric};
use crate::query::page::Range;
use crate::query::windows::Windows;
use crate::search::Searcher;

/// A series with a value at each of some times.
#[derive(Serialize)]
pub(super) struct Row {
    metric: Labels,
    values: Vec<Sample>,
}

/// A series with one value.
#[derive(Serialize)]
pub(super) struct Point {
    metric: Labels,
    value: Sample,
}

/// Seconds since 1970, and the value as Prometheus writes it.
pub(super) type Sample = (Box<RawValue>, String);

/// A value at a time.
pub(super) fn sample(at_us: i64, value: f64) -> Sample {
    let seconds = format!("{}.{:03}", at_us.div_euclid(1_000_000), at_us.rem_euclid(1_000_000) / 1_000);
    // A number with digits on both sides of its point.
    (RawValue::from_string(seconds).unwrap_or_default(), value.to_string())
}

/// What `metric` is at each point of `windows` where there is something to count.
pub(super) async fn rows(searcher: &Searcher, metric: &Metric, windows: Windows) -> Result<Vec<Row>, Refused> {
    let parts = parts(searcher, &metric.filter, &metric.group, windows).await?;
    #[allow(clippy::cast_precision_loss)] // counts are far below what a double holds exactly
    let value = |sum: u64| {
        if metric.per_second { sum as f64 * 1_000.0 / metric.window_ms as f64 } else { sum as f64 }
    };
    let row = |(metric, parts): (Labels, Vec<u64>)| {
        let sums = windows.sums(&parts).into_iter().enumerate().filter(|&(_, sum)| sum > 0);
        let values = sums.map(|(point, sum)| sample(windows.point_us(point), value(sum))).collect();
        Row { metric, values }
    };
    Ok(parts.into_iter().map(row).filter(|row| !row.values.is_empty()).collect())
}

/// The same with only one value each.
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
) -> Result<BTreeMap<Labels, Vec<u64>>, Refused> {
    let whole = windows.range();
    let total = usize::try_from((whole.end_us - whole.start_us) / windows.part_us).unwrap_or(0);
    let by = if matches!(group, Group::Service(_)) { By::Service } else { By::Severity };
    let mut series: BTreeMap<Labels, Vec<u64>> = BTreeMap::new();
    let mut start_us = whole.start_us;
    while start_us < whole.end_us {
        let end_us = whole.end_us.min(start_us.saturating_add(windows.part_us.saturating_mul(STEPS_MAX)));
        let histogram = searcher.hits(filter, Range { start_us, end_us }, Some(windows.part_us), by).await?;
        for one in histogram.series {
            let counts = series.entry(labels(group, &one.name)).or_insert_with(|| vec![0; total]);
            // Steps begin at multiples of their length, and the windows do not always.
            let shift = (histogram.steps.range.start_us - whole.start_us) / windows.part_us;
            for (nth, count) in (shift..).zip(one.counts) {
                if let Some(sum) = usize::try_from(nth).ok().and_then(|nth| counts.get_mut(nth)) {
                    *sum += count;
                }
            }
        }
        start_us = end_us;
    }
    Ok(series)
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

/// Windows over a range, or what is wrong with them.
pub(super) fn windows(range: Range, step_us: i64, window_ms: i64) -> Result<Windows, Refused> {
    Windows::over(range, step_us, window_ms.saturating_mul(1_000)).map_err(bad)
}
