//! The path of a body that all protocols share: parameters, body, and the wait for its acknowledgment.
//!
//! - Everything that can be rejected without the body is rejected before the body is read: an invalid parameter,
//!   shutdown, a journal that is not writable, a length above the limit.
//! - Success means that the requested level (`?ack=`) has been reached. If it is not reached in time the response is
//!   503, and states that the records may still be stored.
//! - A protocol only gives receipts and rejections their shape.

use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpMessage, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use logweir_engine::clock::wall_us;
use logweir_engine::drain::Phase;
use tokio::time::{Instant, timeout_at};

use super::answer::HttpError;
use super::budget::Share;
use super::content_headers::content_length;
use super::idempotency;
use super::limits::{Clocks, Sender};
use super::parameters::Parameters;
use super::shared::{Shared, stream_of};
use crate::config::Auth;
use crate::message::{AckLevel, Delivery, Receipt, Rejection, answer_channel};
use logweir_formats::Defaults;
use logweir_formats::push_member;

/// A body without a `Content-Length` takes from the budget in steps of this many bytes.
const STEP_BYTES: usize = 64 << 10;

/// Reads the body, submits it, and waits until it has reached the acknowledgment level of `parameters`.
pub async fn accept(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    parameters: Parameters,
) -> Result<Receipt, HttpError> {
    let in_flight = Arc::clone(&shared.in_flight); // taken before the phase is checked: shutdown waits for it
    if shared.drain.phase() >= Phase::Draining {
        return Err(Rejection::draining().into());
    }
    let running = shared.running()?;
    running.journal.check_writable().map_err(|error| HttpError::from(Rejection::of_journal(&error)))?;

    let sender = request.extensions().get::<Sender>().copied().unwrap_or_default();
    let charge = |bytes| {
        let clocks = Clocks { uptime: shared.started.elapsed(), wall_s: wall_us().unsigned_abs() / 1_000_000 };
        shared.limits.charge(sender, bytes, clocks)
    };
    let announced = content_length(request.headers())?;
    announced.map_or(Ok(()), charge)?;
    let (body, share) = read_body(shared, request, payload).await?;
    if announced.is_none() {
        charge(body.len())?;
    }
    drop(share); // from here on the mailboxes account for it
    let Parameters { encoding, format, ack, mut defaults } = parameters;
    stamp_token_name(&shared.config.auth, sender, &mut defaults);
    let (reply, answer) = answer_channel();
    let received_us = wall_us();
    let dedup_key = idempotency::key(request.headers(), sender)?;
    let stream = stream_of(request);
    let delivery = Delivery { stream, body, encoding, format, defaults, received_us, dedup_key, ack, reply };
    running.intake.try_submit(delivery)?;
    drop(in_flight); // the pipeline has it and drains it

    let deadline = AckDeadline::new(shared.config.http.ack_timeout_ms);
    let receipt = deadline.wait(answer.wait(), "the records may or may not be stored").await??;
    if ack == AckLevel::Committed && receipt.seq > 0 {
        let committed = async {
            tokio::select! {
                () = shared.progress.committed(receipt.lane, receipt.seq) => Ok(()),
                () = shared.drain.reached(Phase::Persisting) => Err(Rejection::not_committed()),
            }
        };
        deadline.wait(committed, "the records are in the journal and will be committed").await??;
    }
    Ok(receipt)
}

/// Adds the name of the sender's token to its records, if configured.
fn stamp_token_name(auth: &Auth, sender: Sender, defaults: &mut Defaults) {
    let Some(token) = sender.0.filter(|_| auth.stamp_token).and_then(|index| auth.ingest_tokens.get(index)) else {
        return;
    };
    let mut members = defaults.attributes.as_deref().unwrap_or_default().to_owned();
    push_member(&mut members, "logweir.token", token.name());
    defaults.attributes = Some(members.into());
}

/// One deadline for everything that a response waits for.
struct AckDeadline {
    until: Instant,
    ack_timeout_ms: u64,
}

impl AckDeadline {
    fn new(ack_timeout_ms: u64) -> Self {
        Self { until: Instant::now() + Duration::from_millis(ack_timeout_ms), ack_timeout_ms }
    }

    /// Waits for `future`; on timeout the response includes `known`, what is known about the records.
    async fn wait<F: Future>(&self, future: F, known: &str) -> Result<F::Output, HttpError> {
        timeout_at(self.until, future).await.map_err(|_| {
            let detail = format!(
                "the requested ?ack= level was not reached within http.ack_timeout_ms ({} ms): {known}; \
                 sending them again may store them twice, unless both requests have the same Idempotency-Key",
                self.ack_timeout_ms
            );
            HttpError::new(503, "ack_timeout", detail)
        })
    }
}

/// Reads the body, within the limits on length, time and the total of all bodies. The share of the budget must be held
/// until the body has been submitted.
pub async fn read_body(
    shared: &Shared,
    request: &HttpRequest,
    mut payload: web::Payload,
) -> Result<(Bytes, Share), HttpError> {
    let length = content_length(request.headers())?;
    let config = &shared.config.http;
    let bytes_max = config.body_bytes_max;
    let too_large = || {
        let detail = format!("the body exceeds http.body_bytes_max ({bytes_max} bytes): send smaller bodies");
        HttpError::new(413, "body_too_large", detail)
    };
    let over_budget = || {
        let bytes_max = config.inflight_bytes_max;
        let detail = format!("the bodies in flight exceed http.inflight_bytes_max ({bytes_max} bytes): retry shortly");
        HttpError::new(429, "inflight_bytes", detail)
    };
    let too_slow = || {
        let detail =
            format!("the body did not arrive within http.request_timeout_ms ({} ms)", config.request_timeout_ms);
        HttpError::new(408, "request_timeout", detail).and_close()
    };

    let announced = length.unwrap_or(0);
    if announced > bytes_max {
        return Err(too_large());
    }
    let mut share = shared.inflight.share();
    if !share.grow_to(announced) {
        return Err(over_budget());
    }
    let until = Instant::now() + Duration::from_millis(config.request_timeout_ms);
    let mut body = BytesMut::with_capacity(announced);
    while let Some(chunk) = timeout_at(until, payload.next()).await.map_err(|_| too_slow())? {
        let chunk = chunk.map_err(|error| {
            HttpError::new(400, "body_incomplete", format!("the body ended early, after {} bytes: {error}", body.len()))
        })?;
        let len = body.len() + chunk.len();
        if len > bytes_max {
            return Err(too_large());
        }
        if len > announced && !share.grow_to(len.next_multiple_of(STEP_BYTES)) {
            return Err(over_budget());
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body.freeze(), share))
}
