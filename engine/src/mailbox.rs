//! A bounded way into a stage. The only road: no other code touches actix's `Addr`, `do_send` or `Recipient`.
//!
//! - A message enters only with a credit, counted in messages *and* bytes. The credit rides in the
//!   envelope and is released when the handler has ended: room means handled, not merely received.
//! - actix's own bound does not hold (`do_send` and `send().await` both go past it), so the actix
//!   queue behind this is only ever as long as the credits allow.
//! - A message larger than `bytes_max` costs the whole capacity and still passes, alone.
//! - A send that cannot deliver gives the message back. Dropping a waiting `reserve` loses nothing.
//! - Waiting senders are served in the order in which they came; nobody overtakes them.
//! - A message is handled, or comes back to its sender, or is counted as discarded with a reason.

use std::fmt;
use std::sync::Arc;

use actix::dev::SendError;
use actix::dev::channel::AddressSender;

use crate::actor_host::{ActorHost, Drain};
use crate::semaphore::{Permit, Refused, Semaphore};
use crate::stage::{Exit, Stage};

/// What can travel through a [`Mailbox`].
pub trait Message: Send + 'static {
    /// What it weighs in memory, in bytes.
    fn bytes(&self) -> usize;
}

/// The bound of one mailbox. Both limits hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Bound {
    /// Messages queued or being handled.
    pub messages_max: usize,
    /// Bytes of messages queued or being handled.
    pub bytes_max: usize,
}

/// What a mailbox holds now: messages queued or being handled, and credits in the hands of senders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages.
    pub messages: usize,
    /// Bytes; an oversized message counts as the whole capacity.
    pub bytes: usize,
}

/// The stage behind the mailbox takes no more messages. Gives the message back.
#[derive(PartialEq, Eq, thiserror::Error)]
#[error("the stage takes no more messages")]
pub struct Closed<M>(pub M);

// By hand: a message that carries a reply channel cannot be printed, and its error should be.
impl<M> fmt::Debug for Closed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed(..)")
    }
}

/// So that a stage can say `ctx.waiting(next.send(message)).await?`: drains go upstream first, so the stage
/// downstream can only have ended by an exit of its own. That one came first and is the one that counts.
impl<M> From<Closed<M>> for Exit {
    fn from(_: Closed<M>) -> Self {
        Self::new(Self::SOFTWARE, "the stage downstream has ended; see the log for its exit")
    }
}

/// Why [`Mailbox::try_send`] did not take the message. Gives it back.
#[derive(PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<M> {
    /// No credit is free now, or others have waited for longer.
    #[error("the mailbox is full")]
    Full(M),
    /// The stage takes no more messages.
    #[error("the stage takes no more messages")]
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

/// Cheap to clone; every clone shares the one bound.
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

/// Semaphore for one message, taken from the bound and given back when this (or the envelope it rides in) drops.
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
    /// Puts `message` into the mailbox. Never waits. What was reserved beyond the message's weight is
    /// given back at once, so reserve the most that it may weigh.
    ///
    /// # Errors
    /// The stage has closed since; the message comes back.
    ///
    /// # Panics
    /// In a debug build, when the message weighs more than was reserved: then the bound would not hold.
    pub fn send(self, message: M) -> Result<(), Closed<M>> {
        self.mailbox.deliver(self.permit, message)
    }
}

impl<M: Message> Mailbox<M> {
    pub(crate) fn new(name: &str, semaphore: Arc<Semaphore>, queue: Box<dyn Queue<M>>) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), semaphore, queue }))
    }

    /// The receiving stage's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The most that it holds.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.0.semaphore.bound()
    }

    /// What it holds now.
    #[must_use]
    pub fn depth(&self) -> Depth {
        let (messages, bytes) = self.0.semaphore.taken();
        Depth { messages, bytes }
    }

    /// Waits until there is room for a message of `bytes`. The wait is counted in seconds per edge.
    ///
    /// Inside a stage, wrap it in [`StageContext::waiting`](crate::stage::StageContext::waiting): then the
    /// wait for room is not taken for a stall.
    ///
    /// # Errors
    /// The stage takes no more messages.
    pub async fn reserve(&self, bytes: usize) -> Result<Credit<M>, Closed<()>> {
        let permit = self.0.semaphore.take(bytes).await.ok_or(Closed(()))?;
        Ok(Credit { permit, mailbox: self.clone() })
    }

    /// Waits for room, then delivers. Holds the message while it waits; where the wait may be
    /// cancelled (`select!`), use [`Mailbox::reserve`]. Inside a stage, as there.
    ///
    /// # Errors
    /// The stage takes no more messages; the message comes back.
    pub async fn send(&self, message: M) -> Result<(), Closed<M>> {
        let message = match self.enter(message) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(message)) => return Err(Closed(message)),
            Err(TrySendError::Full(message)) => message,
        };
        match self.0.semaphore.take(message.bytes()).await {
            Some(permit) => self.deliver(permit, message),
            None => Err(Closed(message)),
        }
    }

    /// Delivers if there is room now and nobody waits for it.
    ///
    /// # Errors
    /// Full or closed; the message comes back.
    pub fn try_send(&self, message: M) -> Result<(), TrySendError<M>> {
        let sent = self.enter(message);
        if let Err(TrySendError::Full(_)) = sent {
            self.0.semaphore.meter.refused.add(1);
        }
        sent
    }

    /// Takes no more messages from now on; what is queued is still handled.
    pub fn close(&self) {
        self.0.semaphore.close();
    }

    /// Semaphore and delivery under one lock.
    fn enter(&self, message: M) -> Result<(), TrySendError<M>> {
        let bytes = message.bytes();
        let mut message = Some(message); // stays here if there is no room for it
        let entered = self.0.semaphore.enter(bytes, |mut permit| {
            permit.depart(bytes);
            let message = message.take().expect("pushed once");
            self.0.queue.push(Envelope { message, permit })
        });
        let refused = match entered {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(envelope)) => return Err(TrySendError::Closed(envelope.recall())),
            Err(refused) => refused,
        };
        let message = message.expect("not pushed");
        Err(match refused {
            Refused::Full => TrySendError::Full(message),
            Refused::Closed => TrySendError::Closed(message),
        })
    }

    fn deliver(&self, mut permit: Permit, message: M) -> Result<(), Closed<M>> {
        permit.depart(message.bytes());
        let mut envelope = Some(Envelope { message, permit });
        let passed = self.0.semaphore.if_open(|| self.0.queue.push(envelope.take().expect("pushed once")));
        match (passed, envelope) {
            (Ok(Ok(())), _) => Ok(()),
            (Ok(Err(envelope)), _) | (Err(_), Some(envelope)) => Err(Closed(envelope.recall())),
            (Err(_), None) => unreachable!("a closed door pushes nothing"),
        }
    }
}

/// A message on its way, with the credit that it entered on.
pub(crate) struct Envelope<M> {
    pub(crate) message: M,
    pub(crate) permit: Permit,
}

impl<M> Envelope<M> {
    /// Nobody takes it: the message goes back to its sender, the room is free.
    fn recall(mut self) -> M {
        self.permit.recall();
        self.message
    }
}

impl<M: Message> actix::Message for Envelope<M> {
    type Result = ();
}

/// The actix queue behind a mailbox, with the stage's type forgotten.
pub(crate) trait Queue<M>: Send + Sync {
    /// Gives the envelope back if the actor is gone.
    fn push(&self, envelope: Envelope<M>) -> Result<(), Envelope<M>>;

    /// Puts the in-band drain behind the last message; false if the actor is gone.
    fn push_drain(&self) -> bool;
}

impl<S: Stage> Queue<S::Message> for AddressSender<ActorHost<S>> {
    fn push(&self, envelope: Envelope<S::Message>) -> Result<(), Envelope<S::Message>> {
        #[expect(clippy::disallowed_methods, reason = "the one place: the envelope holds a credit")]
        self.do_send(envelope).map_err(|error| match error {
            SendError::Full(envelope) | SendError::Closed(envelope) => envelope,
        })
    }

    fn push_drain(&self) -> bool {
        #[expect(clippy::disallowed_methods, reason = "once in an actor's life, after the mailbox has closed")]
        self.do_send(Drain).is_ok()
    }
}

impl<M: Message> Mailbox<M> {
    /// Closes, then lets the in-band drain follow the last message.
    pub(crate) fn drain(&self) {
        self.close();
        // False: the actor has ended, which whoever drains learns from its vitals.
        let _ = self.0.queue.push_drain();
    }
}
