//! A simulated web shop: several services, requests that pass through them under one trace, latencies, and occasional
//! bursts of errors with stack traces.
//!
//! The generator is pure (seed and time in, line out), so that demos, load tests and benchmarks see the same lines;
//! only [`run`] uses a clock.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use logweir_engine::clock::wall_us;
use logweir_engine::drain::Phase;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep_until};

use super::source_client::SourceClient;
use super::stream::BODY_BYTES;
use crate::message::{Delivery, Encoding, answer_channel};
use logweir_formats::{Defaults, Format};

/// One in this many requests starts a burst of errors.
const BURST_EVERY: u32 = 400;
/// Requests in a burst.
const BURST_LEN: u32 = 12;

/// The service that fails in a burst, its message, and its stack trace.
const FAILURES: [(&str, &str, &str); 3] = [
    (
        "payment",
        "charge failed: upstream timed out after 3000 ms",
        "TimeoutError: upstream timed out\n    at Gateway.charge (/srv/payment/gateway.js:118:13)\n    at async Checkout.pay (/srv/payment/checkout.js:54:20)",
    ),
    (
        "inventory",
        "cannot reserve: connection pool exhausted",
        "java.sql.SQLTransientConnectionException: pool - connection is not available\n\tat shop.inventory.Stock.reserve(Stock.java:88)\n\tat shop.inventory.Api.post(Api.java:41)",
    ),
    (
        "search",
        "index shard 3 does not answer",
        "Traceback (most recent call last):\n  File \"/srv/search/query.py\", line 72, in run\n    hits = shard.query(q)\nShardUnavailable: shard 3",
    ),
];

/// Method, path, service behind it, and its typical latency in milliseconds.
const ROUTES: [(&str, &str, &str, f64); 6] = [
    ("GET", "/api/products", "catalog", 14.0),
    ("GET", "/api/search", "search", 45.0),
    ("GET", "/api/cart", "cart", 8.0),
    ("POST", "/api/cart/items", "cart", 12.0),
    ("POST", "/api/orders", "inventory", 60.0),
    ("POST", "/api/payments", "payment", 180.0),
];

/// Other messages of the services, with their level; a more frequent message is listed more often.
const BACKGROUND_MESSAGES: [(&str, &str, &str); 10] = [
    ("catalog", "debug", "cache hit"),
    ("catalog", "debug", "cache hit"),
    ("catalog", "debug", "cache miss, reading from the database"),
    ("cart", "info", "session refreshed"),
    ("cart", "debug", "session loaded"),
    ("search", "info", "index segment merged"),
    ("inventory", "info", "stock level synchronized"),
    ("inventory", "warn", "stock is low"),
    ("payment", "info", "webhook delivered"),
    ("mailer", "info", "order confirmation sent"),
];

/// Generates lines.
pub struct Demo {
    random: StdRng,
    /// Remaining events of the current request.
    events: VecDeque<Event>,
    burst: Option<(usize, u32)>,
    line: String,
}

struct Event {
    service: &'static str,
    level: &'static str,
    message: Message,
    trace: u64,
    request: Option<(usize, u16, f64)>,
    stack: Option<&'static str>,
}

enum Message {
    Fixed(&'static str),
    Request,
}

impl Demo {
    /// The same seed generates the same lines.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), events: VecDeque::new(), burst: None, line: String::new() }
    }

    /// Returns the next line, one JSON object without a line feed, with the time `now_us`.
    pub fn next_line(&mut self, now_us: i64) -> &str {
        let event = loop {
            match self.events.pop_front() {
                Some(event) => break event,
                None => self.plan(),
            }
        };
        self.write(&event, now_us);
        &self.line
    }

    /// Plans one request from its arrival to its response.
    fn plan(&mut self) {
        let trace = self.random.random();
        let route = self.random.random_range(0..ROUTES.len());
        let (.., service, usual_ms) = ROUTES[route];
        // Most requests take about the typical time; a few take very long.
        let latency_ms = usual_ms * (0.5 - self.random.random::<f64>().max(1e-9).ln());
        let event = |service, level, message| Event { service, level, message, trace, request: None, stack: None };

        if self.random.random_range(0..3) == 0 {
            let (service, level, message) = BACKGROUND_MESSAGES[self.random.random_range(0..BACKGROUND_MESSAGES.len())];
            self.events.push_back(event(service, level, Message::Fixed(message)));
        }
        let failure = self.failure(service);
        let status = match failure {
            Some((_, message, stack)) => {
                let failed = event(service, "error", Message::Fixed(message));
                self.events.push_back(Event { stack: Some(stack), ..failed });
                503
            }
            None => [200, 200, 200, 200, 200, 200, 201, 304, 404, 401][self.random.random_range(0..10)],
        };
        if latency_ms > 5.0 * usual_ms {
            self.events.push_back(event(service, "warn", Message::Fixed("slow request")));
        }
        let level = match status {
            500.. => "error",
            400.. => "warn",
            _ => "info",
        };
        let answered = event("gateway", level, Message::Request);
        self.events.push_back(Event { request: Some((route, status, latency_ms)), ..answered });
    }

    /// Whether a request to `service` fails, which happens only in that service's bursts.
    fn failure(&mut self, service: &str) -> Option<(&'static str, &'static str, &'static str)> {
        if self.burst.is_none() && self.random.random_range(0..BURST_EVERY) == 0 {
            self.burst = Some((self.random.random_range(0..FAILURES.len()), BURST_LEN));
        }
        let (index, left) = self.burst?;
        let failure = FAILURES[index];
        if failure.0 != service {
            return None;
        }
        self.burst = (left > 1).then_some((index, left - 1));
        Some(failure)
    }

    fn write(&mut self, event: &Event, now_us: i64) {
        let Self { line, random, .. } = self;
        line.clear();
        let at = jiff::Timestamp::from_microsecond(now_us).unwrap_or_default();
        let pod: u8 = random.random_range(0..3);
        let (service, level, trace) = (event.service, event.level, event.trace);
        // Writing to a String cannot fail.
        let _ = write!(
            line,
            r#"{{"ts":"{at:.6}","level":"{level}","service":"{service}","host":"{service}-{pod}","message":""#
        );
        match (&event.message, event.request) {
            (Message::Request, Some((route, status, latency_ms))) => {
                let (method, path, ..) = ROUTES[route];
                let _ = write!(line, "{method} {path} {status} in {latency_ms:.1} ms");
            }
            (Message::Fixed(text), _) => line.push_str(text),
            (Message::Request, None) => {}
        }
        let _ = write!(line, r#"","trace_id":"{trace:016x}""#);
        if let Some((route, status, latency_ms)) = event.request {
            let (method, path, upstream, _) = ROUTES[route];
            let bytes = random.random_range(120..20_000);
            let user = random.random_range(1..5_000);
            let _ = write!(
                line,
                r#","method":"{method}","path":"{path}","status":{status},"duration_ms":{latency_ms:.3},"bytes":{bytes},"user":"u{user}","upstream":"{upstream}""#
            );
        }
        if let Some(stack) = event.stack {
            let _ = write!(line, r#","stack":{}"#, serde_json::Value::from(stack));
        }
        line.push('}');
    }
}

/// Interval at which lines are submitted.
const TICK: Duration = Duration::from_millis(50);

/// Generates `rate` lines per second until the drain. Lines that the pipeline does not accept in time are dropped: a
/// demo must not fill the memory. Returns the number of records stored.
pub async fn run(source: &SourceClient, rate: u32, seed: u64) -> u64 {
    let (stream, mut demo, mut stored) = (source.intake.new_stream(), Demo::new(seed), 0);
    let (start, mut made, mut next) = (Instant::now(), 0_u64, Instant::now());
    while source.drain.phase() < Phase::Draining {
        let owed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_mul(rate.into()) / 1000;
        let due = owed.saturating_sub(made).min(rate.into());
        made = owed;
        let now_us = wall_us();
        let mut body = Vec::with_capacity(usize::try_from(due).unwrap_or_default() * 300);
        for _ in 0..due {
            body.extend_from_slice(demo.next_line(now_us).as_bytes());
            body.push(b'\n');
            if body.len() >= BODY_BYTES {
                stored += submit(source, stream, std::mem::take(&mut body), now_us).await;
            }
        }
        stored += submit(source, stream, body, now_us).await;
        next = (next + TICK).max(Instant::now());
        tokio::select! {
            () = sleep_until(next) => {}
            () = source.drain.reached(Phase::Draining) => {}
        }
    }
    stored
}

async fn submit(source: &SourceClient, stream: u64, body: Vec<u8>, received_us: i64) -> u64 {
    if body.is_empty() {
        return 0;
    }
    let (reply, answer) = answer_channel();
    let delivery = Delivery {
        stream,
        body: Bytes::from(body),
        encoding: Encoding::Identity,
        format: Format::Ndjson,
        defaults: Defaults::default(),
        received_us,
        dedup_key: None,
        ack: source.ack,
        reply,
    };
    let outcome = match source.intake.submit(delivery).await {
        Ok(()) => answer.wait().await,
        Err(rejection) => Err(rejection),
    };
    match outcome {
        Ok(receipt) => receipt.report.accepted.into(),
        Err(rejection) => {
            metrics::counter!("logweir_rejected_requests_total", "reason" => rejection.reason).increment(1);
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_record::record::Severity;
    use std::collections::{BTreeMap, BTreeSet};

    fn chunk(seed: u64, lines: usize) -> logweir_record::chunk::Chunk {
        let mut demo = Demo::new(seed);
        let body: String =
            (0..lines).map(|index| demo.next_line(1_700_000_000_000_000 + index as i64).to_owned() + "\n").collect();
        let parsed = logweir_formats::parse(body.as_bytes(), Format::Ndjson, &Defaults::default(), 0, 1 << 16).unwrap();
        assert_eq!((parsed.report.accepted as usize, parsed.report.parse_errors), (lines, 0));
        parsed.chunk
    }

    #[test]
    fn the_shop_is_realistic_and_every_line_is_parsed() {
        let chunk = chunk(1, 20_000);
        let mut levels = BTreeMap::<u8, usize>::new();
        let mut services = BTreeSet::new();
        for (index, record) in (0..).zip(chunk.iter()) {
            assert_eq!(record.ts_us, 1_700_000_000_000_000 + index);
            *levels.entry(record.severity.number()).or_default() += 1;
            services.insert(record.service.to_owned());
            assert!(record.host.starts_with(record.service) && record.attributes.contains("trace_id"));
        }
        let share = |severity: Severity| levels[&severity.number()] as f64 / 20_000.0;
        assert!(services.len() >= 6, "{services:?}");
        assert!(share(Severity::INFO) > 0.5, "{levels:?}");
        assert!((0.002..0.1).contains(&share(Severity::ERROR)), "{levels:?}");
        assert!(chunk.iter().any(|record| record.attributes.contains("stack")));
    }

    #[test]
    fn the_same_seed_generates_the_same_lines() {
        assert_eq!(chunk(7, 500), chunk(7, 500));
        assert_ne!(chunk(7, 500), chunk(8, 500));
    }
}
