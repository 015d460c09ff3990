//! A bounded way into a stage. The only road: no other code touches actix's `Addr`, `do_send` or `Recipient`.
//!
//! - A message enters only with a credit, counted in messages *and* bytes. The credit rides in the
//!   envelope and is released when the handler has ended: room means handled, not merely received.
//! - actix's own bound does not hold (`do_send` and `send().await` both go past it), so the actix
//!   queue behind this is only ever as long as the credits allow.
//! - A message larger than `bytes_max` costs the whole capacity and still passes, alone.
//! - A send that cannot deliver gives the message back. Dropping a waiting `reserve` loses nothing.
//! - Waiting senders are served in the order in which they came.

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

/// The stage behind the mailbox takes no more messages. Gives the message back.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed<M>(pub M);

/// Why [`Mailbox::try_send`] did not take the message. Gives it back.
#[derive(Debug, PartialEq, Eq)]
pub enum TrySendError<M> {
    /// No credit is free now.
    Full(M),
    /// The stage takes no more messages.
    Closed(M),
}

/// Cheap to clone; every clone shares the one bound.
pub struct Mailbox<M: Message> {
    _private: std::marker::PhantomData<fn(M)>,
}

impl<M: Message> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        todo!()
    }
}

/// Room for one message, taken from the bound and given back when this (or the envelope it rides in) drops.
pub struct Credit<M: Message> {
    _private: std::marker::PhantomData<fn(M)>,
}

impl<M: Message> Credit<M> {
    /// Puts `message` into the mailbox. Never waits.
    ///
    /// # Errors
    /// The stage has closed since; the message comes back.
    pub fn send(self, message: M) -> Result<(), Closed<M>> {
        let _ = message;
        todo!()
    }
}

impl<M: Message> Mailbox<M> {
    /// The receiving stage's name.
    #[must_use]
    pub fn name(&self) -> &str {
        todo!()
    }

    /// Waits until there is room for a message of `bytes`. The wait is counted in seconds per edge.
    ///
    /// # Errors
    /// The stage takes no more messages.
    pub async fn reserve(&self, bytes: usize) -> Result<Credit<M>, Closed<()>> {
        let _ = bytes;
        todo!()
    }

    /// Waits for room, then delivers. Holds the message while it waits; where the wait may be
    /// cancelled (`select!`), use [`Mailbox::reserve`].
    ///
    /// # Errors
    /// The stage takes no more messages; the message comes back.
    pub async fn send(&self, message: M) -> Result<(), Closed<M>> {
        let _ = message;
        todo!()
    }

    /// Delivers if there is room now.
    ///
    /// # Errors
    /// Full or closed; the message comes back.
    pub fn try_send(&self, message: M) -> Result<(), TrySendError<M>> {
        let _ = message;
        todo!()
    }

    /// Takes no more messages from now on; what is queued is still handled.
    pub fn close(&self) {
        todo!()
    }
}
