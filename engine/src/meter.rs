//! Counters that are read here and exported through the `metrics` facade, and the metrics of one mailbox.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::Label;

/// Why a message left its mailbox without being handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Discard {
    /// Its handler panicked.
    Panic,
    /// Its handler made no progress for too long and was canceled.
    Stall,
    /// Its stage has stopped.
    Stopped,
}

impl Discard {
    pub(crate) const ALL: [Self; 3] = [Self::Panic, Self::Stall, Self::Stopped];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Stall => "stall",
            Self::Stopped => "stopped",
        }
    }
}

/// Labels that every metric of a stage and of its mailbox carries.
pub(crate) fn labels(pipeline: &str, stage: &str) -> Vec<Label> {
    vec![Label::new("pipeline", pipeline.to_owned()), Label::new("stage", stage.to_owned())]
}

/// Metrics of one mailbox.
pub(crate) struct MailboxMeter {
    pub(crate) rejected: Count,
    pub(crate) waited: DurationSum,
    pub(crate) discards: [Count; Discard::ALL.len()],
    depth_messages: metrics::Gauge,
    depth_bytes: metrics::Gauge,
}

impl MailboxMeter {
    pub(crate) fn new(pipeline: &str, stage: &str, messages_max: usize, bytes_max: usize) -> Self {
        let labels = labels(pipeline, stage);
        metrics::gauge!("logweir_mailbox_capacity_messages", labels.clone()).set(messages_max as f64);
        metrics::gauge!("logweir_mailbox_capacity_bytes", labels.clone()).set(bytes_max as f64);
        let discards = Discard::ALL.map(|reason| {
            let labels = labels.iter().cloned().chain([Label::new("reason", reason.label())]);
            Count::new(metrics::counter!("logweir_mailbox_discarded_total", labels.collect::<Vec<_>>()))
        });
        Self {
            rejected: Count::new(metrics::counter!("logweir_mailbox_full_total", labels.clone())),
            waited: DurationSum::new(metrics::counter!("logweir_mailbox_wait_seconds_total", labels.clone())),
            discards,
            depth_messages: metrics::gauge!("logweir_mailbox_depth_messages", labels.clone()),
            depth_bytes: metrics::gauge!("logweir_mailbox_depth_bytes", labels),
        }
    }

    pub(crate) fn depth_grew(&self, messages: usize, bytes: usize) {
        // Increments commute, so the gauge ends at the right depth without a lock.
        self.depth_messages.increment(messages as f64);
        self.depth_bytes.increment(bytes as f64);
    }

    pub(crate) fn depth_shrank(&self, messages: usize, bytes: usize) {
        self.depth_messages.decrement(messages as f64);
        self.depth_bytes.decrement(bytes as f64);
    }

    pub(crate) fn discarded(&self, reason: u8) {
        self.discards[usize::from(reason)].add(1);
    }
}

/// A counter that can be read here and is exported through the `metrics` facade.
pub(crate) struct Count {
    total: AtomicU64,
    exported: metrics::Counter,
}

impl Count {
    pub(crate) fn new(exported: metrics::Counter) -> Self {
        Self { total: AtomicU64::new(0), exported }
    }

    pub(crate) fn add(&self, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
        self.exported.increment(count);
    }

    pub(crate) fn get(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// A sum of durations. The facade's counters are integers, so the exported one advances by whole seconds; the exact sum
/// is in the [`Observation`](crate::observe::Observation).
pub(crate) struct DurationSum {
    nanos: AtomicU64,
    exported: metrics::Counter,
}

impl DurationSum {
    const NANOS: u64 = 1_000_000_000;

    pub(crate) fn new(exported: metrics::Counter) -> Self {
        Self { nanos: AtomicU64::new(0), exported }
    }

    pub(crate) fn add(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let before = self.nanos.fetch_add(nanos, Ordering::Relaxed);
        let whole = before.wrapping_add(nanos) / Self::NANOS - before / Self::NANOS;
        if whole > 0 {
            self.exported.increment(whole);
        }
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}
