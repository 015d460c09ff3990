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

/// The section `shutdown` of a configuration, in milliseconds from the first signal or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long intake goes on after readiness has turned.
    pub linger_ms: u64,
    /// When [`Phase::Persisting`] begins at the latest.
    pub deadline_ms: u64,
}

/// What happens to a process on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEvent {
    /// Somebody asks for a drain (`POST /drain`, a stage's exit). Unlike a signal it may come any
    /// number of times: a preStop hook asks first, and the SIGTERM that follows must not cut the drain short.
    Requested,
    /// SIGTERM or SIGINT. The second one goes straight to [`Phase::Persisting`].
    Signal,
    /// Time has passed; as good as any other event, and harmless when it comes early.
    Woken,
    /// The last request in flight has ended. Counts only after [`Phase::Draining`] has begun: before,
    /// the next request may still come in.
    IntakeIdle,
    /// Every stage has drained.
    StagesDrained,
    /// The journal is sealed.
    Sealed,
}

/// What follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainStep {
    /// Where the way down stands now.
    pub phase: Phase,
    /// No request is in flight any more: the stages may drain. Stays true.
    pub drain_stages: bool,
    /// When [`DrainEvent::Woken`] is due at the latest.
    pub wake_at_ms: Option<u64>,
}

/// Decides the way down. Pure: the time, in milliseconds since any moment, comes with the event.
///
/// - Phases go one way; time alone leads to `Persisting`, which begins no later than the deadline.
/// - `Persisting` and `Done` wait for no clock: a seal that takes long is still better than none.
#[derive(Clone, Debug)]
pub struct DrainMachine {
    settings: DrainSettings,
    phase: Phase,
    began_ms: Option<u64>,
    signalled: bool,
    intake_idle: bool,
}

impl DrainMachine {
    /// A machine that accepts.
    #[must_use]
    pub fn new(settings: DrainSettings) -> Self {
        Self { settings, phase: Phase::Accepting, began_ms: None, signalled: false, intake_idle: false }
    }

    /// Takes in one event that happened at `now_ms`.
    pub fn on(&mut self, event: DrainEvent, now_ms: u64) -> DrainStep {
        match event {
            DrainEvent::Requested => self.begin(now_ms),
            DrainEvent::Signal if self.signalled => self.advance(Phase::Persisting),
            DrainEvent::Signal => {
                self.signalled = true;
                self.begin(now_ms);
            }
            DrainEvent::Woken => {}
            DrainEvent::IntakeIdle => self.intake_idle |= self.phase == Phase::Draining,
            DrainEvent::StagesDrained if self.phase == Phase::Draining => self.advance(Phase::Persisting),
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
        if self.deadline_ms().is_some_and(|deadline| now_ms >= deadline) {
            self.advance(Phase::Persisting);
        }
    }

    fn advance(&mut self, phase: Phase) {
        self.phase = self.phase.max(phase);
    }

    fn step(&self) -> DrainStep {
        let wake_at_ms = match self.phase {
            Phase::Accepting | Phase::Persisting | Phase::Done => None,
            Phase::Closing => self.linger_end_ms().min(self.deadline_ms()),
            Phase::Draining => self.deadline_ms(),
        };
        DrainStep { phase: self.phase, drain_stages: self.intake_idle, wake_at_ms }
    }

    fn linger_end_ms(&self) -> Option<u64> {
        self.began_ms.map(|began| began.saturating_add(self.settings.linger_ms))
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

    /// Feeds `(event, at_ms)` and expects the phase after each.
    fn check(settings: DrainSettings, story: &[(DrainEvent, u64, Phase)]) {
        let mut machine = DrainMachine::new(settings);
        for (index, &(event, at_ms, phase)) in story.iter().enumerate() {
            let step = machine.on(event, at_ms);
            assert_eq!(step.phase, phase, "after event {index}, {event:?} at {at_ms} ms");
        }
    }

    #[test]
    fn a_signal_leads_down_step_by_step() {
        check(
            SETTINGS,
            &[
                (Woken, 4, Phase::Accepting),
                (Signal, 5, Phase::Closing),
                (Woken, 104, Phase::Closing),
                (Woken, 105, Phase::Draining),
                (IntakeIdle, 200, Phase::Draining),
                (StagesDrained, 300, Phase::Persisting),
                (Sealed, 310, Phase::Done),
                (Signal, 311, Phase::Done),
            ],
        );
    }

    #[test]
    fn the_second_signal_goes_straight_to_persisting() {
        check(SETTINGS, &[(Signal, 5, Phase::Closing), (Signal, 6, Phase::Persisting), (Sealed, 7, Phase::Done)]);
        let draining = [(Signal, 5, Phase::Closing), (Woken, 105, Phase::Draining), (Signal, 106, Phase::Persisting)];
        check(SETTINGS, &draining);
    }

    #[test]
    fn the_signal_that_follows_a_request_is_the_first() {
        check(
            SETTINGS,
            &[
                (Requested, 0, Phase::Closing),
                (Requested, 1, Phase::Closing),
                (Signal, 50, Phase::Closing),
                (Woken, 100, Phase::Draining), // lingers since the request, not since the signal
                (Signal, 101, Phase::Persisting),
            ],
        );
    }

    #[test]
    fn the_deadline_ends_whatever_hangs() {
        check(
            SETTINGS,
            &[(Signal, 0, Phase::Closing), (Woken, 100, Phase::Draining), (Woken, 1_000, Phase::Persisting)],
        );
        // Even when nobody looked at the clock in between, or the deadline is the shorter one.
        check(SETTINGS, &[(Signal, 0, Phase::Closing), (IntakeIdle, 5_000, Phase::Persisting)]);
        let short = DrainSettings { linger_ms: 100, deadline_ms: 10 };
        check(short, &[(Signal, 0, Phase::Closing), (Woken, 10, Phase::Persisting)]);
    }

    #[test]
    fn the_next_wake_up_is_the_end_of_the_linger_or_the_deadline_whichever_comes_first() {
        let wake = |linger_ms, deadline_ms| {
            let mut machine = DrainMachine::new(DrainSettings { linger_ms, deadline_ms });
            assert_eq!(machine.on(Woken, 4).wake_at_ms, None);
            machine.on(Signal, 5).wake_at_ms
        };
        assert_eq!(wake(100, 1_000), Some(105));
        assert_eq!(wake(100, 10), Some(15));
        assert_eq!(wake(0, 10), Some(15));
        assert_eq!(wake(0, 0), None);
    }

    #[test]
    fn without_a_linger_intake_ends_at_once() {
        check(DrainSettings { linger_ms: 0, ..SETTINGS }, &[(Signal, 7, Phase::Draining)]);
    }

    #[test]
    fn idle_counts_only_once_no_request_can_come_any_more() {
        let mut machine = DrainMachine::new(SETTINGS);
        machine.on(Signal, 0);
        assert!(!machine.on(IntakeIdle, 50).drain_stages);
        assert!(!machine.on(Woken, 100).drain_stages);
        assert!(machine.on(IntakeIdle, 120).drain_stages);
    }

    #[test]
    fn events_out_of_place_change_nothing() {
        check(SETTINGS, &[(StagesDrained, 0, Phase::Accepting), (Sealed, 1, Phase::Accepting)]);
        check(
            SETTINGS,
            &[(Signal, 0, Phase::Closing), (StagesDrained, 1, Phase::Closing), (Sealed, 2, Phase::Closing)],
        );
    }

    fn any_event() -> impl Strategy<Value = DrainEvent> {
        prop::sample::select(vec![Requested, Signal, Woken, IntakeIdle, StagesDrained, Sealed])
    }

    proptest! {
        #[test]
        fn whatever_happens_the_way_is_one_way_and_ends_by_the_deadline(
            linger_ms in 0_u64..300,
            deadline_ms in 0_u64..300,
            story in prop::collection::vec((any_event(), 0_u64..100), 1..40),
        ) {
            let mut machine = DrainMachine::new(DrainSettings { linger_ms, deadline_ms });
            let (mut now_ms, mut before, mut began_ms, mut signals) = (0, Phase::Accepting, None, 0);
            for (event, pause_ms) in story {
                now_ms += pause_ms;
                let step = machine.on(event, now_ms);
                signals += usize::from(event == Signal);
                if matches!(event, Signal | Requested) {
                    began_ms.get_or_insert(now_ms);
                }
                prop_assert!(step.phase >= before, "one way");
                prop_assert_eq!(step.phase == Phase::Accepting, began_ms.is_none());
                prop_assert!(signals < 2 || step.phase >= Phase::Persisting);
                prop_assert!(step.phase != Phase::Done || before == Phase::Done || event == Sealed);
                let overdue = began_ms.is_some_and(|began| now_ms >= began + deadline_ms);
                prop_assert!(!overdue || step.phase >= Phase::Persisting, "the deadline holds");
                let timed = matches!(step.phase, Phase::Closing | Phase::Draining);
                prop_assert_eq!(step.wake_at_ms.is_some(), timed);
                prop_assert!(step.wake_at_ms.is_none_or(|at| at > now_ms), "a wake-up lies ahead");
                before = step.phase;
            }
        }
    }
}
