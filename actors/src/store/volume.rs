//! Records per minute, service and severity of one batch: what the histogram reads.

use std::collections::HashMap;

use super::rows::Row;
use super::time::{MINUTE_US, clamp};

/// A service's name in the counters is cut here: a longer one would not fit into the index of `log_volume`,
/// and a record must never stop a lane for its service's name.
pub(crate) const SERVICE_BYTES_MAX: usize = 512;

/// One counter, borrowed from the batch.
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

/// Counts `rows`. Sorted by key, so that two transactions that touch the same counters never wait for each other in a ring.
pub(crate) fn count<'a>(rows: impl Iterator<Item = Row<'a>>) -> Vec<(Key<'a>, i64)> {
    let mut counts: HashMap<Key<'a>, i64> = HashMap::new();
    // Neighbours mostly share their key: hash once per run of equal ones.
    let mut run: Option<(Key<'a>, i64)> = None;
    for row in rows {
        let key = Key::new(row.record.ts_us, row.record.service, row.record.severity.number());
        match &mut run {
            Some((current, records)) if *current == key => *records += 1,
            _ => {
                if let Some((key, records)) = run.replace((key, 1)) {
                    *counts.entry(key).or_default() += records;
                }
            }
        }
    }
    if let Some((key, records)) = run {
        *counts.entry(key).or_default() += records;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    counts
}

#[cfg(test)]
mod tests {
    use logweir_engine::record::{Record, Severity};

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
        let counted = count(rows.into_iter());
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
