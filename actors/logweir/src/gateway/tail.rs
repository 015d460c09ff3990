//! Merges the live tails of all processors into one stream.
//!
//! - A task per processor receives its stream and, after an interruption, reconnects with the last token: records that
//!   the processor has stored in the meantime are delivered then, as long as its journal retains them.
//! - The token of the merged stream consists of the last token of each processor, joined by `_`: each processor finds
//!   its own in it and reports a gap if there is none. A client can therefore resume on any gateway.
//! - A slow client blocks the tasks, and these the processors, which report what they drop: at most `QUEUED_EVENTS`
//!   events and one read per processor are buffered here.
//! - The stream of a new processor starts when its name resolves to it.
//! - Records of one processor keep their order; records of different processors have no defined order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use logweir_engine::drain::{DrainWatch, Phase};
use reqwest::header::AUTHORIZATION;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Gateway, unreachable};
use crate::follow::TOKEN_SEPARATOR;
use crate::limits::backoff::Backoff;
use crate::limits::breaker::Allow;
use crate::tail::sse::{Event, Events};
use logweir_query::QueryText;

/// Events of all processors that are queued.
const QUEUED_EVENTS: usize = 64;
/// Approximate number of bytes sent at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// After this long without an event, a comment is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A processor sends something every few seconds; after this long without data, the connection counts as dead.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Delays before a reconnection.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

impl Gateway {
    /// Starts a stream of server-sent events; `None` if the limit of live tails is reached.
    #[must_use]
    pub fn tail(&self, query: &QueryText, token: Option<&str>, drain: DrainWatch) -> Option<mpsc::Receiver<Bytes>> {
        let permit = self.0.tails.clone().try_acquire_owned().ok()?;
        let (out, pieces) = mpsc::channel(1);
        let merger = Merger {
            gateway: self.clone(),
            query: query.clone(),
            resume_token: token.map(ToOwned::to_owned),
            tokens: tokens(token.unwrap_or_default()),
            dropped: 0,
            receivers: BTreeMap::new(),
            out,
            _permit: permit,
        };
        tokio::spawn(merger.run(drain));
        Some(pieces)
    }
}

/// The tokens in a merged one, by journal.
fn tokens(merged: &str) -> BTreeMap<String, String> {
    let by_journal = |token: &str| Some((token.split_once('.')?.0.to_owned(), token.to_owned()));
    merged.split(TOKEN_SEPARATOR).filter_map(by_journal).collect()
}

struct Merger {
    gateway: Gateway,
    query: QueryText,
    /// The token that the client resumed with.
    resume_token: Option<String>,
    tokens: BTreeMap<String, String>,
    dropped: u64,
    receivers: BTreeMap<SocketAddr, ReceiverTask>,
    out: mpsc::Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
}

/// A task that is aborted when dropped.
struct ReceiverTask(AbortHandle);

impl Drop for ReceiverTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Merger {
    async fn run(mut self, drain: DrainWatch) {
        let (events_in, mut events) = mpsc::channel(QUEUED_EVENTS);
        let mut lookup = tokio::time::interval(self.gateway.0.lookup_every.min(Duration::from_secs(1)));
        let mut piece = "retry: 1000\n\n".to_owned();
        loop {
            let mut last = Instant::now();
            while piece.is_empty() {
                tokio::select! {
                    () = self.out.closed() => return,
                    () = drain.reached(Phase::Draining) => return,
                    _ = lookup.tick() => self.update_receivers(&events_in),
                    event = events.recv() => piece = event.map_or(String::new(), |event| self.text(&event)),
                    () = tokio::time::sleep_until(last + KEEP_ALIVE) => {
                        piece.push_str(":\n\n");
                        last = Instant::now();
                    }
                }
            }
            while piece.len() < CHUNK_BYTES
                && let Ok(event) = events.try_recv()
            {
                piece.push_str(&self.text(&event));
            }
            if self.out.send(Bytes::from(std::mem::take(&mut piece))).await.is_err() {
                return;
            }
        }
    }

    /// Receives from exactly the processors that the names resolve to now.
    fn update_receivers(&mut self, events_in: &mpsc::Sender<Event>) {
        let members = self.gateway.members(|members| members.members());
        self.receivers.retain(|address, _| members.iter().any(|member| member.address == *address));
        for member in members {
            let (gateway, query, events_in) = (self.gateway.clone(), self.query.clone(), events_in.clone());
            let token = self.resume_token.clone();
            self.receivers.entry(member.address).or_insert_with(|| {
                ReceiverTask(tokio::spawn(receive(gateway, member.address, query, token, events_in)).abort_handle())
            });
        }
    }

    /// Formats an event for the client.
    fn text(&mut self, event: &Event) -> String {
        self.tokens.extend(event.id.as_deref().map(tokens).unwrap_or_default());
        let data = match &*event.name {
            "dropped" => {
                let data: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
                let dropped = data["dropped"].as_u64().unwrap_or(0);
                self.dropped += dropped;
                format!("{{\"dropped\":{dropped},\"total\":{}}}", self.dropped)
            }
            // Carries only the position of one of the streams.
            "" => return format!("id: {}\n\n", self.token()),
            _ => event.data.clone(),
        };
        let id = if event.name == "record" { format!("id: {}\n", self.token()) } else { String::new() };
        format!("event: {}\n{id}data: {data}\n\n", event.name)
    }

    fn token(&self) -> String {
        let tokens: Vec<&str> = self.tokens.values().map(String::as_str).collect();
        tokens.join(&TOKEN_SEPARATOR.to_string())
    }
}

/// Receives the stream of one processor until the client is gone.
async fn receive(
    gateway: Gateway,
    address: SocketAddr,
    query: QueryText,
    mut token: Option<String>,
    to: mpsc::Sender<Event>,
) {
    let mut delays = RECONNECT.delays();
    loop {
        match gateway.members(|members| members.allow(address, Instant::now())) {
            Allow::No { retry_in } => {
                sleep(retry_in).await;
                continue;
            }
            Allow::Yes | Allow::Probe => {}
        }
        match open(&gateway, address, &query, token.as_deref()).await {
            Ok(response) => {
                gateway.members(|members| members.record_outcome(address, true, Instant::now()));
                delays = RECONNECT.delays();
                if forward(response, &mut token, &to).await.is_none() {
                    return;
                }
            }
            Err((reason, reachable)) => {
                gateway.members(|members| members.record_outcome(address, reachable, Instant::now()));
                tracing::debug!(%address, reason, "cannot open the live tail of a processor: retrying");
            }
        }
        metrics::counter!("logweir_gateway_tail_reconnects_total").increment(1);
        sleep(delays.next_delay()).await;
    }
}

/// Opens the stream. The error includes whether the processor is reachable nonetheless.
async fn open(
    gateway: &Gateway,
    address: SocketAddr,
    query: &QueryText,
    token: Option<&str>,
) -> Result<reqwest::Response, (String, bool)> {
    let mut url = reqwest::Url::parse(&format!("{}://{address}/api/v1/tail", gateway.0.scheme))
        .map_err(|error| (error.to_string(), true))?;
    let (parameter, text) = query.parameter();
    url.query_pairs_mut().append_pair(parameter, text);
    let mut request = gateway.0.client.get(url);
    if let Some(token) = token {
        request = request.header("Last-Event-ID", token);
    }
    if let Some(authorization) = &gateway.0.token {
        request = request.header(AUTHORIZATION, authorization);
    }
    let response = match timeout(gateway.0.timeout, request.send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err((unreachable(&error).to_string(), false)),
        Err(_) => return Err(("timed out".to_owned(), false)),
    };
    match response.status().as_u16() {
        200 => Ok(response),
        status => Err((format!("status {status}"), status < 500)),
    }
}

/// Forwards events until the stream breaks; `None` if the client is gone.
async fn forward(mut response: reqwest::Response, token: &mut Option<String>, to: &mpsc::Sender<Event>) -> Option<()> {
    let mut events = Events::default();
    while let Ok(Ok(Some(piece))) = timeout(SILENCE_MAX, response.chunk()).await {
        // Anything but an event stream is dropped and requested again.
        let Ok(complete) = events.push(&piece) else { break };
        for event in complete {
            if event.id.is_some() {
                token.clone_from(&event.id);
            }
            to.send(event).await.ok()?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merged_token_has_one_token_per_journal() {
        let merged = tokens("000000000000000a.5.1_000000000000000b.7");
        assert_eq!(merged.len(), 2);
        assert_eq!(merged["000000000000000a"], "000000000000000a.5.1");
        assert!(tokens("").is_empty());
    }
}
