//! What is measured together, one file each.

pub mod store;
pub mod intake;
pub mod latency;
pub mod backlog;
pub mod read;
pub mod peer;

use std::path::PathBuf;

use crate::corpus::Corpus;
use crate::load::{Load, Sent};
use crate::subject::{Setup, Subject};

/// What all scenarios share.
pub struct Options {
    /// The program under test.
    pub binary: PathBuf,
    /// Rounds, the first of which is not counted.
    pub rounds: usize,
    /// Events of a round.
    pub events: u64,
    /// Bytes of an event.
    pub event_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Connections of the load generator.
    pub connections: usize,
    /// `?ack=`.
    pub ack: String,
    /// Settings for logweir.
    pub setup: Setup,
    /// Rows to a transaction of the bare COPY; the same as logweir's batches.
    pub batch_rows: u64,
    /// Time of the first event.
    pub base_us: i64,
}

impl Options {
    /// The traffic.
    #[must_use]
    pub fn corpus(&self) -> Corpus {
        Corpus::of_bodies(self.event_bytes, self.body_bytes, self.base_us)
    }

    /// How many bodies hold a round's events.
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

/// Milliseconds at `quantile`.
fn ms(sent: &Sent, quantile: f64) -> f64 {
    sent.latency_us.value_at_quantile(quantile) as f64 / 1000.0
}

const MILLION: f64 = 1e6;
