//! Windows over event time: what happened in the last so many minutes, every so often.
//!
//! - Time is cut into *panes* as long as the slide; a window is as many panes as fit into it. A tumbling window is one pane.
//!   An event costs one addition, however many windows it is in.
//! - A window closes when the watermark passes its end. The [`WindowStage`]'s watermark is the clock less a grace. The
//!   newest event time, as other engines take it, was refused: one sender whose clock is ahead would make everybody else late.
//! - An event that comes after one of its windows has closed is *late*: counted, and still added to those that are open.
//!   One that is further ahead of the watermark than a window and the grace is *early*: counted, and added to nothing. So
//!   the number of panes has a bound.

use std::collections::BTreeMap;

use crate::clock;
use crate::mailbox::Message;
use crate::observe::Counter;
use crate::stage::{Exit, Stage};

/// Windows that close at one moment at most: after a longer sleep the oldest are left out.
const CLOSED_AT_ONCE_MAX: i64 = 1000;

/// Which windows there are, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// How long one is.
    pub size_us: i64,
    /// How far the next one begins after it; the size for tumbling windows.
    pub slide_us: i64,
    /// How long after its end one waits for events that come late.
    pub grace_us: i64,
}

impl WindowSpec {
    /// Windows of `size_us` side by side.
    #[must_use]
    pub fn tumbling(size_us: i64, grace_us: i64) -> Self {
        Self { size_us, slide_us: size_us, grace_us }
    }

    /// Windows of `size_us` that begin every `slide_us`.
    #[must_use]
    pub fn sliding(size_us: i64, slide_us: i64, grace_us: i64) -> Self {
        Self { size_us, slide_us, grace_us }
    }

    /// Whether there are such windows: some time in them, and a whole number of slides.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.slide_us > 0 && self.size_us >= self.slide_us && self.size_us % self.slide_us == 0 && self.grace_us >= 0
    }

    fn pane_of(&self, ts_us: i64) -> i64 {
        ts_us.div_euclid(self.slide_us).saturating_mul(self.slide_us)
    }
}

/// What is gathered in a window.
pub trait Aggregate: Default {
    /// Adds what was gathered in another part of it.
    fn merge(&mut self, other: &Self);
}

impl Aggregate for u64 {
    fn merge(&mut self, other: &Self) {
        *self += other;
    }
}

/// A window that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed<V> {
    /// Its first moment.
    pub start_us: i64,
    /// The first moment after it.
    pub end_us: i64,
    /// What was gathered in it.
    pub value: V,
}

/// The windows that are open. Pure: time comes with each call.
#[derive(Clone, Debug)]
pub struct Windows<V> {
    spec: WindowSpec,
    panes: BTreeMap<i64, V>,
    /// Windows that end up to here have closed; none did that ends before `first_end_us`.
    closed_us: i64,
    first_end_us: i64,
    late: u64,
    early: u64,
}

impl<V: Aggregate> Windows<V> {
    /// Windows of which the first to close begins at or after `begun_us`: those before would be incomplete.
    ///
    /// # Panics
    /// There are no such windows: see [`WindowSpec::holds`].
    #[must_use]
    pub fn new(spec: WindowSpec, begun_us: i64) -> Self {
        assert!(spec.holds(), "no such windows: {spec:?}");
        let first_pane = spec.pane_of(begun_us.saturating_add(spec.slide_us - 1));
        let first_end_us = first_pane.saturating_add(spec.size_us);
        let closed_us = first_end_us.saturating_sub(spec.slide_us);
        Self { spec, panes: BTreeMap::new(), closed_us, first_end_us, late: 0, early: 0 }
    }

    /// The pane of an event, to add it to; `None` for one that is in no open window.
    pub fn at(&mut self, ts_us: i64) -> Option<&mut V> {
        let WindowSpec { size_us, slide_us, grace_us } = self.spec;
        let pane = self.spec.pane_of(ts_us);
        let over = pane.saturating_add(size_us) <= self.closed_us;
        if over || pane.saturating_add(slide_us).max(self.first_end_us) <= self.closed_us {
            self.late += 1;
        }
        if over {
            return None;
        }
        if pane > self.closed_us.saturating_add(2 * size_us).saturating_add(grace_us) {
            self.early += 1;
            return None;
        }
        Some(self.panes.entry(pane).or_default())
    }

    /// Closes the windows that end at or before `watermark_us`, the oldest first.
    pub fn advance(&mut self, watermark_us: i64) -> Vec<Closed<V>> {
        let WindowSpec { size_us, slide_us, .. } = self.spec;
        let until_us = self.spec.pane_of(watermark_us);
        let oldest_us = until_us.saturating_sub(CLOSED_AT_ONCE_MAX * slide_us);
        self.closed_us = self.closed_us.max(oldest_us);
        let mut closed = Vec::new();
        while self.closed_us < until_us {
            let end_us = self.closed_us + slide_us;
            let start_us = end_us - size_us;
            let mut value = V::default();
            for part in self.panes.range(start_us..end_us).map(|(_, part)| part) {
                value.merge(part);
            }
            closed.push(Closed { start_us, end_us, value });
            self.closed_us = end_us;
        }
        // The next window begins one slide after the last one did.
        self.panes = self.panes.split_off(&(self.closed_us + slide_us - size_us));
        closed
    }

    /// Events that came after a window of theirs had closed.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Events that were too far ahead.
    #[must_use]
    pub fn early(&self) -> u64 {
        self.early
    }
}

/// What a person writes to have a [`WindowStage`].
#[allow(async_fn_in_trait)] // as for a stage
pub trait Windowed: 'static {
    /// What it receives.
    type Message: Message;
    /// What it gathers.
    type Value: Aggregate + 'static;

    /// Adds the events of `message` to the windows at their times.
    fn gather(&mut self, message: &Self::Message, windows: &mut Windows<Self::Value>);

    /// Takes a window that is complete.
    ///
    /// # Errors
    /// As [`Stage::receive`].
    async fn close(&mut self, window: Closed<Self::Value>) -> Result<(), Exit>;

    /// As [`Stage::observe`]: beside the events that were late and early.
    fn observe(&self) -> Vec<Counter> {
        Vec::new()
    }
}

/// The stage: gathers as messages come, closes as time goes by. Its spec needs a tick, which is how exact the moment is.
pub struct WindowStage<W: Windowed> {
    work: W,
    windows: Windows<W::Value>,
    grace_us: i64,
    now_us: fn() -> i64,
}

impl<W: Windowed> WindowStage<W> {
    /// A stage whose first window begins now.
    #[must_use]
    pub fn new(spec: WindowSpec, work: W) -> Self {
        Self::with_clock(spec, work, clock::wall_us)
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(spec: WindowSpec, work: W, now_us: fn() -> i64) -> Self {
        Self { work, windows: Windows::new(spec, now_us()), grace_us: spec.grace_us, now_us }
    }
}

impl<W: Windowed> Stage for WindowStage<W> {
    type Message = W::Message;

    async fn receive(&mut self, message: W::Message) -> Result<(), Exit> {
        self.work.gather(&message, &mut self.windows);
        Ok(())
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        for window in self.windows.advance((self.now_us)().saturating_sub(self.grace_us)) {
            self.work.close(window).await?;
        }
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        let mut counters = self.work.observe();
        counters.push(Counter { name: "late_events", value: self.windows.late() });
        counters.push(Counter { name: "early_events", value: self.windows.early() });
        counters
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn add(windows: &mut Windows<u64>, ts_us: i64) -> bool {
        windows.at(ts_us).map(|count| *count += 1).is_some()
    }

    fn values(closed: Vec<Closed<u64>>) -> Vec<(i64, i64, u64)> {
        closed.into_iter().map(|window| (window.start_us, window.end_us, window.value)).collect()
    }

    #[test]
    fn tumbling_windows_lie_side_by_side() {
        let mut windows = Windows::<u64>::new(WindowSpec::tumbling(10, 0), 0);
        for ts_us in [0, 9, 10, 25] {
            assert!(add(&mut windows, ts_us));
        }
        assert_eq!(values(windows.advance(9)), []);
        assert_eq!(values(windows.advance(20)), [(0, 10, 2), (10, 20, 1)]);
        assert_eq!(values(windows.advance(30)), [(20, 30, 1)]);
        assert!(windows.panes.is_empty());
    }

    #[test]
    fn an_event_is_in_every_sliding_window_over_it() {
        let mut windows = Windows::<u64>::new(WindowSpec::sliding(30, 10, 0), 0);
        add(&mut windows, 25);
        assert_eq!(values(windows.advance(60)), [(0, 30, 1), (10, 40, 1), (20, 50, 1), (30, 60, 0)]);
    }

    #[test]
    fn no_window_closes_that_began_before_the_beginning() {
        let mut windows = Windows::<u64>::new(WindowSpec::sliding(20, 10, 0), 15);
        assert!(!add(&mut windows, 16) && add(&mut windows, 25));
        assert_eq!(windows.late(), 1, "what was before the beginning");
        assert_eq!(values(windows.advance(50)), [(20, 40, 1), (30, 50, 0)]);
    }

    #[test]
    fn who_comes_late_is_counted_and_in_what_is_still_open() {
        let mut windows = Windows::<u64>::new(WindowSpec::sliding(20, 10, 0), 0);
        assert_eq!(values(windows.advance(20)), [(0, 20, 0)]);
        assert!(add(&mut windows, 15), "the window from 10 to 30 is open");
        assert!(!add(&mut windows, 5));
        assert_eq!(windows.late(), 2);
        assert_eq!(values(windows.advance(30)), [(10, 30, 1)]);
    }

    #[test]
    fn who_is_far_ahead_is_counted_and_takes_no_memory() {
        let mut windows = Windows::<u64>::new(WindowSpec::tumbling(10, 5), 0);
        for ts_us in [40, 1_000, i64::MAX, i64::MIN] {
            assert!(!add(&mut windows, ts_us));
        }
        assert_eq!((windows.early(), windows.late(), windows.panes.len()), (3, 1, 0));
    }

    #[test]
    fn after_a_long_sleep_the_newest_windows_close() {
        let mut windows = Windows::<u64>::new(WindowSpec::tumbling(10, 0), 0);
        let closed = windows.advance(1_000_000);
        assert_eq!(closed.len(), 1000);
        assert_eq!(closed.last().map(|window| window.end_us), Some(1_000_000));
    }

    proptest! {
        /// Against the plainest of means: every window holds exactly the events in it that came before it closed.
        #[test]
        fn windows_hold_what_came_in_time(
            panes in 1_i64..5,
            slide in 1_i64..8,
            steps in proptest::collection::vec((0_i64..6, -40_i64..20), 1..200),
        ) {
            let spec = WindowSpec::sliding(panes * slide, slide, 0);
            let (mut windows, mut now) = (Windows::<u64>::new(spec, 0), 0);
            let (mut came, mut closed) = (Vec::new(), Vec::new());
            for (passes, offset) in steps {
                now += passes;
                for window in windows.advance(now) {
                    let within = |ts: &&i64| (window.start_us..window.end_us).contains(*ts);
                    prop_assert_eq!(window.value, came.iter().filter(within).count() as u64);
                    closed.push(window.end_us);
                }
                let ts = now + offset;
                if add(&mut windows, ts) {
                    came.push(ts);
                }
                prop_assert!(windows.panes.len() as i64 <= 3 * panes + 3);
            }
            prop_assert!(closed.windows(2).all(|pair| pair[1] == pair[0] + slide));
            prop_assert!(closed.first().is_none_or(|first| *first == panes * slide));
        }
    }
}
