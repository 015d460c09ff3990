//! A batch's records per minute, service and severity: the source of the histogram.

use logweir_record::timestamp::{MINUTE_US, clamp};

use crate::protocol::rows::Row;
use crate::volume::{Minutes, PerService};

/// Service names are cut to this many bytes in the counters: a longer one would not fit into the index of `log_volume`,
/// and a service name must never stop a lane.
pub(crate) const SERVICE_BYTES_MAX: usize = 512;

/// Key of a counter, borrowed from the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key<'a> {
    /// Start of the minute, microseconds since 1970.
    pub(crate) minute_us: i64,
    pub(crate) service: &'a str,
    pub(crate) severity: u8,
}

impl<'a> Key<'a> {
    pub(crate) fn new(ts_us: i64, service: &'a str, severity: u8) -> Self {
        let minute_us = clamp(ts_us).div_euclid(MINUTE_US) * MINUTE_US;
        Self { minute_us, service: &service[..service.floor_char_boundary(SERVICE_BYTES_MAX)], severity }
    }
}

/// Counts the rows of one batch as they are written.
#[derive(Default)]
pub(crate) struct Counter<'a>(PerService<'a, Minutes>);

impl<'a> Counter<'a> {
    /// Counts one row.
    pub(crate) fn add(&mut self, row: &Row<'a>) {
        let Key { minute_us, service, severity } =
            Key::new(row.record.ts_us, row.record.service, row.record.severity.number());
        self.0.entry(service).1.add(minute_us, severity);
    }

    /// Returns the counts sorted by key, so that transactions that update the same counters cannot deadlock.
    pub(crate) fn finish(self) -> Vec<(Key<'a>, i64)> {
        let mut counts = Vec::new();
        for (service, minutes) in self.0.all {
            for (minute_us, by_severity) in minutes.finish() {
                for (severity, records) in (0..).zip(by_severity).filter(|&(_, records)| records > 0) {
                    counts.push((Key { minute_us, service, severity }, records.into()));
                }
            }
        }
        counts.sort_unstable();
        counts
    }
}

#[cfg(test)]
mod tests {
    use logweir_record::record::{Record, Severity};

    use super::*;

    #[test]
    fn rows_are_counted_per_minute_service_and_severity() {
        let long = "ä".repeat(400);
        let row = |ts_us, service, severity| Row {
            id: 1,
            seq: 1,
            row: 0,
            record: Record { ts_us, severity, service, host: "", message: "", attributes: "" },
        };
        let rows = [
            row(59_999_999, "b", Severity::INFO),
            row(60_000_000, "b", Severity::INFO),
            row(1, "b", Severity::INFO),
            row(-1, "a", Severity::WARN),
            row(0, &long, Severity::WARN),
        ];
        let mut counter = Counter::default();
        rows.iter().for_each(|row| counter.add(row));
        let counted = counter.finish();
        let cut = &long[..512];
        let key = |minute, service, severity: Severity| Key {
            minute_us: minute * MINUTE_US,
            service,
            severity: severity.number(),
        };
        assert_eq!(
            counted,
            [
                (key(-1, "a", Severity::WARN), 1),
                (key(0, "b", Severity::INFO), 2),
                (key(0, cut, Severity::WARN), 1),
                (key(1, "b", Severity::INFO), 1),
            ]
        );
    }
}
