//! A live tail: a thread that reads and records server-sent events.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use serde_json::Value;

use crate::client::PATIENCE;

/// An event.
#[derive(Clone, Debug, Default)]
pub struct Event {
    /// `record`, `dropped`, `gap`.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its data.
    pub data: Value,
}

/// An open stream. After a drop, the thread runs until the end of the stream.
pub struct Tail {
    events: Receiver<Event>,
    /// The events read so far, in order.
    pub seen: Vec<Event>,
}

impl Tail {
    /// Opens `/api/v1/tail?QUERY` after `token`; returns when the response headers have arrived.
    ///
    /// # Panics
    /// If the request is rejected.
    #[must_use]
    pub fn open(addr: SocketAddr, query: &str, token: Option<&str>) -> Self {
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_connect(Some(PATIENCE)).build().into();
        let mut request = agent.get(format!("http://{addr}/api/v1/tail?{query}"));
        if let Some(token) = token {
            request = request.header("last-event-id", token);
        }
        let response = request.call().expect("a stream");
        assert!(response.headers()["content-type"].to_str().is_ok_and(|kind| kind.starts_with("text/event-stream")));
        let (sender, events) = channel();
        std::thread::spawn(move || {
            let mut event = Event::default();
            // An error means that the connection was cut, for example because the server was killed.
            for line in BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok) {
                match line.split_once(": ") {
                    Some(("event", name)) => event.name = name.to_owned(),
                    Some(("id", id)) => event.id = id.to_owned(),
                    Some(("data", data)) => event.data = serde_json::from_str(data).expect("an event's data is JSON"),
                    _ => {}
                }
                let whole = line.is_empty() && !event.name.is_empty();
                if whole && sender.send(std::mem::take(&mut event)).is_err() {
                    return;
                }
            }
        });
        Self { events, seen: Vec::new() }
    }

    /// Reads until `enough` returns true.
    ///
    /// # Panics
    /// On timeout, or if the stream ends first.
    pub fn until(&mut self, what: &str, mut enough: impl FnMut(&[Event]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.seen) {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => self.seen.push(event),
                Err(error) => panic!("{what}: {error} after {} events, last {:?}", self.seen.len(), self.seen.last()),
            }
        }
    }

    /// Reads until the end of the stream.
    ///
    /// # Panics
    /// On timeout.
    pub fn to_end(&mut self) {
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok(event) => self.seen.push(event),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("the stream does not end"),
            }
        }
    }

    /// Returns the messages of the records read.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        let records = self.seen.iter().filter(|event| event.name == "record");
        records.map(|event| event.data["message"].as_str().expect("a message").to_owned()).collect()
    }

    /// Returns the sum of a field over all events with a name.
    #[must_use]
    pub fn sum(&self, name: &str, number: &str) -> u64 {
        self.seen.iter().filter(|event| event.name == name).filter_map(|event| event.data[number].as_u64()).sum()
    }

    /// Returns the id of the last record read.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        self.seen.iter().rev().find(|event| event.name == "record").map(|event| event.id.clone())
    }
}
