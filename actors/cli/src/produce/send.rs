//! One connection: sends each body, with retries, until it is answered or cannot succeed.
//!
//! - Only requests that may succeed later are retried: 429, 502, 503, 504 and connection errors. Any other response
//!   stops the command, because the next body would get the same one.
//! - `Retry-After` is honored; otherwise the delay doubles, with jitter, so that many producers do not retry at once.
//! - A retry carries the same `Idempotency-Key`. If the response to a body was lost, it may have been stored, and is
//!   counted as a possible duplicate.

use std::borrow::Cow;
use std::io::{self, Read as _, Write as _};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use logweir::internal::{Backoff, Delays};

use super::shared::{Body, Shared};
use super::tally::{Counts, Tally};
use super::target::{Compression, Target};
use crate::exit;
use crate::remote::{connection_error, tls_cannot_succeed};

/// Delays between retries, unless the server asks for more.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// A response is read up to this many bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Result of one request.
#[derive(Debug, PartialEq)]
enum Attempt {
    /// The server responded.
    Answer { status: u16, retry_after: Option<Duration>, text: String },
    /// The server did not receive the request.
    NotSent(String),
    /// The server may have received it.
    Lost(String),
    /// TLS cannot be established: the certificate is invalid, or the server does not use TLS on this port.
    TlsFailed(String),
}

/// What to do next.
#[derive(Debug, PartialEq)]
enum Next {
    Done(Option<Counts>),
    Retry {
        why: String,
        retry_after: Option<Duration>,
        doubtful: bool,
    },
    /// With the exit code.
    Stop(u8, String),
}

/// Decides what to do after a request. Pure.
fn decide(attempt: Attempt) -> Next {
    let shown = |text: &str| {
        let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        line.chars().take(500).collect::<String>()
    };
    // The server's own sentence, without the JSON around it.
    let detail = |text: &str| {
        let error = serde_json::from_str::<serde_json::Value>(text).ok();
        shown(error.as_ref().and_then(|error| error["detail"].as_str()).unwrap_or(text))
    };
    match attempt {
        Attempt::NotSent(why) => Next::Retry { why, retry_after: None, doubtful: false },
        Attempt::Lost(why) => Next::Retry { why, retry_after: None, doubtful: true },
        Attempt::TlsFailed(why) => Next::Stop(exit::UNAVAILABLE, why),
        Attempt::Answer { status: 204, .. } => Next::Done(None),
        Attempt::Answer { status: 200..=299, text, .. } => match serde_json::from_str(&text) {
            Ok(counts) => Next::Done(Some(counts)),
            Err(_) => {
                let why = format!("unexpected response, expected counts of records: {}", shown(&text));
                Next::Stop(exit::FAILED, why)
            }
        },
        Attempt::Answer { status: status @ (429 | 503), retry_after, text } => {
            let doubtful = may_be_stored(&text);
            Next::Retry { why: format!("{status} {}", detail(&text)).trim_end().to_owned(), retry_after, doubtful }
        }
        // A proxy in between lost the response.
        Attempt::Answer { status: status @ (502 | 504), retry_after, text } => Next::Retry {
            why: format!("{status} {}", detail(&text)).trim_end().to_owned(),
            retry_after,
            doubtful: true,
        },
        Attempt::Answer { status, text, .. } => {
            let hint = match status {
                401 | 403 => " (specify a token with --token-file, --token or $LOGWEIR_TOKEN)",
                413 => " (reduce --batch-bytes)",
                300..=399 => " (redirects are not followed: specify the final address)",
                404 | 405 => " (expected the base address of a logweir server as --url)",
                _ => "",
            };
            Next::Stop(exit::FAILED, format!("rejected with {status}: {}{hint}", detail(&text)))
        }
    }
}

/// Whether a rejection leaves it open whether the body was stored: the acknowledgment timed out, or a stage was
/// restarted.
fn may_be_stored(response: &str) -> bool {
    let error = serde_json::from_str::<serde_json::Value>(response).ok();
    error.is_some_and(|error| matches!(error["error"].as_str(), Some("ack_timeout" | "restarted")))
}

/// Delay before the next attempt of a series.
fn delay(series: &mut Delays, retry_after: Option<Duration>) -> Duration {
    match retry_after {
        // Never earlier than requested, and not all producers at the same time. The server may request any number.
        Some(requested) => requested.saturating_add(RETRY.delays().next_delay()),
        None => series.next_delay(),
    }
}

/// Sends the bodies of the queue over one connection until none is left or the command is stopped.
///
/// The tally is updated as the bodies are answered: the command does not always wait for this function to return.
pub(super) fn connection(target: &Target, shared: &Shared, tally: &Mutex<Tally>) {
    let agent = target.remote.agent_config().timeout_global(Some(Duration::from_secs(60))).max_idle_connections(1);
    let agent = ureq::Agent::from(agent.build());
    while let Some(body) = shared.queue.pop() {
        if body.due.is_some_and(|due| !shared.stop.sleep_until(due)) {
            break;
        }
        locked(tally).started(body.records);
        if let Err((code, why)) = deliver(&agent, target, shared, &body, tally) {
            locked(tally).given_up();
            shared.fail(code, format!("body {}: {why}", body.number));
            break;
        }
    }
}

fn locked(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends one body until it is answered.
fn deliver(
    agent: &ureq::Agent,
    target: &Target,
    shared: &Shared,
    body: &Body,
    tally: &Mutex<Tally>,
) -> Result<(), (u8, String)> {
    let encoded = encode(&body.bytes, target.compression).map_err(|error| (exit::FAILED, error.to_string()))?;
    let started = Instant::now();
    let mut delays = RETRY.delays();
    let mut doubtful = false;
    loop {
        match decide(post(agent, target, body.number, &encoded)) {
            Next::Done(counts) => {
                let counts =
                    counts.unwrap_or_else(|| Counts { accepted: body.records.unwrap_or(0), ..Counts::default() });
                shared.progress.inc(counts.accepted);
                let took = body.due.unwrap_or(started).elapsed();
                locked(tally).answered(body.number, body.bytes.len(), body.records.is_none(), counts, took);
                return Ok(());
            }
            Next::Stop(code, why) => return Err((code, why)),
            Next::Retry { why, retry_after, doubtful: lost } => {
                let wait = delay(&mut delays, retry_after);
                if started.elapsed().saturating_add(wait) > target.retry_for {
                    let spent = target.retry_for.as_secs_f64();
                    return Err((exit::UNAVAILABLE, format!("gave up after {spent} s (--retry-for): {why}")));
                }
                if !shared.warned.swap(true, Ordering::Relaxed) {
                    shared.note(&format!("body {}: {why}; retrying for {:?}", body.number, target.retry_for));
                }
                if lost && !doubtful {
                    doubtful = true;
                    locked(tally).possible_duplicates += 1;
                }
                if !shared.stop.sleep_until(Instant::now() + wait) {
                    return Err((exit::FAILED, format!("interrupted before a retry: {why}")));
                }
                locked(tally).retried += 1;
            }
        }
    }
}

fn post(agent: &ureq::Agent, target: &Target, number: u64, encoded: &[u8]) -> Attempt {
    let mut request = agent
        .post(&target.url)
        .header("Content-Type", target.content_type)
        .header("Idempotency-Key", format!("{}-{number}", target.run));
    if let Some(encoding) = target.compression.name() {
        request = request.header("Content-Encoding", encoding);
    }
    if let Some(token) = target.remote.token() {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    match request.send(encoded) {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let seconds =
                answer.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let mut text = String::new();
            match answer.into_body().into_reader().take(ANSWER_BYTES_MAX).read_to_string(&mut text) {
                // Any other status is a rejection, even without its text.
                Err(error) if status < 300 => Attempt::Lost(format!("the response was cut off: {error}")),
                _ => Attempt::Answer { status, retry_after: seconds.map(Duration::from_secs), text },
            }
        }
        Err(error) if tls_cannot_succeed(&error) => Attempt::TlsFailed(connection_error(&error)),
        Err(error) if never_sent(&error) => Attempt::NotSent(connection_error(&error)),
        Err(error) => Attempt::Lost(connection_error(&error)),
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

fn encode(bytes: &[u8], compression: Compression) -> io::Result<Cow<'_, [u8]>> {
    let encoded = match compression {
        Compression::None => return Ok(bytes.into()),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes)?;
            encoder.finish()?
        }
        Compression::Zstd => zstd::encode_all(bytes, 1)?,
        Compression::Deflate => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes)?;
            encoder.finish()?
        }
        Compression::Snappy => snap::raw::Encoder::new().compress_vec(bytes)?,
    };
    Ok(encoded.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, text: &str) -> Next {
        decide(Attempt::Answer { status, retry_after: None, text: text.into() })
    }

    #[test]
    fn only_requests_that_may_succeed_later_are_retried() {
        for status in [429, 503, 502, 504] {
            assert!(matches!(answer(status, ""), Next::Retry { .. }), "{status}");
        }
        for status in [301, 400, 401, 404, 413, 500, 501] {
            assert!(matches!(answer(status, ""), Next::Stop(exit::FAILED, _)), "{status}");
        }
        assert!(matches!(decide(Attempt::NotSent("".into())), Next::Retry { doubtful: false, .. }));
        assert!(matches!(decide(Attempt::Lost("".into())), Next::Retry { doubtful: true, .. }));
        assert!(matches!(answer(503, ""), Next::Retry { doubtful: false, .. }));
        assert!(matches!(answer(504, ""), Next::Retry { doubtful: true, .. }));
        assert!(matches!(answer(503, r#"{"error":"ack_timeout"}"#), Next::Retry { doubtful: true, .. }));
    }

    #[test]
    fn accepted_records_are_counted_as_the_server_reports_them() {
        let counts = Counts { accepted: 2, rejected: 1, ..Counts::default() };
        assert_eq!(answer(200, r#"{"accepted":2,"rejected":1,"more":0}"#), Next::Done(Some(counts)));
        assert_eq!(answer(204, ""), Next::Done(None));
        assert!(matches!(answer(200, "<html>"), Next::Stop(exit::FAILED, _)));
    }

    #[test]
    fn a_delay_is_never_shorter_than_requested() {
        let mut series = RETRY.delays();
        let requested = Duration::from_secs(20);
        for _ in 0..100 {
            assert!(delay(&mut series, None) <= Duration::from_secs(10));
            let after = delay(&mut series, Some(requested));
            assert!((requested..=requested + Duration::from_millis(101)).contains(&after));
        }
        assert_eq!(delay(&mut series, Some(Duration::MAX)), Duration::MAX);
    }

    #[test]
    fn every_compression_can_be_read_back() {
        use logweir::internal::decompress;
        use logweir::message::Encoding;
        let text = b"a line\n".repeat(100);
        for (compression, encoding) in [
            (Compression::None, Encoding::Identity),
            (Compression::Gzip, Encoding::Gzip),
            (Compression::Zstd, Encoding::Zstd),
            (Compression::Deflate, Encoding::Deflate),
            (Compression::Snappy, Encoding::Snappy),
        ] {
            let body = encode(&text, compression).unwrap().into_owned().into();
            assert_eq!(decompress(&body, encoding, 1 << 20).unwrap(), text, "{compression:?}");
        }
    }
}
