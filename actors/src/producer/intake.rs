//! The door for bodies: every source goes through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logweir_engine::mailbox::{Closed, Mailbox, TrySendError};
use tokio::sync::oneshot;

use crate::message::{Delivery, Receipt, Rejection, RejectionKind, Reply};

/// Holds the mailbox of each lane's producer. A clone is a handle on the same.
#[derive(Clone)]
pub struct IntakeHandle {
    producers: Arc<[Mailbox<Delivery>]>,
    streams: Arc<AtomicU64>,
}

impl IntakeHandle {
    /// A door to `producers`, in the order of their lanes.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn new(producers: Vec<Mailbox<Delivery>>) -> Self {
        assert!(!producers.is_empty(), "intake needs at least one lane");
        Self { producers: producers.into(), streams: Arc::default() }
    }

    /// A number for a new stream: a connection, a file, standard input.
    #[must_use]
    pub fn new_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// Hands the body in if there is room now.
    ///
    /// # Errors
    /// [`RejectionKind::Busy`] without room, [`RejectionKind::Unavailable`] on the way down.
    pub fn try_submit(&self, delivery: Delivery) -> Result<(), Rejection> {
        self.producer(&delivery).try_send(delivery).map_err(|error| match error {
            TrySendError::Full(_) => Rejection {
                kind: RejectionKind::Busy,
                reason: "mailbox_full",
                detail: "more comes in than can be taken now: send it again after the time that Retry-After names"
                    .into(),
            },
            TrySendError::Closed(_) => Rejection::draining(),
        })
    }

    /// Hands the body in as soon as there is room: for sources that can wait.
    ///
    /// # Errors
    /// [`RejectionKind::Unavailable`] on the way down.
    pub async fn submit(&self, delivery: Delivery) -> Result<(), Rejection> {
        let sent = self.producer(&delivery).send(delivery).await;
        sent.map_err(|Closed(_)| Rejection::draining())
    }

    fn producer(&self, delivery: &Delivery) -> &Mailbox<Delivery> {
        let lane = delivery.stream % self.producers.len() as u64;
        &self.producers[usize::try_from(lane).expect("a lane's number is small")]
    }
}

/// Where the answer to one delivery comes out.
#[derive(Debug)]
pub struct Answer(oneshot::Receiver<Result<Receipt, Rejection>>);

/// A way back for one delivery, and its end.
#[must_use]
pub fn answer_channel() -> (Reply, Answer) {
    let (reply, answer) = oneshot::channel();
    (reply, Answer(answer))
}

impl Answer {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The refusal; one called `restarted` if a stage went down with the body in its hands.
    pub async fn wait(self) -> Result<Receipt, Rejection> {
        self.0.await.unwrap_or_else(|_| {
            Err(Rejection {
                kind: RejectionKind::Unavailable,
                reason: "restarted",
                detail: "a part of this process was restarted while it held the body: it may be stored or not, \
                         and a re-send without an Idempotency-Key would be a new record"
                    .into(),
            })
        })
    }
}
