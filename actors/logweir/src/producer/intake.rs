//! The entry point for bodies of all sources.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use logweir_engine::clock;
use logweir_engine::mailbox::{Closed, ExternalSender, Mailbox, TrySendError};
use logweir_formats::{Defaults, Format};

use crate::message::{AckLevel, Answer, Delivery, Encoding, Rejection, RejectionKind, answer_channel};

/// Holds the mailbox of each lane's producer. Clones share them.
#[derive(Clone)]
pub struct IntakeHandle {
    producers: Arc<[ExternalSender<Delivery>]>,
    streams: Arc<AtomicU64>,
}

impl IntakeHandle {
    /// An entry point to `producers`, one per lane, in order.
    ///
    /// # Panics
    /// If `producers` is empty.
    #[must_use]
    pub(crate) fn new(producers: &[Mailbox<Delivery>]) -> Self {
        assert!(!producers.is_empty(), "intake needs at least one lane");
        Self { producers: producers.iter().map(Mailbox::external).collect(), streams: Arc::default() }
    }

    /// Returns a number for a new stream: a connection, a file, standard input.
    #[must_use]
    pub fn new_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// A delivery of `body` in a stream of its own, to be stored as soon as the journal has it, and its answer. Its
    /// fields can be changed before it is submitted.
    #[must_use]
    pub fn delivery(&self, body: impl Into<Bytes>) -> (Delivery, Answer) {
        let (reply, answer) = answer_channel();
        let delivery = Delivery {
            stream: self.new_stream(),
            body: body.into(),
            encoding: Encoding::Identity,
            format: Format::Auto,
            defaults: Defaults::default(),
            received_us: clock::wall_us(),
            dedup_key: None,
            ack: AckLevel::Journal,
            reply,
        };
        (delivery, answer)
    }

    /// Submits the body if the mailbox has room.
    ///
    /// # Errors
    /// [`RejectionKind::Busy`] if the mailbox is full, [`RejectionKind::Unavailable`] during shutdown.
    pub fn try_submit(&self, delivery: Delivery) -> Result<(), Rejection> {
        self.producer(&delivery).mailbox().try_send(delivery).map_err(|error| match error {
            TrySendError::Full(_) => Rejection {
                kind: RejectionKind::Busy,
                reason: "mailbox_full",
                detail: "the intake queue is full: retry after the time in Retry-After".into(),
            },
            TrySendError::Closed(_) => Rejection::draining(),
        })
    }

    /// Submits the body as soon as the mailbox has room: for sources that can wait.
    ///
    /// # Errors
    /// [`RejectionKind::Unavailable`] during shutdown.
    pub async fn submit(&self, delivery: Delivery) -> Result<(), Rejection> {
        let sent = self.producer(&delivery).send(delivery).await;
        sent.map_err(|Closed(_)| Rejection::draining())
    }

    fn producer(&self, delivery: &Delivery) -> &ExternalSender<Delivery> {
        let lane = delivery.stream % self.producers.len() as u64;
        &self.producers[usize::try_from(lane).expect("a lane number fits")]
    }
}
