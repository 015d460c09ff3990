//! Tumbling and sliding windows over event time.
//!
//! - Time is divided into *panes* as long as the slide; a window consists of `size / slide` panes, a tumbling window of
//!   one. An event costs one addition, however many windows contain it.
//! - A window closes when the watermark passes its end. The watermark of a [`WindowStage`] is the time minus a grace
//!   period. The latest event time, which other engines use, was rejected: one sender whose clock is ahead would make
//!   the events of all others late.
//! - The time is [`SteadyTime`]: a wall clock that goes ahead and comes back would otherwise close windows that have not
//!   been, and blind the stage until that time. When the clock was set for good, the windows start over there.
//! - An event that arrives after one of its windows has closed is *late*: it is counted, and added to those of its
//!   windows that are still open. An event further ahead of the watermark than a window plus the grace period is
//!   *early*: it is counted and dropped, which bounds the number of panes.

use std::collections::BTreeMap;

use crate::clock::{Clock, Reading, SteadyTime, SystemClock};
use crate::mailbox::Message;
use crate::stage::{Counter, Exit, Stage};

/// Maximum number of windows that one call closes: after a longer pause the oldest ones are skipped.
const CLOSED_AT_ONCE_MAX: i64 = 1000;

/// Size, slide and grace period of the windows, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// Length of a window.
    pub size_us: i64,
    /// Distance between the starts of two consecutive windows; equal to the size for tumbling windows.
    pub slide_us: i64,
    /// How long after its end a window stays open for late events.
    pub grace_us: i64,
}

impl WindowSpec {
    /// Returns adjacent windows of `size_us`.
    #[must_use]
    pub fn tumbling(size_us: i64, grace_us: i64) -> Self {
        Self { size_us, slide_us: size_us, grace_us }
    }

    /// Returns windows of `size_us` that start every `slide_us`.
    #[must_use]
    pub fn sliding(size_us: i64, slide_us: i64, grace_us: i64) -> Self {
        Self { size_us, slide_us, grace_us }
    }

    /// Whether the slide is positive, the size a multiple of the slide, and the grace period not negative.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.slide_us > 0 && self.size_us >= self.slide_us && self.size_us % self.slide_us == 0 && self.grace_us >= 0
    }

    fn pane_of(&self, ts_us: i64) -> i64 {
        ts_us.div_euclid(self.slide_us).saturating_mul(self.slide_us)
    }
}

/// The aggregate of a window.
pub trait Aggregate: Default {
    /// Merges the aggregate of another part of the same window.
    fn merge(&mut self, other: &Self);
}

impl Aggregate for u64 {
    fn merge(&mut self, other: &Self) {
        *self += other;
    }
}

/// A closed window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedWindow<V> {
    /// Start, inclusive.
    pub start_us: i64,
    /// End, exclusive.
    pub end_us: i64,
    /// The aggregate.
    pub value: V,
}

/// The open windows. Pure: the time is passed with each call.
#[derive(Clone, Debug)]
pub struct Windows<V> {
    spec: WindowSpec,
    panes: BTreeMap<i64, V>,
    /// Windows that end up to here have closed, from `first_end_us` on.
    closed_us: i64,
    first_end_us: i64,
    late: u64,
    early: u64,
}

impl<V: Aggregate> Windows<V> {
    /// Creates the windows; the first one starts at or after `start_us`, since earlier ones would be incomplete.
    ///
    /// # Panics
    /// If `spec` is invalid: see [`WindowSpec::is_valid`].
    #[must_use]
    pub fn new(spec: WindowSpec, start_us: i64) -> Self {
        assert!(spec.is_valid(), "invalid window spec: {spec:?}");
        let mut windows = Self { spec, panes: BTreeMap::new(), closed_us: 0, first_end_us: 0, late: 0, early: 0 };
        windows.restart(start_us);
        windows
    }

    /// Starts over at `start_us`, as [`Windows::new`]: the clock was set. Events of the time before are dropped.
    pub fn restart(&mut self, start_us: i64) {
        let WindowSpec { size_us, slide_us, .. } = self.spec;
        self.panes.clear();
        self.first_end_us = self.spec.pane_of(start_us.saturating_add(slide_us - 1)).saturating_add(size_us);
        self.closed_us = self.first_end_us.saturating_sub(slide_us);
    }

    /// Returns the aggregate of the event's pane, to add the event to; `None` if the event is in no open window.
    pub fn pane_mut(&mut self, ts_us: i64) -> Option<&mut V> {
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

    /// Closes the windows that end at or before `watermark_us` and returns them, oldest first. At most 1000 per call:
    /// older ones are skipped, with the events in them.
    pub fn advance(&mut self, watermark_us: i64) -> Vec<ClosedWindow<V>> {
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
            closed.push(ClosedWindow { start_us, end_us, value });
            self.closed_us = end_us;
        }
        // The next window starts one slide after the previous one.
        self.panes = self.panes.split_off(&(self.closed_us + slide_us - size_us));
        closed
    }

    /// Number of late events: a window that contains them had closed.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Number of early events: they were too far ahead of the watermark.
    #[must_use]
    pub fn early(&self) -> u64 {
        self.early
    }
}

/// The user's side of a [`WindowStage`].
#[allow(async_fn_in_trait)] // see `Stage`
pub trait WindowHandler: 'static {
    /// The message type of the stage's mailbox.
    type Message: Message;
    /// The aggregate of a window.
    type Value: Aggregate + 'static;

    /// Adds the events of `message` to their windows.
    fn aggregate(&mut self, message: &Self::Message, windows: &mut Windows<Self::Value>);

    /// Called with each closed window, oldest first.
    ///
    /// # Errors
    /// See [`Stage::receive`].
    async fn close(&mut self, window: ClosedWindow<Self::Value>) -> Result<(), Exit>;

    /// See [`Stage::observe`]; returned in addition to the counters `late_events` and `early_events`.
    fn observe(&self) -> Vec<Counter> {
        Vec::new()
    }
}

/// A stage that aggregates messages into windows. Its spec needs a tick; the tick's interval is the precision of the
/// closing time.
pub struct WindowStage<W: WindowHandler, C = SystemClock> {
    work: W,
    windows: Windows<W::Value>,
    grace_us: i64,
    clock: C,
    time: SteadyTime,
}

impl<W: WindowHandler> WindowStage<W> {
    /// Creates a stage whose first window starts now.
    ///
    /// # Panics
    /// If `spec` is invalid: see [`WindowSpec::is_valid`].
    #[must_use]
    pub fn new(spec: WindowSpec, work: W) -> Self {
        Self::with_clock(spec, work, SystemClock)
    }
}

impl<W: WindowHandler, C: Clock> WindowStage<W, C> {
    /// Creates a stage with another clock.
    ///
    /// # Panics
    /// If `spec` is invalid: see [`WindowSpec::is_valid`].
    #[must_use]
    pub fn with_clock(spec: WindowSpec, work: W, clock: C) -> Self {
        let (wall, now) = (clock.wall(), clock.monotonic());
        let windows = Windows::new(spec, wall.us());
        Self { work, windows, grace_us: spec.grace_us, clock, time: SteadyTime::new(wall, now) }
    }
}

impl<W: WindowHandler, C: Clock> Stage for WindowStage<W, C> {
    type Message = W::Message;

    async fn receive(&mut self, message: W::Message) -> Result<(), Exit> {
        self.work.aggregate(&message, &mut self.windows);
        Ok(())
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        match self.time.read(self.clock.wall(), self.clock.monotonic()) {
            Reading::Passed(now_us) => {
                for window in self.windows.advance(now_us.saturating_sub(self.grace_us)) {
                    self.work.close(window).await?;
                }
            }
            Reading::Set(now_us) => {
                tracing::warn!("the system's clock was set; windows start over at the new time");
                self.windows.restart(now_us);
            }
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
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::clock::WallTime;

    fn add(windows: &mut Windows<u64>, ts_us: i64) -> bool {
        windows.pane_mut(ts_us).map(|count| *count += 1).is_some()
    }

    fn values(closed: Vec<ClosedWindow<u64>>) -> Vec<(i64, i64, u64)> {
        closed.into_iter().map(|window| (window.start_us, window.end_us, window.value)).collect()
    }

    #[test]
    fn tumbling_windows_are_adjacent() {
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
    fn an_event_is_in_every_sliding_window_that_contains_it() {
        let mut windows = Windows::<u64>::new(WindowSpec::sliding(30, 10, 0), 0);
        add(&mut windows, 25);
        assert_eq!(values(windows.advance(60)), [(0, 30, 1), (10, 40, 1), (20, 50, 1), (30, 60, 0)]);
    }

    #[test]
    fn windows_that_started_before_the_stage_do_not_close() {
        let mut windows = Windows::<u64>::new(WindowSpec::sliding(20, 10, 0), 15);
        assert!(!add(&mut windows, 16) && add(&mut windows, 25));
        assert_eq!(windows.late(), 1, "before the first window");
        assert_eq!(values(windows.advance(50)), [(20, 40, 1), (30, 50, 0)]);
    }

    #[test]
    fn a_late_event_is_counted_and_added_to_the_windows_still_open() {
        let mut windows = Windows::<u64>::new(WindowSpec::sliding(20, 10, 0), 0);
        assert_eq!(values(windows.advance(20)), [(0, 20, 0)]);
        assert!(add(&mut windows, 15), "the window from 10 to 30 is open");
        assert!(!add(&mut windows, 5));
        assert_eq!(windows.late(), 2);
        assert_eq!(values(windows.advance(30)), [(10, 30, 1)]);
    }

    #[test]
    fn an_early_event_is_counted_and_takes_no_memory() {
        let mut windows = Windows::<u64>::new(WindowSpec::tumbling(10, 5), 0);
        for ts_us in [40, 1_000, i64::MAX, i64::MIN] {
            assert!(!add(&mut windows, ts_us));
        }
        assert_eq!((windows.early(), windows.late(), windows.panes.len()), (3, 1, 0));
    }

    #[test]
    fn after_a_long_pause_the_latest_windows_close() {
        let mut windows = Windows::<u64>::new(WindowSpec::tumbling(10, 0), 0);
        let closed = windows.advance(1_000_000);
        assert_eq!(closed.len(), 1000);
        assert_eq!(closed.last().map(|window| window.end_us), Some(1_000_000));
    }

    #[test]
    fn windows_that_start_over_close_at_the_new_time_in_both_directions() {
        let mut windows = Windows::<u64>::new(WindowSpec::tumbling(10, 0), 1_000);
        assert!(add(&mut windows, 1_005));
        windows.restart(95);
        assert!(!add(&mut windows, 99), "before the first complete window");
        assert!(add(&mut windows, 101));
        assert_eq!(values(windows.advance(110)), [(100, 110, 1)]);
        windows.restart(5_000);
        assert!(add(&mut windows, 5_001));
        assert_eq!(values(windows.advance(5_010)), [(5_000, 5_010, 1)]);
    }

    /// Clocks that a test sets.
    #[derive(Clone)]
    struct Set(Rc<Cell<(i64, Instant)>>);

    impl Clock for Set {
        fn wall(&self) -> WallTime {
            WallTime::from_us(self.0.get().0)
        }

        fn monotonic(&self) -> Instant {
            self.0.get().1
        }
    }

    struct Event(i64);

    impl Message for Event {
        fn bytes(&self) -> usize {
            8
        }
    }

    /// Keeps the counts of the closed windows that had events.
    #[derive(Default)]
    struct Closed(Rc<Cell<u64>>);

    impl WindowHandler for Closed {
        type Message = Event;
        type Value = u64;

        fn aggregate(&mut self, event: &Event, windows: &mut Windows<u64>) {
            if let Some(count) = windows.pane_mut(event.0) {
                *count += 1;
            }
        }

        async fn close(&mut self, window: ClosedWindow<u64>) -> Result<(), Exit> {
            self.0.set(self.0.get() + window.value);
            Ok(())
        }
    }

    /// Runs a stage with an event of the current wall time in each second. Returns how many were in closed windows.
    async fn count_events(deviations_us: impl Iterator<Item = i64>) -> u64 {
        const START_US: i64 = 1_800_000_000_000_000;
        let start = Instant::now();
        let clock = Set(Rc::new(Cell::new((START_US, start))));
        let counted = Rc::new(Cell::new(0));
        let spec = WindowSpec::tumbling(5_000_000, 1_000_000);
        let mut stage = WindowStage::with_clock(spec, Closed(counted.clone()), clock.clone());
        for (second, deviation_us) in (1..).zip(deviations_us) {
            let wall_us = START_US + second * 1_000_000 + deviation_us;
            clock.0.set((wall_us, start + Duration::from_secs(second.unsigned_abs())));
            stage.on_tick().await.unwrap();
            stage.receive(Event(wall_us)).await.unwrap();
        }
        counted.get()
    }

    #[tokio::test]
    async fn a_clock_that_goes_ahead_and_back_blinds_for_that_time_only() {
        let day_us = 86_400_000_000;
        let jump = |second| if (100..103).contains(&second) { day_us } else { 0 };
        assert!(count_events((0..300).map(jump)).await >= 300 - 3 - 10);
        // For good: believed after a minute.
        for set_us in [day_us, -day_us] {
            let jump = |second| if second >= 100 { set_us } else { 0 };
            assert!(count_events((0..300).map(jump)).await >= 300 - 60 - 20);
        }
        // For some minutes: the same twice.
        let jump = |second| if (100..300).contains(&second) { day_us } else { 0 };
        assert!(count_events((0..500).map(jump)).await >= 500 - 2 * (60 + 20));
    }

    proptest! {
        /// Compared with a brute-force model: every window holds exactly its events that arrived before it closed.
        #[test]
        fn windows_hold_the_events_that_arrived_in_time(
            panes in 1_i64..5,
            slide in 1_i64..8,
            steps in proptest::collection::vec((0_i64..6, -40_i64..20), 1..200),
        ) {
            let spec = WindowSpec::sliding(panes * slide, slide, 0);
            let (mut windows, mut now) = (Windows::<u64>::new(spec, 0), 0);
            let (mut arrived, mut closed) = (Vec::new(), Vec::new());
            for (passes, offset) in steps {
                now += passes;
                for window in windows.advance(now) {
                    let within = |ts: &&i64| (window.start_us..window.end_us).contains(*ts);
                    prop_assert_eq!(window.value, arrived.iter().filter(within).count() as u64);
                    closed.push(window.end_us);
                }
                let ts = now + offset;
                if add(&mut windows, ts) {
                    arrived.push(ts);
                }
                prop_assert!(windows.panes.len() as i64 <= 3 * panes + 3);
            }
            prop_assert!(closed.windows(2).all(|pair| pair[1] == pair[0] + slide));
            prop_assert!(closed.first().is_none_or(|first| *first == panes * slide));
        }
    }
}
