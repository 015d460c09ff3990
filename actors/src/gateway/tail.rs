//! The live tail of all processors as one stream.
//!
//! - Each processor is listened to by a task of its own, which comes back after a break with the token it had last: what a
//!   processor that was away has stored meanwhile comes then, as long as its journal keeps it.
//! - The token of the merged stream is the last token of each processor, joined by `_`: each processor finds its own in it,
//!   and tells a gap where there is none. So a client may come back to any gateway.
//! - A client that is slow holds up the tasks, these the processors, and they tell what they drop: no record waits here but
//!   those of `WAITING` events and of one piece per processor.
//! - A processor that has just come is heard from the moment its name stands for it.
//! - Order is kept within a processor; between processors there is none to keep.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use logweir_engine::drain::{DrainWatch, Phase};
use reqwest::header::AUTHORIZATION;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Gateway, away};
use crate::breaker::{Allow, retry};
use crate::query::Wanted;
use crate::sse::{Event, Events};

/// Between the tokens of a merged one.
pub const BETWEEN_TOKENS: char = '_';
/// Events of all processors that wait to be passed on.
const WAITING: usize = 64;
/// About so much is sent at once.
const PIECE_BYTES: usize = 64 << 10;
/// A stream on which nothing comes for so long gets a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A processor says something at least every few seconds; after so long without a word the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// The wait before a reconnection grows up to this.
const RECONNECT_MAX: Duration = Duration::from_secs(5);

impl Gateway {
    /// Begins a stream of server-sent events; none where there are as many as there may be.
    #[must_use]
    pub fn tail(&self, query: &Wanted, token: Option<&str>, drain: DrainWatch) -> Option<mpsc::Receiver<Bytes>> {
        let place = self.0.tails.clone().try_acquire_owned().ok()?;
        let (out, pieces) = mpsc::channel(1);
        let merger = Merger {
            gateway: self.clone(),
            query: query.clone(),
            begin: token.map(ToOwned::to_owned),
            tokens: tokens(token.unwrap_or_default()),
            dropped: 0,
            listening: BTreeMap::new(),
            out,
            _place: place,
        };
        tokio::spawn(merger.run(drain));
        Some(pieces)
    }
}

/// The tokens in a merged one, by the journal that each is for.
fn tokens(merged: &str) -> BTreeMap<String, String> {
    let by_home = |token: &str| Some((token.split_once('.')?.0.to_owned(), token.to_owned()));
    merged.split(BETWEEN_TOKENS).filter_map(by_home).collect()
}

struct Merger {
    gateway: Gateway,
    query: Wanted,
    /// Where the client had been before.
    begin: Option<String>,
    tokens: BTreeMap<String, String>,
    dropped: u64,
    listening: BTreeMap<SocketAddr, Listener>,
    out: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
}

/// A task that ends with its value.
struct Listener(AbortHandle);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Merger {
    async fn run(mut self, drain: DrainWatch) {
        let (to_us, mut events) = mpsc::channel(WAITING);
        let mut look = tokio::time::interval(self.gateway.0.lookup_every.min(Duration::from_secs(1)));
        let mut piece = "retry: 1000\n\n".to_owned();
        loop {
            let mut last = Instant::now();
            while piece.is_empty() {
                tokio::select! {
                    () = self.out.closed() => return,
                    () = drain.reached(Phase::Draining) => return,
                    _ = look.tick() => self.listen(&to_us),
                    event = events.recv() => piece = event.map_or(String::new(), |event| self.text(&event)),
                    () = tokio::time::sleep_until(last + KEEP_ALIVE) => {
                        piece.push_str(":\n\n");
                        last = Instant::now();
                    }
                }
            }
            while piece.len() < PIECE_BYTES
                && let Ok(event) = events.try_recv()
            {
                piece.push_str(&self.text(&event));
            }
            if self.out.send(Bytes::from(std::mem::take(&mut piece))).await.is_err() {
                return;
            }
        }
    }

    /// Listens to whom the names stand for now, and to nobody else.
    fn listen(&mut self, to_us: &mpsc::Sender<Event>) {
        let members = self.gateway.members(|members| members.members());
        self.listening.retain(|address, _| members.iter().any(|member| member.address == *address));
        for member in members {
            let (gateway, query, to_us) = (self.gateway.clone(), self.query.clone(), to_us.clone());
            let token = self.begin.clone();
            self.listening.entry(member.address).or_insert_with(|| {
                Listener(tokio::spawn(hear(gateway, member.address, query, token, to_us)).abort_handle())
            });
        }
    }

    /// An event as it goes out.
    fn text(&mut self, event: &Event) -> String {
        self.tokens.extend(event.id.as_deref().map(tokens).unwrap_or_default());
        let data = match &*event.name {
            "dropped" => {
                let data: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
                let dropped = data["dropped"].as_u64().unwrap_or(0);
                self.dropped += dropped;
                format!("{{\"dropped\":{dropped},\"total\":{}}}", self.dropped)
            }
            // It only says where one of the streams stands.
            "" => return format!("id: {}\n\n", self.token()),
            _ => event.data.clone(),
        };
        let id = if event.name == "record" { format!("id: {}\n", self.token()) } else { String::new() };
        format!("event: {}\n{id}data: {data}\n\n", event.name)
    }

    fn token(&self) -> String {
        let tokens: Vec<&str> = self.tokens.values().map(String::as_str).collect();
        tokens.join(&BETWEEN_TOKENS.to_string())
    }
}

/// Listens to one processor until nobody wants to hear of it.
async fn hear(
    gateway: Gateway,
    address: SocketAddr,
    query: Wanted,
    mut token: Option<String>,
    to: mpsc::Sender<Event>,
) {
    let mut attempt = 0;
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
                gateway.members(|members| members.asked(address, true, Instant::now()));
                attempt = 0;
                if pass_on(response, &mut token, &to).await.is_none() {
                    return;
                }
            }
            Err((why, is_well)) => {
                gateway.members(|members| members.asked(address, is_well, Instant::now()));
                tracing::debug!(%address, why, "a processor's tail cannot be heard");
            }
        }
        metrics::counter!("logweir_gateway_tail_reconnects_total").increment(1);
        let wait = retry::delay(attempt, Duration::from_millis(200), RECONNECT_MAX, &mut rand::rng());
        sleep(wait).await;
        attempt += 1;
    }
}

/// The stream, or why there is none and whether the processor is well all the same.
async fn open(
    gateway: &Gateway,
    address: SocketAddr,
    query: &Wanted,
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
        Ok(Err(error)) => return Err((away(&error).to_string(), false)),
        Err(_) => return Err(("no answer in time".to_owned(), false)),
    };
    match response.status().as_u16() {
        200 => Ok(response),
        status => Err((format!("status {status}"), status < 500)),
    }
}

/// Passes events on until the stream breaks; none when nobody takes them any more.
async fn pass_on(mut response: reqwest::Response, token: &mut Option<String>, to: &mpsc::Sender<Event>) -> Option<()> {
    let mut events = Events::default();
    while let Ok(Ok(Some(piece))) = timeout(SILENCE_MAX, response.chunk()).await {
        // What is no stream of ours is left, and asked for again.
        let Ok(whole) = events.push(&piece) else { break };
        for event in whole {
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
    fn a_merged_token_holds_one_of_each_journal() {
        let merged = tokens("000000000000000a.5.1_000000000000000b.7");
        assert_eq!(merged.len(), 2);
        assert_eq!(merged["000000000000000a"], "000000000000000a.5.1");
        assert!(tokens("").is_empty());
    }
}
