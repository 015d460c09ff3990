//! The traffic: NDJSON bodies of fictitious services, from a fixed seed, with times that increase from event to event.
//!
//! Event `n` is always the same, so that the bare COPY gets exactly the rows that are sent to logweir.

use std::fmt::Write as _;

use logweir_formats::parse;
use logweir_formats::{Defaults, Format};
use logweir_record::chunk::Chunk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 42;
/// Number of distinct bodies; body `n` is created from number `n % BODIES`.
const BODIES: u64 = 16;
/// Default event time between two events, in microseconds.
const STEP_US: i64 = 10;
/// Length of `2026-11-20T10:00:00.000000`, the part of an event that depends on its number.
const STAMP_BYTES: usize = 26;

const SERVICES: [&str; 12] = [
    "checkout",
    "cart",
    "catalog",
    "search",
    "payment",
    "inventory",
    "mailer",
    "session",
    "gateway",
    "shipping",
    "reviews",
    "metrics",
];
const LEVELS: [&str; 8] = ["info", "info", "info", "info", "debug", "debug", "warn", "error"];
const WORDS: [&str; 16] = [
    "request", "handled", "in", "cache", "for", "customer", "order", "retry", "upstream", "answered", "with", "status",
    "queue", "took", "session", "page",
];

/// All bodies of a run.
#[derive(Clone)]
pub struct Corpus {
    events_per_body: u64,
    base_us: i64,
    step_us: i64,
    bodies: Vec<Body>,
}

#[derive(Clone)]
struct Body {
    bytes: Vec<u8>,
    /// Offsets of the times.
    stamps: Vec<usize>,
}

impl Corpus {
    /// Creates a corpus with events of about `event_bytes` from `base_us` on, with this number per body.
    #[must_use]
    pub fn new(event_bytes: usize, events_per_body: usize, base_us: i64) -> Self {
        let mut random = StdRng::seed_from_u64(SEED);
        let bodies = (0..BODIES).map(|_| Body::new(&mut random, event_bytes, events_per_body)).collect();
        Self { events_per_body: events_per_body as u64, base_us, step_us: STEP_US, bodies }
    }

    /// Creates a corpus with as many events per body as fit into `body_bytes`, at least one.
    #[must_use]
    pub fn of_bodies(event_bytes: usize, body_bytes: usize, base_us: i64) -> Self {
        Self::new(event_bytes, (body_bytes / event_bytes).max(1), base_us)
    }

    /// Sets the time between two events.
    #[must_use]
    pub fn spread(self, step_us: i64) -> Self {
        Self { step_us, ..self }
    }

    /// Number of events per body.
    #[must_use]
    pub fn events_per_body(&self) -> u64 {
        self.events_per_body
    }

    /// Average size of a body, in bytes.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.bodies.iter().map(|body| body.bytes.len()).sum::<usize>() / self.bodies.len()
    }

    /// Returns body `number` with its events' times. The buffer is part of the corpus: clone one per connection.
    pub fn body(&mut self, number: u64) -> &[u8] {
        let mut us = self.base_us + i64::try_from(number * self.events_per_body).expect("a count") * self.step_us;
        let place = usize::try_from(number % BODIES).expect("below BODIES");
        let Body { bytes, stamps } = &mut self.bodies[place];
        let mut second = i64::MIN;
        let mut text = String::with_capacity(STAMP_BYTES);
        for &at in stamps.iter() {
            let now = us.div_euclid(1_000_000);
            if now != second {
                second = now;
                text.clear();
                let instant = jiff::Timestamp::from_second(second).expect("a time of this century");
                let _ = write!(text, "{}.000000", instant.strftime("%Y-%m-%dT%H:%M:%S"));
            }
            let stamp = &mut bytes[at..at + STAMP_BYTES];
            stamp.copy_from_slice(text.as_bytes());
            let mut micros = us.rem_euclid(1_000_000);
            for digit in stamp[STAMP_BYTES - 6..].iter_mut().rev() {
                *digit = b'0' + u8::try_from(micros % 10).expect("a digit");
                micros /= 10;
            }
            us += self.step_us;
        }
        bytes
    }

    /// Returns the records of body `number`, parsed by logweir.
    #[must_use]
    pub fn chunk(&mut self, number: u64) -> Chunk {
        let parsed = parse(self.body(number), Format::Ndjson, &Defaults::default(), 0, 1 << 20);
        parsed.unwrap_or_else(|rejection| panic!("logweir cannot parse the corpus: {rejection:?}")).chunk
    }
}

impl Body {
    fn new(random: &mut StdRng, event_bytes: usize, events: usize) -> Self {
        let (mut text, mut stamps) = (String::new(), Vec::with_capacity(events));
        for _ in 0..events {
            let start = text.len();
            let service = SERVICES[random.random_range(0..SERVICES.len())];
            let level = LEVELS[random.random_range(0..LEVELS.len())];
            let (host, trace) = (random.random_range(0..40), random.random::<u64>());
            text.push_str("{\"ts\":\"");
            stamps.push(text.len());
            text.push_str(&"0".repeat(STAMP_BYTES));
            let _ = write!(text, "Z\",\"service\":\"{service}\",\"level\":\"{level}\",\"host\":\"node-{host:02}\"");
            let _ = write!(text, ",\"attributes\":{{\"trace_id\":\"{trace:016x}\",\"status\":{}}}", 200 + host);
            text.push_str(",\"message\":\"");
            let end = (start + event_bytes).saturating_sub(3);
            while text.len() < end {
                let _ = write!(text, "{} {:x} ", WORDS[random.random_range(0..WORDS.len())], random.random::<u16>());
            }
            text.truncate(end.max(start + 1));
            text.push_str("\"}\n");
        }
        Self { bytes: text.into_bytes(), stamps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_always_the_same_and_times_increase() {
        let mut corpus = Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000);
        assert_eq!(corpus.events_per_body(), 218);
        assert!((63 << 10..66 << 10).contains(&corpus.body_bytes()), "{}", corpus.body_bytes());
        let (seventh, first) = (corpus.chunk(7), corpus.chunk(0));
        assert_eq!(corpus.clone().chunk(7), seventh);
        let times = |chunk: &Chunk| chunk.iter().map(|record| record.ts_us).collect::<Vec<_>>();
        assert_eq!(times(&first)[..2], [1_700_000_000_000_000, 1_700_000_000_000_010]);
        assert_eq!(times(&seventh)[0], 1_700_000_000_000_000 + 7 * 218 * 10);
        let record = first.get(0).expect("the chunk is not empty");
        assert!(!record.service.is_empty() && record.attributes.contains("trace_id") && record.message.len() > 80);
    }
}
