//! State machine of an alert. Pure: time advances with each window.

use serde::Serialize;

/// State of an alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "server", schema(as = AlertState))]
#[non_exhaustive]
pub enum State {
    /// The condition does not hold.
    #[default]
    Inactive,
    /// The condition holds, but not yet for the required duration.
    Pending,
    /// The condition has held for the required duration.
    Firing,
}

/// A change of state that is notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The alert started firing.
    Firing,
    /// The alert stopped firing.
    Resolved,
}

/// State machine of one alert.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    for_us: i64,
    state: State,
    since_us: i64,
}

impl Machine {
    /// An alert that is inactive since `now_us` and fires once its condition has held for `for_us`.
    #[must_use]
    pub fn new(for_us: i64, now_us: i64) -> Self {
        Self { for_us, state: State::Inactive, since_us: now_us }
    }

    /// Returns the state and its start.
    #[must_use]
    pub fn state(&self) -> (State, i64) {
        (self.state, self.since_us)
    }

    /// Evaluates the window that ended at `at_us`; `holds` states whether it meets the condition.
    pub fn on(&mut self, holds: bool, at_us: i64) -> Option<Change> {
        // Later than now only if the clock was set back: the state began now at the latest.
        self.since_us = self.since_us.min(at_us);
        match (self.state, holds) {
            (State::Inactive, true) => {
                self.enter(State::Pending, at_us);
                self.fire_if_due(at_us)
            }
            (State::Pending, true) => self.fire_if_due(at_us),
            (State::Pending, false) => {
                self.enter(State::Inactive, at_us);
                None
            }
            (State::Firing, false) => {
                self.enter(State::Inactive, at_us);
                Some(Change::Resolved)
            }
            (State::Firing, true) | (State::Inactive, false) => None,
        }
    }

    fn fire_if_due(&mut self, at_us: i64) -> Option<Change> {
        if at_us - self.since_us < self.for_us {
            return None;
        }
        self.enter(State::Firing, at_us);
        Some(Change::Firing)
    }

    fn enter(&mut self, state: State, at_us: i64) {
        (self.state, self.since_us) = (state, at_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(for_us: i64, windows: &[(bool, i64)]) -> Vec<(State, i64, Option<Change>)> {
        let mut machine = Machine::new(for_us, 0);
        windows
            .iter()
            .map(|&(holds, at_us)| {
                let change = machine.on(holds, at_us);
                let (state, since_us) = machine.state();
                (state, since_us, change)
            })
            .collect()
    }

    #[test]
    fn without_a_for_duration_it_fires_at_once_and_notifies_once() {
        assert_eq!(
            run(0, &[(false, 1), (true, 2), (true, 3), (false, 4)]),
            [
                (State::Inactive, 0, None),
                (State::Firing, 2, Some(Change::Firing)),
                (State::Firing, 2, None),
                (State::Inactive, 4, Some(Change::Resolved)),
            ]
        );
    }

    #[test]
    fn a_clock_that_was_set_back_delays_an_alert_by_its_duration_at_most() {
        assert_eq!(
            run(10, &[(true, 86_400), (true, 5), (true, 15)])[1..],
            [(State::Pending, 5, None), (State::Firing, 15, Some(Change::Firing))]
        );
    }

    #[test]
    fn a_condition_that_holds_too_briefly_never_fires() {
        assert_eq!(
            run(10, &[(true, 5), (true, 14), (false, 15), (true, 20), (true, 30), (true, 40)]),
            [
                (State::Pending, 5, None),
                (State::Pending, 5, None),
                (State::Inactive, 15, None),
                (State::Pending, 20, None),
                (State::Firing, 30, Some(Change::Firing)),
                (State::Firing, 30, None),
            ]
        );
    }
}
