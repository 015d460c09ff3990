//! Counts of a run: what was sent, accepted and rejected, and how long it took.

use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Deserialize;

use crate::output::count;

/// Number of errors in the summary; further ones are only counted.
const ERRORS_MAX: usize = 5;

/// Counts in a response of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// Lines that became records.
    pub accepted: u64,
    /// Lines that were discarded.
    #[serde(default)]
    pub rejected: u64,
    /// Records stored as plain text, because their format could not be parsed.
    #[serde(default)]
    pub parse_errors: u64,
    /// The first errors.
    #[serde(default)]
    pub errors: Vec<LineError>,
}

/// One line's error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LineError {
    /// Line in the body, from 1.
    pub line: u64,
    /// Message.
    pub error: String,
}

/// Sums over one connection, or over all.
#[derive(Debug)]
pub struct Tally {
    /// Bodies that were acknowledged.
    pub bodies: u64,
    /// Size of these bodies before compression.
    pub bytes: u64,
    /// Records in bodies that were sent.
    pub sent: u64,
    /// Records that the server accepted.
    pub accepted: u64,
    /// Records that the server discarded.
    pub rejected: u64,
    /// Records that the server stored as plain text.
    pub parse_errors: u64,
    /// Requests that were retried.
    pub retried: u64,
    /// Bodies that were retried after their response was lost: unless the server still knows their key, they may be
    /// stored twice.
    pub possible_duplicates: u64,
    /// Bodies that were sent and not answered: they may have been stored.
    pub unanswered: u64,
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
            possible_duplicates: 0,
            unanswered: 0,
            errors: Vec::new(),
            ack_us,
        }
    }
}

impl Tally {
    /// A body is being sent; `records` is `None` if only the server can count them.
    pub fn started(&mut self, records: Option<u64>) {
        self.sent += records.unwrap_or(0);
        self.unanswered += 1;
    }

    /// A body was rejected, or is not retried any longer.
    pub fn given_up(&mut self) {
        self.unanswered -= 1;
    }

    /// A body was acknowledged after `took`. `is_document` if its records were not counted when it was started.
    pub fn answered(&mut self, number: u64, bytes: usize, is_document: bool, counts: Counts, took: Duration) {
        self.unanswered -= 1;
        self.bodies += 1;
        self.sent += if is_document { counts.accepted + counts.rejected } else { 0 };
        self.bytes += bytes as u64;
        self.accepted += counts.accepted;
        self.rejected += counts.rejected;
        self.parse_errors += counts.parse_errors;
        self.ack_us.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let errors =
            counts.errors.into_iter().map(|LineError { line, error }| format!("body {number}, line {line}: {error}"));
        self.errors.extend(errors.take(ERRORS_MAX.saturating_sub(self.errors.len())));
    }

    /// Adds the sums of another connection.
    pub fn add(&mut self, other: &Self) {
        self.bodies += other.bodies;
        self.bytes += other.bytes;
        self.sent += other.sent;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.parse_errors += other.parse_errors;
        self.retried += other.retried;
        self.possible_duplicates += other.possible_duplicates;
        self.unanswered += other.unanswered;
        self.errors.extend(other.errors.iter().take(ERRORS_MAX.saturating_sub(self.errors.len())).cloned());
        self.ack_us.add(&other.ack_us).expect("all histograms have the same bounds");
    }

    /// Whether the server accepted everything that was sent.
    #[must_use]
    pub fn all_accepted(&self) -> bool {
        self.rejected == 0 && self.accepted == self.sent
    }

    /// Time to the acknowledgment, in milliseconds, by percentile; `None` if no body was acknowledged.
    fn ack_ms(&self) -> Option<[(&'static str, f64); 5]> {
        let at = |quantile| self.ack_us.value_at_quantile(quantile) as f64 / 1000.0;
        let max = self.ack_us.max() as f64 / 1000.0;
        let percentiles = [("p50", at(0.5)), ("p90", at(0.9)), ("p99", at(0.99)), ("p99.9", at(0.999)), ("max", max)];
        (!self.ack_us.is_empty()).then_some(percentiles)
    }

    /// As one JSON object.
    #[must_use]
    pub fn json(&self, elapsed: Duration, stopped: Option<&str>) -> serde_json::Value {
        let seconds = elapsed.as_secs_f64();
        let ack_ms: Option<serde_json::Map<_, _>> = self
            .ack_ms()
            .map(|percentiles| percentiles.into_iter().map(|(name, ms)| (name.into(), ms.into())).collect());
        serde_json::json!({
            "sent": self.sent,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "parse_errors": self.parse_errors,
            "bodies": self.bodies,
            "bytes": self.bytes,
            "retried": self.retried,
            "possible_duplicate_bodies": self.possible_duplicates,
            "unanswered_bodies": self.unanswered,
            "seconds": seconds,
            "records_per_second": per_second(self.accepted, seconds),
            "bytes_per_second": per_second(self.bytes, seconds),
            "ack_ms": ack_ms,
            "errors": self.errors,
            "stopped": stopped,
        })
    }

    /// Prints the summary for people.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn print(&self, out: &mut dyn Write, elapsed: Duration, open_loop: bool) -> io::Result<()> {
        let seconds = elapsed.as_secs_f64();
        writeln!(
            out,
            "sent {}: {} accepted, {} rejected, {} stored as plain text",
            count(self.sent, "record"),
            self.accepted,
            self.rejected,
            self.parse_errors
        )?;
        if let Some(percentiles) = self.ack_ms() {
            writeln!(
                out,
                "in {seconds:.2} s: {:.0} records/s, {:.2} MiB/s, {}, {} retried",
                per_second(self.accepted, seconds),
                per_second(self.bytes, seconds) / f64::from(1 << 20),
                bodies(self.bodies),
                count(self.retried, "request"),
            )?;
            let from = if open_loop { "the scheduled time" } else { "the first attempt" };
            let ack_ms = percentiles.map(|(name, ms)| format!("{name} {ms:.2}")).join("  ");
            writeln!(out, "time to acknowledgment from {from}, in ms: {ack_ms}")?;
        }
        if self.unanswered > 0 {
            writeln!(out, "{} not answered before the end: the records may have been stored", bodies(self.unanswered))?;
        }
        if self.possible_duplicates > 0 {
            writeln!(
                out,
                "{} retried after the response was lost: the records may be stored twice if the retry reached another \
                 server, which does not know the Idempotency-Key",
                bodies(self.possible_duplicates)
            )?;
        }
        self.errors.iter().try_for_each(|error| writeln!(out, "{error}"))
    }
}

fn bodies(number: u64) -> String {
    format!("{number} {}", if number == 1 { "body" } else { "bodies" })
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(tally: &Tally) -> String {
        let mut out = Vec::new();
        tally.print(&mut out, Duration::from_secs(2), false).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn without_an_acknowledgment_there_are_no_percentiles() {
        let tally = Tally::default();
        assert_eq!(printed(&tally), "sent 0 records: 0 accepted, 0 rejected, 0 stored as plain text\n");
        assert_eq!(tally.json(Duration::ZERO, None)["ack_ms"], serde_json::Value::Null);
    }

    #[test]
    fn one_of_each_is_singular() {
        let mut tally = Tally { retried: 1, ..Tally::default() };
        tally.started(Some(1));
        tally.answered(1, 10, false, Counts { accepted: 1, ..Counts::default() }, Duration::from_millis(5));
        let text = printed(&tally);
        assert!(text.starts_with("sent 1 record: 1 accepted"), "{text}");
        assert!(text.contains("1 body, 1 request retried"), "{text}");
        assert!(tally.all_accepted() && tally.unanswered == 0);
    }
}
