//! Circuit breaker. Pure: the time is an argument.
//!
//! ```text
//!           failures_max in a row                 the open time has passed
//!   Closed ───────────────────────> Open ─────────────────────────────────> HalfOpen (one probe)
//!     ^                               ^        the probe fails: twice as long     │  │
//!     │                               └───────────────────────────────────────────┘  │
//!     └────────────────────────────── any success ───────────────────────────────────┘
//! ```
//!
//! - While half-open, one caller has the probe; all other calls are rejected.
//! - A probe whose caller never reports its outcome (canceled, panicked) counts as failed once the open time has passed
//!   again. Otherwise the breaker would reject calls forever.
//! - The open time doubles from `open_ms_min` to `open_ms_max` and is reset by a success.
//!
//! Not recloser 1.4: it opens at an error rate, calls a closure instead of reporting whether a call is allowed, and does
//! not expose its state and the time until the next call, which the flusher waits for and `/api/v1/status` shows.

use std::time::Duration;

use tokio::time::Instant;

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Consecutive failures that open it; 0 counts as 1.
    pub failures_max: u32,
    /// First open time, in milliseconds.
    pub open_ms_min: u64,
    /// Longest open time, in milliseconds.
    pub open_ms_max: u64,
}

/// Whether a call may be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Yes.
    Yes,
    /// Yes, as the probe. Its outcome must be reported.
    Probe,
    /// No.
    No {
        /// Time until the next call may be allowed.
        retry_in: Duration,
    },
}

/// State of a breaker, without details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls are allowed.
    Closed = 0,
    /// One call probes whether the other side is available again.
    HalfOpen = 1,
    /// Calls are rejected.
    Open = 2,
}

/// A breaker in `/api/v1/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct BreakerSnapshot {
    /// Current state.
    pub state: BreakerState,
    /// Time in this state, in milliseconds.
    pub since_ms: u64,
    /// Number of failures since the last success.
    pub failures: u64,
    /// Number of times it has opened, including failed probes.
    pub opened: u64,
    /// Time until the next call may be allowed, in milliseconds; 0 when closed.
    pub retry_in_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probe_until: Instant },
}

/// Rejects calls to a peer that keeps failing.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    state: State,
    /// When `state` was entered; `None` before the first change.
    since: Option<Instant>,
    failures: u64,
    /// Number of openings since the last success; determines the open time.
    openings: u32,
    opened: u64,
}

impl Breaker {
    /// Creates a closed breaker.
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, state: State::Closed, since: None, failures: 0, openings: 0, opened: 0 }
    }

    /// Returns whether a call may be made at `now`. After [`Allow::Yes`] and [`Allow::Probe`], report the outcome.
    pub fn allow(&mut self, now: Instant) -> Allow {
        match self.state {
            State::Closed => Allow::Yes,
            State::Open { until: wait_until } | State::HalfOpen { probe_until: wait_until } if now < wait_until => {
                Allow::No { retry_in: wait_until - now }
            }
            State::Open { .. } | State::HalfOpen { .. } => {
                self.enter(State::HalfOpen { probe_until: now + self.open_time() }, now);
                Allow::Probe
            }
        }
    }

    /// Records a success, which closes the breaker in any state.
    pub fn succeeded(&mut self, now: Instant) {
        self.failures = 0;
        self.openings = 0;
        if self.state != State::Closed {
            self.enter(State::Closed, now);
        }
    }

    /// Records a failure.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state {
            State::Closed => self.failures >= u64::from(self.settings.failures_max),
            State::HalfOpen { .. } => true,
            // A call from before the opening; it proves nothing new.
            State::Open { .. } => false,
        };
        if opens {
            self.openings = self.openings.saturating_add(1);
            self.opened = self.opened.saturating_add(1);
            self.enter(State::Open { until: now + self.open_time() }, now);
        }
    }

    /// Current state.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Returns the details at `now`.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> BreakerSnapshot {
        let retry_in = match self.state {
            State::Closed => Duration::ZERO,
            State::Open { until: wait_until } | State::HalfOpen { probe_until: wait_until } => {
                wait_until.saturating_duration_since(now)
            }
        };
        BreakerSnapshot {
            state: self.state(),
            since_ms: self.since.map_or(0, |since| millis(now.saturating_duration_since(since))),
            failures: self.failures,
            opened: self.opened,
            retry_in_ms: millis(retry_in),
        }
    }

    fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.since = Some(now);
    }

    fn open_time(&self) -> Duration {
        let BreakerSettings { open_ms_min, open_ms_max, .. } = self.settings;
        let doublings = self.openings.saturating_sub(1).min(u64::BITS - 1);
        Duration::from_millis(open_ms_min.saturating_mul(1 << doublings).min(open_ms_max))
    }
}

/// Sets the gauge `logweir_breaker_state{name}`: 0 closed, 1 half-open, 2 open.
pub fn publish(name: &str, state: BreakerState) {
    metrics::gauge!("logweir_breaker_state", "name" => name.to_owned()).set(f64::from(state as u8));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 100, open_ms_max: 1000 };

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Ask,
        Succeed,
        Fail,
    }
    use Step::{Ask, Fail, Succeed, Wait};

    const fn no(ms: u64) -> Allow {
        Allow::No { retry_in: Duration::from_millis(ms) }
    }

    /// Runs `steps` and returns the result of each `Ask`.
    fn answers(steps: &[Step]) -> Vec<Allow> {
        let mut breaker = Breaker::new(SETTINGS);
        let mut now = Instant::now();
        let mut answers = Vec::new();
        for step in steps {
            match *step {
                Wait(ms) => now += Duration::from_millis(ms),
                Ask => answers.push(breaker.allow(now)),
                Succeed => breaker.succeeded(now),
                Fail => breaker.failed(now),
            }
        }
        answers
    }

    #[test]
    fn each_sequence_of_calls_gets_the_expected_answers() {
        let cases: [(&str, &[Step], &[Allow]); 9] = [
            ("a new breaker allows calls", &[Ask], &[Allow::Yes]),
            ("two of three failures do not open it", &[Fail, Fail, Ask], &[Allow::Yes]),
            ("a success resets the count", &[Fail, Fail, Succeed, Fail, Fail, Ask], &[Allow::Yes]),
            ("three in a row open it", &[Fail, Fail, Fail, Wait(40), Ask], &[no(60)]),
            (
                "then one probe is allowed and the next caller waits",
                &[Fail, Fail, Fail, Wait(100), Ask, Wait(10), Ask],
                &[Allow::Probe, no(90)],
            ),
            (
                "a successful probe closes it",
                &[Fail, Fail, Fail, Wait(100), Ask, Succeed, Ask, Fail, Fail, Ask],
                &[Allow::Probe, Allow::Yes, Allow::Yes],
            ),
            (
                "a failed probe opens it for twice as long",
                &[Fail, Fail, Fail, Wait(100), Ask, Fail, Ask, Wait(199), Ask, Wait(1), Ask],
                &[Allow::Probe, no(200), no(1), Allow::Probe],
            ),
            (
                "a probe without an outcome counts as failed",
                &[Fail, Fail, Fail, Wait(100), Ask, Wait(99), Ask, Wait(1), Ask],
                &[Allow::Probe, no(1), Allow::Probe],
            ),
            (
                "a failure from before the opening does not prolong it",
                &[Fail, Fail, Fail, Wait(60), Fail, Ask],
                &[no(40)],
            ),
        ];
        for (case, steps, expected) in cases {
            assert_eq!(answers(steps), expected, "{case}");
        }
    }

    #[test]
    fn the_open_time_doubles_to_its_cap_and_is_reset_by_a_success() {
        let mut breaker = Breaker::new(SETTINGS);
        let mut now = Instant::now();
        let mut open_for = |breaker: &mut Breaker, failures: u32| {
            (0..failures).for_each(|_| breaker.failed(now));
            let Allow::No { retry_in } = breaker.allow(now) else { panic!("the breaker is not open") };
            now += retry_in;
            assert_eq!(breaker.allow(now), Allow::Probe);
            u64::try_from(retry_in.as_millis()).unwrap()
        };
        assert_eq!(open_for(&mut breaker, 3), 100);
        let further: Vec<u64> = (0..6).map(|_| open_for(&mut breaker, 1)).collect();
        assert_eq!(further, [200, 400, 800, 1000, 1000, 1000]);
        breaker.succeeded(Instant::now());
        assert_eq!(open_for(&mut breaker, 3), 100);
    }

    #[test]
    fn the_snapshot_has_state_times_and_counts() {
        let mut breaker = Breaker::new(SETTINGS);
        let start = Instant::now();
        (0..3).for_each(|_| breaker.failed(start));
        let snapshot = breaker.snapshot(start + Duration::from_millis(30));
        assert_eq!(
            serde_json::to_value(snapshot).unwrap(),
            serde_json::json!({"state": "open", "since_ms": 30, "failures": 3, "opened": 1, "retry_in_ms": 70})
        );
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![(0_u64..1500).prop_map(Wait), Just(Ask), Just(Succeed), Just(Fail), Just(Fail)];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Checked against a simple model: a count of consecutive failures and the time of the last probe.
        #[test]
        fn it_agrees_with_the_model(steps in steps(), failures_max in 1_u32..6, cap in 100_u64..3000) {
            let settings = BreakerSettings { failures_max, open_ms_min: 100, open_ms_max: cap };
            let mut breaker = Breaker::new(settings);
            let mut now = Instant::now();
            let (mut in_a_row, mut probe_at) = (0, None::<Instant>);
            for step in steps {
                match step {
                    Wait(ms) => now += Duration::from_millis(ms),
                    Succeed => {
                        breaker.succeeded(now);
                        (in_a_row, probe_at) = (0, None);
                        prop_assert_eq!(breaker.state(), BreakerState::Closed);
                    }
                    Fail => {
                        let probing = breaker.state() == BreakerState::HalfOpen;
                        breaker.failed(now);
                        in_a_row += 1;
                        probe_at = None;
                        prop_assert!(!probing || breaker.state() == BreakerState::Open);
                    }
                    Ask => match breaker.allow(now) {
                        Allow::Yes => prop_assert!(in_a_row < failures_max),
                        Allow::Probe => {
                            prop_assert!(in_a_row >= failures_max);
                            // One at a time: the previous probe has reported or expired.
                            prop_assert!(probe_at.is_none_or(|at| now - at >= Duration::from_millis(100)));
                            probe_at = Some(now);
                        }
                        Allow::No { retry_in } => {
                            prop_assert!(in_a_row >= failures_max);
                            prop_assert!(retry_in > Duration::ZERO && retry_in <= Duration::from_millis(cap));
                        }
                    },
                }
            }
        }

        #[test]
        fn it_allows_a_probe_within_its_cap_from_any_state(steps in steps()) {
            let mut breaker = Breaker::new(SETTINGS);
            let mut now = Instant::now();
            for step in steps {
                match step {
                    Wait(ms) => now += Duration::from_millis(ms),
                    Ask => drop(breaker.allow(now)),
                    Succeed => breaker.succeeded(now),
                    Fail => breaker.failed(now),
                }
            }
            now += Duration::from_millis(SETTINGS.open_ms_max);
            prop_assert!(matches!(breaker.allow(now), Allow::Yes | Allow::Probe));
        }
    }
}
