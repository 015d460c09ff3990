//! One connection: a body goes out, again and again if need be, until it is answered or there is no hope.
//!
//! - Only what may succeed later is repeated: 429, 502, 503, 504 and connection errors. Any other answer stops everything,
//!   because the next body would get the same one.
//! - `Retry-After` is honoured; otherwise the pause doubles, with jitter, so that many producers do not come back at once.
//! - A repeated body carries the same `Idempotency-Key`. A body whose answer was lost may be in already, and is counted so.

use std::io::{self, Read as _, Write as _};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::tally::{Counts, Tally};
use super::{Body, Compression, Shared, Target, exit};

/// Longest pause that is our own choice.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// First pause.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What one request came to.
#[derive(Debug, PartialEq)]
enum Attempt {
    /// An answer came.
    Answer { status: u16, retry_after: Option<Duration>, text: String },
    /// The server never saw the request.
    NotSent(String),
    /// The server may have seen it.
    Lost(String),
}

/// What to do then.
#[derive(Debug, PartialEq)]
enum Next {
    Done(Option<Counts>),
    Again { why: String, retry_after: Option<Duration>, doubtful: bool },
    Stop(String),
}

/// The decision, without the network.
fn decide(attempt: Attempt) -> Next {
    let shown = |text: &str| {
        let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        line.chars().take(300).collect::<String>()
    };
    match attempt {
        Attempt::NotSent(why) => Next::Again { why, retry_after: None, doubtful: false },
        Attempt::Lost(why) => Next::Again { why, retry_after: None, doubtful: true },
        Attempt::Answer { status: 204, .. } => Next::Done(None),
        Attempt::Answer { status: 200..=299, text, .. } => match serde_json::from_str(&text) {
            Ok(counts) => Next::Done(Some(counts)),
            Err(_) => {
                Next::Stop(format!("answered success without counts: is this logweir's intake? {}", shown(&text)))
            }
        },
        Attempt::Answer { status: status @ (429 | 503), retry_after, text } => {
            let doubtful = may_be_stored(&text);
            Next::Again { why: format!("{status} {}", shown(&text)), retry_after, doubtful }
        }
        // A proxy between us lost the answer.
        Attempt::Answer { status: status @ (502 | 504), retry_after, text } => {
            Next::Again { why: format!("{status} {}", shown(&text)), retry_after, doubtful: true }
        }
        Attempt::Answer { status, text, .. } => {
            let hint = match status {
                401 | 403 => " (give the token with --token or $LOGWEIR_TOKEN)",
                413 => " (smaller bodies: --batch-bytes)",
                300..=399 => " (redirections are not followed: give the final URL)",
                _ => "",
            };
            Next::Stop(format!("refused with {status}: {}{hint}", shown(&text)))
        }
    }
}

/// Whether a refusal is one that says so itself: the body did not get as far as was asked in time, or a stage went down
/// with it.
fn may_be_stored(answer: &str) -> bool {
    let error = serde_json::from_str::<serde_json::Value>(answer).ok();
    error.is_some_and(|error| matches!(error["error"].as_str(), Some("ack_timeout" | "restarted")))
}

/// The pause before attempt `attempt + 1`; `random` from 0 to 1.
fn pause(attempt: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    match retry_after {
        // Never earlier than told, and not all at the same moment.
        Some(told) => told + PAUSE_FIRST.mul_f64(random),
        None => PAUSE_FIRST.saturating_mul(1 << attempt.min(16)).min(PAUSE_MAX).mul_f64(0.5 + 0.5 * random),
    }
}

/// Sends bodies over one kept-alive connection until there are no more, and returns what became of them.
pub(super) fn connection(target: &Target, shared: &Shared) -> Tally {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_global(Some(Duration::from_secs(60)))
        .max_idle_connections(1)
        .user_agent(concat!("logweir/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let mut tally = Tally::default();
    while let Some(body) = shared.next_body() {
        if let Some(due) = body.due {
            shared.sleep_until(due);
        }
        if shared.stopped() {
            break;
        }
        if let Err((code, why)) = deliver(&agent, target, shared, &body, &mut tally) {
            shared.stop(code, format!("body {}: {why}", body.number));
            break;
        }
    }
    tally
}

/// Sends one body until it is answered.
fn deliver(
    agent: &ureq::Agent,
    target: &Target,
    shared: &Shared,
    body: &Body,
    tally: &mut Tally,
) -> Result<(), (u8, String)> {
    let encoded = encode(&body.bytes, target.compression).map_err(|error| (exit::FAILED, error.to_string()))?;
    let started = Instant::now();
    let mut doubtful = false;
    tally.sent += body.records.unwrap_or(0);
    for attempt in 0.. {
        match decide(post(agent, target, body.number, &encoded)) {
            Next::Done(counts) => {
                let counts =
                    counts.unwrap_or_else(|| Counts { accepted: body.records.unwrap_or(0), ..Counts::default() });
                // How many records a document holds is known to the server alone.
                tally.sent += if body.records.is_none() { counts.accepted + counts.rejected } else { 0 };
                shared.progress.inc(counts.accepted);
                tally.answered(body.number, body.bytes.len(), counts, body.due.unwrap_or(started).elapsed());
                return Ok(());
            }
            Next::Stop(why) => return Err((exit::FAILED, why)),
            Next::Again { why, retry_after, doubtful: lost } => {
                let wait = pause(attempt, retry_after, rand::random());
                if started.elapsed() + wait > target.retry_for {
                    let spent = target.retry_for.as_secs_f64();
                    return Err((exit::UNAVAILABLE, format!("given up after {spent} s (--retry-for): {why}")));
                }
                if !shared.warned.swap(true, Ordering::Relaxed) {
                    let note = format!("body {}: {why}; trying again for {:?}", body.number, target.retry_for);
                    shared.progress.suspend(|| drop(writeln!(io::stderr(), "logweir: {note}")));
                }
                if lost && !doubtful {
                    doubtful = true;
                    tally.maybe_doubled += 1;
                }
                if !shared.sleep_until(Instant::now() + wait) {
                    return Err((exit::FAILED, format!("interrupted while trying again: {why}")));
                }
                tally.retried += 1;
            }
        }
    }
    unreachable!("the loop ends by returning")
}

fn post(agent: &ureq::Agent, target: &Target, number: u64, encoded: &[u8]) -> Attempt {
    let mut request = agent
        .post(&target.url)
        .header("Content-Type", target.content_type)
        .header("Idempotency-Key", format!("{}-{number}", target.run));
    if let Some(encoding) = target.compression.name() {
        request = request.header("Content-Encoding", encoding);
    }
    if let Some(token) = &target.token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    match request.send(encoded) {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let seconds =
                answer.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let mut text = String::new();
            match answer.into_body().into_reader().take(ANSWER_BYTES_MAX).read_to_string(&mut text) {
                // The status alone already says that it was not taken.
                Err(error) if status < 300 => Attempt::Lost(format!("the answer was cut off: {error}")),
                _ => Attempt::Answer { status, retry_after: seconds.map(Duration::from_secs), text },
            }
        }
        Err(error) if never_sent(&error) => Attempt::NotSent(error.to_string()),
        Err(error) => Attempt::Lost(error.to_string()),
    }
}

fn never_sent(error: &ureq::Error) -> bool {
    use ureq::{Error, Timeout};
    match error {
        Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        Error::HostNotFound | Error::ConnectionFailed | Error::ConnectProxyFailed(_) | Error::Tls(_) => true,
        Error::Timeout(timeout) => matches!(timeout, Timeout::Resolve | Timeout::Connect),
        _ => false,
    }
}

fn encode(bytes: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::None => Ok(bytes.to_vec()),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::encode_all(bytes, 1),
    }
}

impl Shared {
    /// Sleeps until `then`, in steps that notice a stop; false if there was one.
    fn sleep_until(&self, then: Instant) -> bool {
        while !self.stopped() {
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, text: &str) -> Next {
        decide(Attempt::Answer { status, retry_after: None, text: text.into() })
    }

    #[test]
    fn only_what_may_succeed_later_is_repeated() {
        for status in [429, 503, 502, 504] {
            assert!(matches!(answer(status, ""), Next::Again { .. }), "{status}");
        }
        for status in [301, 400, 401, 404, 413, 500, 501] {
            assert!(matches!(answer(status, ""), Next::Stop(_)), "{status}");
        }
        assert!(matches!(decide(Attempt::NotSent("".into())), Next::Again { doubtful: false, .. }));
        assert!(matches!(decide(Attempt::Lost("".into())), Next::Again { doubtful: true, .. }));
        assert!(matches!(answer(503, ""), Next::Again { doubtful: false, .. }));
        assert!(matches!(answer(504, ""), Next::Again { doubtful: true, .. }));
        assert!(matches!(answer(503, r#"{"error":"ack_timeout"}"#), Next::Again { doubtful: true, .. }));
    }

    #[test]
    fn success_is_counted_only_as_the_server_says() {
        let counts = Counts { accepted: 2, rejected: 1, ..Counts::default() };
        assert_eq!(answer(200, r#"{"accepted":2,"rejected":1,"more":0}"#), Next::Done(Some(counts)));
        assert_eq!(answer(204, ""), Next::Done(None));
        assert!(matches!(answer(200, "<html>"), Next::Stop(_)));
    }

    #[test]
    fn the_pause_doubles_is_bounded_and_never_shorter_than_told() {
        for random in [0.0, 0.5, 1.0] {
            assert!(pause(0, None, random) <= PAUSE_FIRST);
            assert!(pause(3, None, random) >= 4 * PAUSE_FIRST);
            assert!(pause(u32::MAX, None, random) <= PAUSE_MAX);
            let told = Duration::from_secs(20);
            assert!((told..=told + PAUSE_FIRST).contains(&pause(9, Some(told), random)));
        }
    }
}
