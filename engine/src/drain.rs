//! The shutdown phases `Accepting → Closing → Draining → Persisting → Done`, and the state machine that advances them.

/// Phase of the shutdown. Only ever advances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Normal operation.
    Accepting,
    /// Not ready any more, but intake continues for `shutdown.linger_ms`: load balancers notice with a delay.
    Closing,
    /// New requests are rejected; an in-band drain follows the last message through every mailbox.
    Draining,
    /// Uncommitted records stay in the journal: last fsync, seal.
    Persisting,
    /// The shutdown is complete.
    Done,
}

/// Reads the phase and waits for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch(tokio::sync::watch::Receiver<Phase>);

impl DrainWatch {
    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until `phase` or a later one is reached.
    pub async fn reached(&self, phase: Phase) {
        let mut receiver = self.0.clone();
        // An error means that the control was dropped: the shutdown is complete then, too.
        let _ = receiver.wait_for(|now| *now >= phase).await;
    }
}

/// Advances the phase and notifies every [`DrainWatch`].
#[derive(Debug)]
pub struct DrainControl(tokio::sync::watch::Sender<Phase>);

impl Default for DrainControl {
    fn default() -> Self {
        Self(tokio::sync::watch::Sender::new(Phase::Accepting))
    }
}

impl DrainControl {
    /// Returns a watch on this control.
    #[must_use]
    pub fn watch(&self) -> DrainWatch {
        DrainWatch(self.0.subscribe())
    }

    /// Advances to `phase` unless it has been reached already. Returns whether the phase changed.
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

/// The configuration section `shutdown`, in milliseconds from the first signal or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long intake continues after readiness has been withdrawn.
    pub linger_ms: u64,
    /// Latest start of [`Phase::Done`]. The last part, a fifth but at most five seconds, is reserved for
    /// [`Phase::Persisting`], which always gets a second.
    pub deadline_ms: u64,
}

/// Limit for what is reserved for [`Phase::Persisting`]: an fsync of what waits for the disk, and the seal.
const SEAL_MAX_MS: u64 = 5_000;
/// What it gets in any case, also beyond a deadline that is shorter or was missed.
const SEAL_MIN_MS: u64 = 1_000;

impl DrainSettings {
    fn seal_ms(&self) -> u64 {
        (self.deadline_ms / 5).min(SEAL_MAX_MS)
    }
}

/// An event during shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEvent {
    /// A drain was requested (`POST /drain`, a stage's exit). Unlike a signal it may be repeated: a preStop hook
    /// requests a drain, and the SIGTERM that follows must not cut it short.
    Requested,
    /// SIGTERM or SIGINT. The second one advances to [`Phase::Persisting`] at once.
    Signal,
    /// Time has passed. Equivalent to any other event, and harmless if early.
    Timer,
    /// The last request in flight has completed. Ignored before [`Phase::Draining`]: until then a new request may
    /// arrive.
    IntakeIdle,
    /// Every stage has drained.
    StagesDrained,
    /// The journal is sealed.
    Sealed,
}

/// Consequences of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainStep {
    /// The current phase.
    pub phase: Phase,
    /// Whether the stages may be drained: no request is in flight and none can arrive. Stays true.
    pub drain_stages: bool,
    /// When [`DrainEvent::Timer`] is due at the latest. In [`Phase::Persisting`], the time limit of the seal.
    pub wake_at_ms: Option<u64>,
}

/// State machine of the shutdown. Pure: the time, in milliseconds since an arbitrary moment, is passed with the event.
///
/// - Phases only advance. Time alone leads to `Persisting`, and from there to `Done` at the deadline.
/// - `Persisting` has a time limit, since a disk that hangs never answers. What was acknowledged is on disk: the next
///   start only finds no seal.
#[derive(Clone, Debug)]
pub struct DrainMachine {
    settings: DrainSettings,
    phase: Phase,
    began_ms: Option<u64>,
    signaled: bool,
    intake_idle: bool,
    /// Latest start of `Done`, once `Persisting` has begun.
    seal_by_ms: Option<u64>,
}

impl DrainMachine {
    /// Creates a machine in [`Phase::Accepting`].
    #[must_use]
    pub fn new(settings: DrainSettings) -> Self {
        Self {
            settings,
            phase: Phase::Accepting,
            began_ms: None,
            signaled: false,
            intake_idle: false,
            seal_by_ms: None,
        }
    }

    /// Processes an event that happened at `now_ms`.
    pub fn on(&mut self, event: DrainEvent, now_ms: u64) -> DrainStep {
        match event {
            DrainEvent::Requested => self.begin(now_ms),
            DrainEvent::Signal if self.signaled => self.persist(now_ms, self.settings.seal_ms()),
            DrainEvent::Signal => {
                self.signaled = true;
                self.begin(now_ms);
            }
            DrainEvent::Timer => {}
            DrainEvent::IntakeIdle => self.intake_idle |= self.phase == Phase::Draining,
            DrainEvent::StagesDrained if self.phase == Phase::Draining => self.persist(now_ms, u64::MAX),
            DrainEvent::Sealed if self.phase == Phase::Persisting => self.advance(Phase::Done),
            DrainEvent::StagesDrained | DrainEvent::Sealed => {}
        }
        self.pass_time(now_ms);
        self.step()
    }

    fn begin(&mut self, now_ms: u64) {
        self.began_ms.get_or_insert(now_ms);
        self.advance(Phase::Closing);
    }

    fn pass_time(&mut self, now_ms: u64) {
        if self.linger_end_ms().is_some_and(|end| now_ms >= end) {
            self.advance(Phase::Draining);
        }
        if self.drain_end_ms().is_some_and(|end| now_ms >= end) {
            self.persist(now_ms, u64::MAX);
        }
        if self.seal_by_ms.is_some_and(|limit| now_ms >= limit) {
            self.advance(Phase::Done);
        }
    }

    /// Begins to persist, for at most `limit_ms` and until the deadline, but always for [`SEAL_MIN_MS`].
    fn persist(&mut self, now_ms: u64, limit_ms: u64) {
        self.advance(Phase::Persisting);
        let deadline_ms = self.deadline_ms().unwrap_or(now_ms);
        let seal_by_ms = now_ms.saturating_add(limit_ms).min(deadline_ms).max(now_ms.saturating_add(SEAL_MIN_MS));
        self.seal_by_ms = Some(self.seal_by_ms.map_or(seal_by_ms, |before| before.min(seal_by_ms)));
    }

    fn advance(&mut self, phase: Phase) {
        self.phase = self.phase.max(phase);
    }

    fn step(&self) -> DrainStep {
        let wake_at_ms = match self.phase {
            Phase::Accepting | Phase::Done => None,
            Phase::Closing => self.linger_end_ms().min(self.drain_end_ms()),
            Phase::Draining => self.drain_end_ms(),
            Phase::Persisting => self.seal_by_ms,
        };
        DrainStep { phase: self.phase, drain_stages: self.intake_idle, wake_at_ms }
    }

    fn linger_end_ms(&self) -> Option<u64> {
        self.began_ms.map(|began| began.saturating_add(self.settings.linger_ms))
    }

    /// Latest start of `Persisting`.
    fn drain_end_ms(&self) -> Option<u64> {
        self.deadline_ms().map(|deadline| deadline - self.settings.seal_ms())
    }

    fn deadline_ms(&self) -> Option<u64> {
        self.began_ms.map(|began| began.saturating_add(self.settings.deadline_ms))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::DrainEvent::*;
    use super::*;

    const SETTINGS: DrainSettings = DrainSettings { linger_ms: 100, deadline_ms: 1_000 };

    /// Feeds `(event, at_ms)` and checks the phase after each.
    fn check(settings: DrainSettings, story: &[(DrainEvent, u64, Phase)]) {
        let mut machine = DrainMachine::new(settings);
        for (index, &(event, at_ms, phase)) in story.iter().enumerate() {
            let step = machine.on(event, at_ms);
            assert_eq!(step.phase, phase, "after event {index}, {event:?} at {at_ms} ms");
        }
    }

    #[test]
    fn a_signal_starts_an_orderly_shutdown() {
        check(
            SETTINGS,
            &[
                (Timer, 4, Phase::Accepting),
                (Signal, 5, Phase::Closing),
                (Timer, 104, Phase::Closing),
                (Timer, 105, Phase::Draining),
                (IntakeIdle, 200, Phase::Draining),
                (StagesDrained, 300, Phase::Persisting),
                (Sealed, 310, Phase::Done),
                (Signal, 311, Phase::Done),
            ],
        );
    }

    #[test]
    fn a_disk_that_does_not_answer_ends_the_seal_at_the_deadline() {
        let long = DrainSettings { linger_ms: 100, deadline_ms: 25_000 };
        check(
            long,
            &[
                (Signal, 0, Phase::Closing),
                (Timer, 100, Phase::Draining),
                (Timer, 19_999, Phase::Draining),
                (Timer, 20_000, Phase::Persisting),
                (Timer, 24_999, Phase::Persisting),
                (Timer, 25_000, Phase::Done),
            ],
        );
        // What is left of the deadline after a short drain, and no more than the reserve after a second signal.
        let seal = |story: &[(DrainEvent, u64)]| {
            let mut machine = DrainMachine::new(long);
            story.iter().map(|&(event, at_ms)| machine.on(event, at_ms).wake_at_ms).last().flatten()
        };
        assert_eq!(seal(&[(Signal, 0), (Timer, 100), (IntakeIdle, 100), (StagesDrained, 200)]), Some(25_000));
        assert_eq!(seal(&[(Signal, 0), (Timer, 100), (Signal, 200)]), Some(5_200));
        // A process that was stopped meanwhile tries to seal all the same.
        assert_eq!(seal(&[(Signal, 0), (Timer, 90_000)]), Some(91_000));
    }

    #[test]
    fn the_second_signal_advances_to_persisting_at_once() {
        check(SETTINGS, &[(Signal, 5, Phase::Closing), (Signal, 6, Phase::Persisting), (Sealed, 7, Phase::Done)]);
        let draining = [(Signal, 5, Phase::Closing), (Timer, 105, Phase::Draining), (Signal, 106, Phase::Persisting)];
        check(SETTINGS, &draining);
    }

    #[test]
    fn a_signal_after_a_request_counts_as_the_first() {
        check(
            SETTINGS,
            &[
                (Requested, 0, Phase::Closing),
                (Requested, 1, Phase::Closing),
                (Signal, 50, Phase::Closing),
                (Timer, 100, Phase::Draining), // the linger counts from the request, not from the signal
                (Signal, 101, Phase::Persisting),
            ],
        );
    }

    #[test]
    fn the_deadline_ends_a_drain_that_hangs() {
        check(SETTINGS, &[(Signal, 0, Phase::Closing), (Timer, 100, Phase::Draining), (Timer, 800, Phase::Persisting)]);
        // Also if no timer event came in between, or if the deadline is shorter than the linger.
        check(SETTINGS, &[(Signal, 0, Phase::Closing), (IntakeIdle, 5_000, Phase::Persisting)]);
        let short = DrainSettings { linger_ms: 100, deadline_ms: 10 };
        check(short, &[(Signal, 0, Phase::Closing), (Timer, 10, Phase::Persisting)]);
    }

    #[test]
    fn the_timer_is_due_at_the_end_of_the_linger_or_at_the_deadline() {
        let wake = |linger_ms, deadline_ms| {
            let mut machine = DrainMachine::new(DrainSettings { linger_ms, deadline_ms });
            assert_eq!(machine.on(Timer, 4).wake_at_ms, None);
            machine.on(Signal, 5).wake_at_ms
        };
        assert_eq!(wake(100, 1_000), Some(105));
        assert_eq!(wake(100, 10), Some(13), "a fifth is left for the seal");
        assert_eq!(wake(0, 10), Some(13));
        assert_eq!(wake(0, 0), Some(1_005), "the seal always gets a second");
    }

    #[test]
    fn a_linger_of_zero_ends_intake_at_once() {
        check(DrainSettings { linger_ms: 0, ..SETTINGS }, &[(Signal, 7, Phase::Draining)]);
    }

    #[test]
    fn idle_intake_is_ignored_before_draining() {
        let mut machine = DrainMachine::new(SETTINGS);
        machine.on(Signal, 0);
        assert!(!machine.on(IntakeIdle, 50).drain_stages);
        assert!(!machine.on(Timer, 100).drain_stages);
        assert!(machine.on(IntakeIdle, 120).drain_stages);
    }

    #[test]
    fn unexpected_events_are_ignored() {
        check(SETTINGS, &[(StagesDrained, 0, Phase::Accepting), (Sealed, 1, Phase::Accepting)]);
        check(
            SETTINGS,
            &[(Signal, 0, Phase::Closing), (StagesDrained, 1, Phase::Closing), (Sealed, 2, Phase::Closing)],
        );
    }

    fn any_event() -> impl Strategy<Value = DrainEvent> {
        prop::sample::select(vec![Requested, Signal, Timer, IntakeIdle, StagesDrained, Sealed])
    }

    proptest! {
        #[test]
        fn phases_only_advance_and_the_deadline_is_kept(
            linger_ms in 0_u64..300,
            deadline_ms in 0_u64..300,
            story in prop::collection::vec((any_event(), 0_u64..200), 1..40),
        ) {
            let mut machine = DrainMachine::new(DrainSettings { linger_ms, deadline_ms });
            let (mut now_ms, mut before, mut began_ms, mut signals) = (0, Phase::Accepting, None, 0);
            let mut persists_until = None;
            for (event, pause_ms) in story {
                now_ms += pause_ms;
                let step = machine.on(event, now_ms);
                signals += usize::from(event == Signal);
                if matches!(event, Signal | Requested) {
                    began_ms.get_or_insert(now_ms);
                }
                prop_assert!(step.phase >= before, "phases only advance");
                prop_assert_eq!(step.phase == Phase::Accepting, began_ms.is_none());
                prop_assert!(signals < 2 || step.phase >= Phase::Persisting);
                let late = persists_until.is_some_and(|until| now_ms >= until);
                prop_assert_eq!(step.phase == Phase::Done, before == Phase::Done || persists_until.is_some() && (late || event == Sealed));
                if step.phase == Phase::Persisting {
                    persists_until = step.wake_at_ms;
                }
                let overdue = began_ms.is_some_and(|began| now_ms >= began + deadline_ms);
                prop_assert!(!overdue || step.phase >= Phase::Persisting, "the deadline holds");
                let timed = matches!(step.phase, Phase::Closing | Phase::Draining | Phase::Persisting);
                prop_assert_eq!(step.wake_at_ms.is_some(), timed);
                prop_assert!(step.wake_at_ms.is_none_or(|at| at > now_ms), "the timer is due in the future");
                before = step.phase;
            }
        }
    }
}
