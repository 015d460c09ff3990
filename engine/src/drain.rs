//! The way down: `Accepting → Closing → Draining → Persisting → Done`, one way.

/// Where the way down stands. Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Normal work.
    Accepting,
    /// Not ready any more, but intake still goes on for `shutdown.linger_ms`: load balancers are slow to notice.
    Closing,
    /// New requests are refused; an in-band drain follows the last message through every mailbox.
    Draining,
    /// Whatever is not committed stays in the journal: last fsync, seal.
    Persisting,
    /// Over.
    Done,
}

/// Sees the phase and can wait for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch(tokio::sync::watch::Receiver<Phase>);

impl DrainWatch {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until `phase` or a later one is reached.
    pub async fn reached(&self, phase: Phase) {
        let mut receiver = self.0.clone();
        // An error means that the drain's owner is gone: then everything is over as well.
        let _ = receiver.wait_for(|now| *now >= phase).await;
    }
}

/// Moves the phase forward and tells every [`DrainWatch`].
#[derive(Debug)]
pub struct DrainControl(tokio::sync::watch::Sender<Phase>);

impl Default for DrainControl {
    fn default() -> Self {
        Self(tokio::sync::watch::Sender::new(Phase::Accepting))
    }
}

impl DrainControl {
    /// A watch on this control.
    #[must_use]
    pub fn watch(&self) -> DrainWatch {
        DrainWatch(self.0.subscribe())
    }

    /// Moves to `phase` if that is forward; says whether it moved.
    pub fn advance(&self, phase: Phase) -> bool {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        })
    }
}
