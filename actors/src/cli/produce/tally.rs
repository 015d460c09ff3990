//! What was sent and what became of it.

use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Deserialize;

/// Errors kept for the summary; the rest is only counted.
const ERRORS_KEPT: usize = 5;

/// An intake answer's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// Lines that became records.
    pub accepted: u64,
    /// Lines that were discarded.
    #[serde(default)]
    pub rejected: u64,
    /// Records kept as plain text.
    #[serde(default)]
    pub parse_errors: u64,
    /// The first errors.
    #[serde(default)]
    pub errors: Vec<LineError>,
}

/// One line's error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LineError {
    /// Its line in the body, from 1.
    pub line: u64,
    /// What is wrong.
    pub error: String,
}

/// Sums over one connection, then over all.
#[derive(Debug)]
pub struct Tally {
    /// Bodies that were answered with success.
    pub bodies: u64,
    /// Their bytes, before compression.
    pub bytes: u64,
    /// Records in bodies that were sent at least once.
    pub sent: u64,
    /// Records the server took.
    pub accepted: u64,
    /// Records the server discarded.
    pub rejected: u64,
    /// Records the server kept as plain text.
    pub parse_errors: u64,
    /// Requests that were repeated.
    pub retried: u64,
    /// Bodies that were repeated after their answer was lost: unless the server knows their key, they may be in twice.
    pub maybe_doubled: u64,
    /// The first errors.
    pub errors: Vec<String>,
    ack_us: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let ack_us = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are in order");
        Self {
            bodies: 0,
            bytes: 0,
            sent: 0,
            accepted: 0,
            rejected: 0,
            parse_errors: 0,
            retried: 0,
            maybe_doubled: 0,
            errors: Vec::new(),
            ack_us,
        }
    }
}

impl Tally {
    /// A body was answered with success after `took`.
    pub fn answered(&mut self, number: u64, bytes: usize, counts: Counts, took: Duration) {
        self.bodies += 1;
        self.bytes += bytes as u64;
        self.accepted += counts.accepted;
        self.rejected += counts.rejected;
        self.parse_errors += counts.parse_errors;
        self.ack_us.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let told =
            counts.errors.into_iter().map(|LineError { line, error }| format!("body {number}, line {line}: {error}"));
        self.errors.extend(told.take(ERRORS_KEPT.saturating_sub(self.errors.len())));
    }

    /// Adds another connection's.
    pub fn add(&mut self, other: Self) {
        self.bodies += other.bodies;
        self.bytes += other.bytes;
        self.sent += other.sent;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.parse_errors += other.parse_errors;
        self.retried += other.retried;
        self.maybe_doubled += other.maybe_doubled;
        self.errors.extend(other.errors.into_iter().take(ERRORS_KEPT.saturating_sub(self.errors.len())));
        self.ack_us.add(&other.ack_us).expect("all histograms have the same bounds");
    }

    /// Whether the server took everything that was sent.
    #[must_use]
    pub fn all_accepted(&self) -> bool {
        self.rejected == 0 && self.accepted == self.sent
    }

    /// Time to the acknowledgement, in milliseconds, by name.
    fn ack_ms(&self) -> [(&'static str, f64); 5] {
        let at = |quantile| self.ack_us.value_at_quantile(quantile) as f64 / 1000.0;
        [
            ("p50", at(0.5)),
            ("p90", at(0.9)),
            ("p99", at(0.99)),
            ("p99.9", at(0.999)),
            ("max", if self.ack_us.is_empty() { 0.0 } else { self.ack_us.max() as f64 / 1000.0 }),
        ]
    }

    /// As one JSON object.
    #[must_use]
    pub fn json(&self, elapsed: Duration, stopped: Option<&str>) -> serde_json::Value {
        let seconds = elapsed.as_secs_f64();
        let ack_ms: serde_json::Map<_, _> =
            self.ack_ms().into_iter().map(|(name, ms)| (name.into(), ms.into())).collect();
        serde_json::json!({
            "sent": self.sent,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "parse_errors": self.parse_errors,
            "bodies": self.bodies,
            "bytes": self.bytes,
            "retried": self.retried,
            "maybe_doubled_bodies": self.maybe_doubled,
            "seconds": seconds,
            "records_per_second": per_second(self.accepted, seconds),
            "bytes_per_second": per_second(self.bytes, seconds),
            "ack_ms": ack_ms,
            "errors": self.errors,
            "stopped": stopped,
        })
    }

    /// For people.
    ///
    /// # Errors
    /// `out` took no more.
    pub fn print(&self, out: &mut dyn Write, elapsed: Duration, open_loop: bool) -> io::Result<()> {
        let seconds = elapsed.as_secs_f64();
        writeln!(
            out,
            "sent {} records: {} accepted, {} rejected, {} kept as plain text",
            self.sent, self.accepted, self.rejected, self.parse_errors
        )?;
        writeln!(
            out,
            "in {seconds:.2} s: {:.0} records/s, {:.2} MiB/s, {} bodies, {} requests repeated",
            per_second(self.accepted, seconds),
            per_second(self.bytes, seconds) / f64::from(1 << 20),
            self.bodies,
            self.retried,
        )?;
        let from = if open_loop { "from the scheduled time" } else { "from the first sending" };
        let ack_ms = self.ack_ms().map(|(name, ms)| format!("{name} {ms:.2}")).join("  ");
        writeln!(out, "acknowledged after, in ms {from}: {ack_ms}")?;
        if self.maybe_doubled > 0 {
            writeln!(
                out,
                "{} bodies were sent again after their answer was lost: their records are in twice if they went to another \
                 process than before, which does not know their Idempotency-Key",
                self.maybe_doubled
            )?;
        }
        self.errors.iter().try_for_each(|error| writeln!(out, "{error}"))
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}
