//! The common way of a body, whatever its protocol: what the request says, the body, the wait for its acknowledgement.
//!
//! - Whatever can be refused without the body is refused before it is read: a wrong parameter, the way down, a journal
//!   that takes nothing, a length above the limit.
//! - A success says what was asked for (`?ack=`) and no less. Where that cannot be said in time the answer is 503, which
//!   says that the records may be stored all the same.
//! - A protocol gives receipts and refusals its own shape, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderValue};
use actix_web::{HttpMessage, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use logweir_engine::clock::wall_us;
use logweir_engine::drain::Phase;
use tokio::time::{Instant, timeout_at};

use super::answer::Refused;
use super::budget::Share;
use super::limits::{Now, Sender};
use super::parameters::Parameters;
use super::{Shared, idempotency, stream_of};
use crate::config::Auth;
use crate::message::{AckLevel, Defaults, Delivery, Encoding, Receipt, Rejection};
use crate::parser::push_member;
use crate::producer::answer_channel;

/// A body whose length is not announced is read in steps of at least this many bytes of the budget.
const STEP_BYTES: usize = 64 << 10;

/// Reads the body, hands it in, and waits until it has come as far as `parameters` ask.
pub async fn take(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    parameters: Parameters,
) -> Result<Receipt, Refused> {
    let in_flight = Arc::clone(&shared.in_flight); // before the look at the phase: the way down waits for it
    if shared.drain.phase() >= Phase::Draining {
        return Err(Rejection::draining().into());
    }
    let running = shared.running()?;
    running.journal.check_writable().map_err(|error| Refused::from(Rejection::of_journal(&error)))?;

    let sender = request.extensions().get::<Sender>().copied().unwrap_or_default();
    let charge = |bytes| {
        let now = Now { uptime: shared.started.elapsed(), wall_s: wall_us().unsigned_abs() / 1_000_000 };
        shared.limits.charge(sender, bytes, now)
    };
    let announced = announced_length(request.headers())?;
    announced.map_or(Ok(()), charge)?;
    let (body, share) = read_body(shared, request, payload).await?;
    if announced.is_none() {
        charge(body.len())?;
    }
    drop(share); // from here the mailboxes count it
    let Parameters { encoding, format, ack, mut defaults } = parameters;
    stamp(&shared.config.auth, sender, &mut defaults);
    let (reply, answer) = answer_channel();
    let received_us = wall_us();
    let dedup_key = idempotency::key(request.headers(), received_us)?;
    let stream = stream_of(request);
    let delivery = Delivery { stream, body, encoding, format, defaults, received_us, dedup_key, ack, reply };
    running.intake.try_submit(delivery)?;
    drop(in_flight); // the stages have it: they drain

    let patience = Patience::new(shared.config.http.ack_timeout_ms);
    let receipt = patience.wait(answer.wait(), "it may be stored or not").await??;
    if ack == AckLevel::Committed && receipt.seq > 0 {
        let committed = async {
            tokio::select! {
                () = shared.progress.committed(receipt.lane, receipt.seq) => Ok(()),
                () = shared.drain.reached(Phase::Persisting) => Err(Rejection::not_committed()),
            }
        };
        patience.wait(committed, "it is in the journal and will be committed").await??;
    }
    Ok(receipt)
}

/// The name of the sender's token goes along with its records, where that is asked for.
fn stamp(auth: &Auth, sender: Sender, defaults: &mut Defaults) {
    let Some(token) = sender.0.filter(|_| auth.stamp_token).and_then(|index| auth.ingest_tokens.get(index)) else {
        return;
    };
    let mut members = defaults.attributes.as_deref().unwrap_or_default().to_owned();
    push_member(&mut members, "logweir.token", token.name());
    defaults.attributes = Some(members.into());
}

/// One limit on all that an answer waits for.
struct Patience {
    until: Instant,
    ack_timeout_ms: u64,
}

impl Patience {
    fn new(ack_timeout_ms: u64) -> Self {
        Self { until: Instant::now() + Duration::from_millis(ack_timeout_ms), ack_timeout_ms }
    }

    /// Waits for `future`; `standing` says what is known of the body if that takes too long.
    async fn wait<F: Future>(&self, future: F, standing: &str) -> Result<F::Output, Refused> {
        timeout_at(self.until, future).await.map_err(|_| {
            let detail = format!(
                "the body did not come as far as ?ack= asks within {} ms: {standing}; a re-send without an Idempotency-Key would be a new record",
                self.ack_timeout_ms
            );
            Refused::new(503, "ack_timeout", detail)
        })
    }
}

/// The length that the sender announces, if it is one that is taken.
fn announced_length(headers: &HeaderMap) -> Result<Option<usize>, Refused> {
    let Some(value) = headers.get("content-length") else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| Refused::new(400, "bad_length", "Content-Length is no number"))
}

/// Reads the body, within the limits of length, time and the budget for all bodies. The share of the budget is to be held
/// until the body is handed on.
pub async fn read_body(
    shared: &Shared,
    request: &HttpRequest,
    mut payload: web::Payload,
) -> Result<(Bytes, Share), Refused> {
    let length = announced_length(request.headers())?;
    let config = &shared.config.http;
    let bytes_max = config.body_bytes_max;
    let too_large = || {
        let detail = format!("the body is above http.body_bytes_max of {bytes_max}: send smaller bodies");
        Refused::new(413, "body_too_large", detail)
    };
    let no_room = || {
        let bytes_max = config.inflight_bytes_max;
        let detail = format!("the bodies being read take more than http.inflight_bytes_max of {bytes_max}");
        Refused::new(429, "inflight_bytes", detail)
    };
    let too_slow = || {
        let detail = format!("the body did not arrive within http.request_timeout_ms of {}", config.request_timeout_ms);
        Refused::new(408, "request_timeout", detail).and_close()
    };

    let announced = length.unwrap_or(0);
    if announced > bytes_max {
        return Err(too_large());
    }
    let mut share = shared.inflight.share();
    if !share.grow_to(announced) {
        return Err(no_room());
    }
    let until = Instant::now() + Duration::from_millis(config.request_timeout_ms);
    let mut body = BytesMut::with_capacity(announced);
    while let Some(piece) = timeout_at(until, payload.next()).await.map_err(|_| too_slow())? {
        let piece = piece.map_err(|error| {
            Refused::new(400, "body_incomplete", format!("the body broke off after {} bytes: {error}", body.len()))
        })?;
        let len = body.len() + piece.len();
        if len > bytes_max {
            return Err(too_large());
        }
        if len > announced && !share.grow_to(len.next_multiple_of(STEP_BYTES)) {
            return Err(no_room());
        }
        body.extend_from_slice(&piece);
    }
    Ok((body.freeze(), share))
}

/// How the body is compressed, as `Content-Encoding` says.
pub fn encoding(header: Option<&HeaderValue>) -> Result<Encoding, Refused> {
    let name = header.map_or("", |value| value.to_str().unwrap_or("?")).trim().to_ascii_lowercase();
    match &*name {
        "" | "identity" => Ok(Encoding::Identity),
        "gzip" | "x-gzip" => Ok(Encoding::Gzip),
        "zstd" => Ok(Encoding::Zstd),
        "deflate" => Ok(Encoding::Deflate),
        "snappy" | "x-snappy-framed" => Ok(Encoding::Snappy),
        _ => {
            let known = "gzip, zstd, deflate, snappy, identity";
            let detail = format!("Content-Encoding {name:?} is not understood; there are {known}");
            Err(Refused::new(415, "unknown_encoding", detail))
        }
    }
}
