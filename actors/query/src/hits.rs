//! Record counts per time step. A range is widened to whole steps, so that every bar counts everything in its step.

use std::collections::BTreeMap;

use logweir_record::record::{Record, Severity};
use logweir_record::timestamp::MINUTE_US;

use crate::page::Range;

/// Maximum number of steps of a histogram.
pub const STEPS_MAX: i64 = 2_000;

/// Number of steps that `auto` stays below.
const AUTO_STEPS: i64 = 100;

/// Maximum number of series by service; the smallest ones are combined.
const SERIES_MAX: usize = 20;

/// The name of the combined series.
const REST: &str = "(other)";

const SECOND_US: i64 = 1_000_000;

/// The step lengths that `auto` chooses from, in seconds.
const AUTO_S: [i64; 17] =
    [1, 2, 5, 10, 30, 60, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 604_800];

/// What the series are broken down by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// One series per severity name.
    Severity,
    /// One series per service.
    Service,
}

/// The bars of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Steps {
    /// From the start of the first bar to the end of the last one.
    pub range: Range,
    /// The width of each bar in microseconds.
    pub step_us: i64,
}

impl Steps {
    /// Bars of `step_us` microseconds over `range`; `None` chooses the width.
    ///
    /// # Errors
    /// There would be more than [`STEPS_MAX`] bars, or the width is below a millisecond.
    pub fn over(range: Range, step_us: Option<i64>) -> Result<Self, String> {
        let length = range.end_us.saturating_sub(range.start_us);
        let step_us = step_us.unwrap_or_else(|| {
            let fits = |step: &&i64| length / (**step * SECOND_US) <= AUTO_STEPS;
            let longest = AUTO_S[AUTO_S.len() - 1];
            let step_s = AUTO_S.iter().find(fits).copied().unwrap_or_else(|| {
                // Whole weeks.
                longest * (length / (longest * SECOND_US * AUTO_STEPS) + 1)
            });
            step_s * SECOND_US
        });
        if step_us < 1_000 || length / step_us > STEPS_MAX {
            return Err(format!(
                "invalid step: {} bars exceed the limit of {STEPS_MAX}; use a longer step, or auto",
                length / step_us.max(1)
            ));
        }
        let start_us = range.start_us.div_euclid(step_us) * step_us;
        let end_us = -(-range.end_us).div_euclid(step_us) * step_us;
        Ok(Self { range: Range { start_us, end_us: end_us.max(start_us + step_us) }, step_us })
    }

    /// The number of bars.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from((self.range.end_us - self.range.start_us) / self.step_us).unwrap_or(0)
    }

    /// Whether there are no bars.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the per-minute counters have sufficient resolution.
    #[must_use]
    pub fn are_minutes(&self) -> bool {
        self.step_us % MINUTE_US == 0
    }
}

/// Counts records per step.
#[derive(Clone, Debug)]
pub struct Hits {
    steps: Steps,
    by: By,
    series: BTreeMap<String, Vec<u64>>,
}

/// One series.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Series {
    /// A severity name or a service.
    pub name: String,
    /// Total of all counts.
    pub total: u64,
    /// One count per step.
    pub counts: Vec<u64>,
}

impl Hits {
    /// Starts without counts.
    #[must_use]
    pub fn new(steps: Steps, by: By) -> Self {
        Self { steps, by, series: BTreeMap::new() }
    }

    /// Counts one record if it is in the range.
    pub fn add(&mut self, record: &Record<'_>) {
        self.add_many(record.ts_us, record.severity.number(), record.service, 1);
    }

    /// Counts `records` of one service and severity in the step of `ts_us` (microseconds since the Unix epoch), unless it
    /// is outside the range.
    pub fn add_many(&mut self, ts_us: i64, severity: u8, service: &str, records: u64) {
        if !self.steps.range.holds(ts_us) {
            return;
        }
        let nth = usize::try_from((ts_us - self.steps.range.start_us) / self.steps.step_us).unwrap_or(0);
        let name = match self.by {
            By::Severity => Severity::from_number(severity).unwrap_or_default().name(),
            By::Service => service,
        };
        if !self.series.contains_key(name) {
            self.series.insert(name.to_owned(), vec![0; self.steps.len()]);
        }
        if let Some(count) = self.series.get_mut(name).and_then(|counts| counts.get_mut(nth)) {
            *count += records;
        }
    }

    /// The counts, as input for another [`Hits`]: start of the step, severity, service and number.
    #[must_use]
    pub fn counts(self) -> Vec<(i64, u8, String, u64)> {
        let mut all = Vec::new();
        for (name, counts) in self.series {
            let (severity, service) = match self.by {
                By::Severity => (Severity::from_text(&name).map_or(0, Severity::number), String::new()),
                By::Service => (0, name),
            };
            for (nth, records) in (0_i64..).zip(counts).filter(|&(_, records)| records > 0) {
                all.push((self.steps.range.start_us + nth * self.steps.step_us, severity, service.clone(), records));
            }
        }
        all
    }

    /// Returns the series: severities from the highest, services from the largest.
    #[must_use]
    pub fn finish(self) -> Vec<Series> {
        let mut series: Vec<Series> = (self.series.into_iter())
            .map(|(name, counts)| Series { name, total: counts.iter().sum(), counts })
            .collect();
        match self.by {
            By::Severity => {
                series.sort_by_key(|series| {
                    std::cmp::Reverse(Severity::from_text(&series.name).map_or(0, Severity::number))
                });
            }
            By::Service => {
                series.sort_by(|a, b| (b.total, &a.name).cmp(&(a.total, &b.name)));
                let rest = series.split_off(series.len().min(SERIES_MAX));
                if let Some(rest) = together(rest) {
                    series.push(rest);
                }
            }
        }
        series
    }
}

fn together(rest: Vec<Series>) -> Option<Series> {
    rest.into_iter().reduce(|mut sum, series| {
        sum.counts.iter_mut().zip(series.counts).for_each(|(sum, count)| *sum += count);
        Series { name: REST.to_owned(), total: sum.total + series.total, counts: sum.counts }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600 * SECOND_US;

    #[test]
    fn a_range_is_widened_to_whole_steps() {
        let range = |start_us, end_us| Range { start_us, end_us };
        let steps = Steps::over(range(59, MINUTE_US + 1), Some(MINUTE_US)).unwrap();
        assert_eq!((steps.range, steps.len()), (range(0, 2 * MINUTE_US), 2));
        let steps = Steps::over(range(-1, 0), Some(MINUTE_US)).unwrap();
        assert_eq!(steps.range, range(-MINUTE_US, 0));
        assert!(Steps::over(range(0, HOUR_US * 24), Some(SECOND_US)).is_err());
        for (length, step_s) in
            [(1, 1), (900 * SECOND_US, 10), (HOUR_US, 60), (24 * HOUR_US, 900), (30 * 24 * HOUR_US, 43_200)]
        {
            assert_eq!(Steps::over(range(0, length), None).unwrap().step_us, step_s * SECOND_US);
        }
        assert!(Steps::over(range(-62_135_596_800_000_000, 253_402_300_799_999_999), None).unwrap().len() <= 102);
    }

    #[test]
    fn small_services_are_combined() {
        let steps = Steps::over(Range { start_us: 0, end_us: 10 * SECOND_US }, Some(SECOND_US)).unwrap();
        let mut hits = Hits::new(steps, By::Service);
        for service in 0..30 {
            hits.add_many(SECOND_US * 3, 9, &format!("s{service:02}"), 30 - service);
        }
        hits.add_many(SECOND_US * 10, 9, "outside", 1);
        let series = hits.finish();
        assert_eq!(series.len(), SERIES_MAX + 1);
        assert_eq!((&*series[0].name, series[0].counts[3]), ("s00", 30));
        assert_eq!((&*series[20].name, series[20].total), (REST, (1..=10).sum::<u64>()));
    }
}
