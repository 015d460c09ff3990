//! The bounded mailbox of a stage. No code of a stage uses actix's `Addr`, `do_send` or `Recipient`: the actor host puts
//! a message into the actix queue only for a mailbox.
//!
//! - A message needs a credit, which is accounted in messages *and* bytes. The credit travels in the envelope and is
//!   released when the handler has completed: free capacity means handled, not merely received.
//! - actix's own bound does not hold (`do_send` and `send().await` both bypass it), so the credits alone limit the
//!   actix queue.
//! - A message larger than `bytes_max` costs the whole capacity and is admitted alone.
//! - A send that cannot deliver returns the message. Dropping a pending `reserve` loses nothing.
//! - Waiting senders are served in FIFO order; a later sender never overtakes them.
//! - A stage waits for another one's mailbox only through its context, which tells the watchdog; everything else through
//!   an [`ExternalSender`]. A [`Mailbox`] alone never waits.
//! - Every message is handled, returned to its sender, or counted as discarded with a reason.

use std::fmt;
use std::sync::Arc;

use crate::exit::Exit;
pub use crate::semaphore::Bound;
use crate::semaphore::{AcquireError, Permit, Semaphore};

/// A message of a [`Mailbox`].
pub trait Message: Send + 'static {
    /// Size in memory, in bytes.
    fn bytes(&self) -> usize;
}

/// What a mailbox holds now: messages queued or being handled, and credits held by senders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Number of messages.
    pub messages: usize,
    /// Number of bytes; an oversized message counts as the whole capacity.
    pub bytes: usize,
}

/// The stage no longer accepts messages. Returns the message.
#[derive(PartialEq, Eq, thiserror::Error)]
#[error("the stage no longer accepts messages")]
pub struct Closed<M>(pub M);

// Not derived: a message that carries a reply channel is not `Debug`, but its error should be.
impl<M> fmt::Debug for Closed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed(..)")
    }
}

/// Lets a stage write `ctx.send(&next, message).await?`. Stages are drained upstream first, so a downstream
/// stage can only have stopped by an [`Exit`] of its own, which was reported first and is the one that counts.
impl<M> From<Closed<M>> for Exit {
    fn from(_: Closed<M>) -> Self {
        Self::new(Self::SOFTWARE, "the downstream stage has stopped; see the log for its exit reason")
    }
}

/// Why [`Mailbox::try_send`] did not deliver the message. Returns the message.
#[derive(PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<M> {
    /// There is no free credit, or other senders are waiting.
    #[error("the mailbox is full")]
    Full(M),
    /// The stage no longer accepts messages.
    #[error("the stage no longer accepts messages")]
    Closed(M),
}

impl<M> fmt::Debug for TrySendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// Sends messages to a stage. Cheap to clone; all clones share one bound.
pub struct Mailbox<M: Message>(Arc<Inner<M>>);

struct Inner<M> {
    name: String,
    semaphore: Arc<Semaphore>,
    queue: Box<dyn Queue<M>>,
}

impl<M: Message> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Message> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("name", &self.name()).field("depth", &self.depth()).finish_non_exhaustive()
    }
}

/// Credit for one message, charged to the mailbox's bound until this (or the envelope that it travels in) is dropped.
pub struct Credit<M: Message> {
    permit: Permit,
    mailbox: Mailbox<M>,
}

impl<M: Message> fmt::Debug for Credit<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credit").field("mailbox", &self.mailbox).finish_non_exhaustive()
    }
}

impl<M: Message> Credit<M> {
    /// Delivers `message`. Never waits. The part of the reservation that exceeds the message's size is released at
    /// once, so reserve the maximum.
    ///
    /// # Errors
    /// The stage has closed its mailbox since; the message is returned.
    ///
    /// # Panics
    /// In a debug build, if the message is larger than the reservation: the bound would not hold.
    pub fn send(self, message: M) -> Result<(), Closed<M>> {
        self.mailbox.deliver(self.permit, message)
    }
}

impl<M: Message> Mailbox<M> {
    pub(crate) fn new(name: &str, semaphore: Arc<Semaphore>, queue: Box<dyn Queue<M>>) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), semaphore, queue }))
    }

    /// Name of the receiving stage.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The mailbox's bound.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.0.semaphore.bound()
    }

    /// What the mailbox holds now.
    #[must_use]
    pub fn depth(&self) -> Depth {
        let (messages, bytes) = self.0.semaphore.in_use();
        Depth { messages, bytes }
    }

    /// A sender for code outside of the stages, such as a source or a request handler: it may wait as it likes. A stage
    /// waits through its context instead, [`StageContext::send`](crate::stage::StageContext::send): only then the
    /// watchdog knows that it waits.
    #[must_use]
    pub fn external(&self) -> ExternalSender<M> {
        ExternalSender(self.clone())
    }

    /// Waits for a credit for a message of `bytes`. The waiting time is counted in
    /// `logweir_mailbox_wait_seconds_total`.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Credit<M>, Closed<()>> {
        let permit = self.0.semaphore.acquire(bytes).await.ok_or(Closed(()))?;
        Ok(Credit { permit, mailbox: self.clone() })
    }

    /// Waits for a credit, then delivers. Holds the message while it waits.
    pub(crate) async fn send(&self, message: M) -> Result<(), Closed<M>> {
        let message = match self.try_deliver(message) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(message)) => return Err(Closed(message)),
            Err(TrySendError::Full(message)) => message,
        };
        match self.0.semaphore.acquire(message.bytes()).await {
            Some(permit) => self.deliver(permit, message),
            None => Err(Closed(message)),
        }
    }

    /// Delivers if a credit is free and no other sender waits for one.
    ///
    /// # Errors
    /// The mailbox is full or closed; the message is returned.
    pub fn try_send(&self, message: M) -> Result<(), TrySendError<M>> {
        let sent = self.try_deliver(message);
        if let Err(TrySendError::Full(_)) = sent {
            self.0.semaphore.meter.rejected.add(1);
        }
        sent
    }

    /// Closes the mailbox: new messages are rejected, queued messages are still handled.
    pub fn close(&self) {
        self.0.semaphore.close();
    }

    /// Acquires a credit and pushes the message under one lock.
    fn try_deliver(&self, message: M) -> Result<(), TrySendError<M>> {
        let bytes = message.bytes();
        let mut message = Some(message); // stays here if there is no free credit
        let entered = self.0.semaphore.try_enter(bytes, |mut permit| {
            permit.attach(bytes);
            let message = message.take().expect("pushed once");
            self.0.queue.push(Envelope { message, permit })
        });
        let error = match entered {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(envelope)) => return Err(TrySendError::Closed(envelope.into_message())),
            Err(error) => error,
        };
        let message = message.expect("not pushed");
        Err(match error {
            AcquireError::Full => TrySendError::Full(message),
            AcquireError::Closed => TrySendError::Closed(message),
        })
    }

    fn deliver(&self, mut permit: Permit, message: M) -> Result<(), Closed<M>> {
        permit.attach(message.bytes());
        let mut envelope = Some(Envelope { message, permit });
        let passed = self.0.semaphore.push_if_open(|| self.0.queue.push(envelope.take().expect("pushed once")));
        match (passed, envelope) {
            (Ok(Ok(())), _) => Ok(()),
            (Ok(Err(envelope)), _) | (Err(_), Some(envelope)) => Err(Closed(envelope.into_message())),
            (Err(_), None) => unreachable!("a closed mailbox runs no push"),
        }
    }
}

/// Sends from outside of the stages, and waits for credits. Cheap to clone.
pub struct ExternalSender<M: Message>(Mailbox<M>);

impl<M: Message> Clone for ExternalSender<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Message> fmt::Debug for ExternalSender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExternalSender").field(&self.0).finish()
    }
}

impl<M: Message> ExternalSender<M> {
    /// The mailbox.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox<M> {
        &self.0
    }

    /// Waits for a credit for a message of `bytes`.
    ///
    /// # Errors
    /// The stage no longer accepts messages.
    pub async fn reserve(&self, bytes: usize) -> Result<Credit<M>, Closed<()>> {
        self.0.reserve(bytes).await
    }

    /// Waits for a credit, then delivers. Holds the message while it waits; if the wait may be canceled (`select!`),
    /// use [`ExternalSender::reserve`].
    ///
    /// # Errors
    /// The stage no longer accepts messages; the message is returned.
    pub async fn send(&self, message: M) -> Result<(), Closed<M>> {
        self.0.send(message).await
    }
}

/// A queued message and its credit.
pub(crate) struct Envelope<M> {
    pub(crate) message: M,
    pub(crate) permit: Permit,
}

impl<M> Envelope<M> {
    /// Releases the credit and returns the message to its sender.
    fn into_message(mut self) -> M {
        self.permit.detach();
        self.message
    }
}

impl<M: Message> actix::Message for Envelope<M> {
    type Result = ();
}

/// The actix queue of a mailbox, with the stage's type erased.
pub(crate) trait Queue<M>: Send + Sync {
    /// Returns the envelope if the actor has stopped.
    fn push(&self, envelope: Envelope<M>) -> Result<(), Envelope<M>>;

    /// Enqueues the in-band drain behind the last message. Returns false if the actor has stopped.
    fn push_drain(&self) -> bool;
}

impl<M: Message> Mailbox<M> {
    /// Closes the mailbox and enqueues the in-band drain behind the last message.
    pub(crate) fn drain(&self) {
        self.close();
        // False means that the actor has stopped, which the topology learns from its `StageState`.
        let _ = self.0.queue.push_drain();
    }
}
