//! The scenarios, one file each.

pub mod store;
pub mod intake;
pub mod latency;
pub mod backlog;
pub mod read;
pub mod timescale;
pub mod peer;

use std::path::PathBuf;

use crate::corpus::Corpus;
use crate::load::{Load, Sent};
use crate::subject::{Setup, Subject};

/// Options of all scenarios.
pub struct Options {
    /// The program under test.
    pub binary: PathBuf,
    /// Number of rounds, the first of which is dropped.
    pub rounds: usize,
    /// Events per round.
    pub events: u64,
    /// Size of an event, in bytes.
    pub event_bytes: usize,
    /// Size of a request body, in bytes.
    pub body_bytes: usize,
    /// Connections of the load generator.
    pub connections: usize,
    /// `?ack=`.
    pub ack: String,
    /// Settings of logweir.
    pub setup: Setup,
    /// Rows per transaction of the bare COPY; the same as logweir's batches.
    pub batch_rows: u64,
    /// Time of the first event.
    pub base_us: i64,
}

impl Options {
    /// Returns the traffic.
    #[must_use]
    pub fn corpus(&self) -> Corpus {
        Corpus::of_bodies(self.event_bytes, self.body_bytes, self.base_us)
    }

    /// Returns the number of bodies per round.
    #[must_use]
    pub fn bodies(&self, corpus: &Corpus) -> u64 {
        self.events.div_ceil(corpus.events_per_body())
    }

    fn load(&self, subject: &mut Subject, corpus: &Corpus) -> Load {
        Load {
            to: subject.server().http,
            path: format!("/ingest?format=ndjson&ack={}", self.ack),
            corpus: corpus.clone(),
            first: 0,
            bodies: self.bodies(corpus),
            connections: self.connections,
            rate: None,
        }
    }
}

/// Returns the latency at `quantile`, in milliseconds.
fn ms(sent: &Sent, quantile: f64) -> f64 {
    sent.latency_us.value_at_quantile(quantile) as f64 / 1000.0
}

const MILLION: f64 = 1e6;
