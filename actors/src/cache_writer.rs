//! Stage cache-writer: feeds the hot cache. It may lose, it may not delay.
//!
//! - Nothing waits for it: the batcher hands batches over with `try_send` and counts those that find no room.
//! - Only durable batches are applied. A frame that a crash takes back has its sequence number used again, and
//!   the cache, which saw the first, would refuse the second.
//! - Rendering a record for the windows costs as much as all that the rest of the way does with it, so only so many a
//!   second are: at a higher rate the newest of each batch, counted as left out. Counters always count everything.
//! - A batch is tried once. What the cache refuses is discarded and counted with its reason; the database has it.

use std::sync::Arc;

use logweir_engine::drain::Phase;
use logweir_engine::fault::kill_point;
use logweir_engine::journal::Journal;
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use tokio::time::Instant;

use crate::breaker::{self, Allow, Breaker, BreakerSettings, BreakerState};
use crate::cache::{CacheError, HotCache, Origin};
use crate::message::Batch;
use crate::progress::Progress;
use crate::rate_limit::RateLimiter;

/// The component's name in metrics.
const NAME: &str = "cache-writer";

/// Three timeouts are enough to know; after that one batch in at most half a minute finds out.
const BREAKER: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 1_000, open_ms_max: 30_000 };

/// The stage.
pub struct CacheWriter {
    context: StageContext,
    journal: Journal,
    progress: Progress,
    feed: CacheFeed,
}

impl CacheWriter {
    /// Feeds `cache` with the batches of `origin`, once `journal` has them on disk.
    #[must_use]
    pub fn new(
        context: StageContext,
        journal: Journal,
        progress: Progress,
        cache: Arc<dyn HotCache>,
        origin: Origin,
        recent_records_per_s: usize,
    ) -> Self {
        let feed = CacheFeed::new(cache, origin, recent_records_per_s);
        progress.breaker_state(NAME, feed.breaker.state());
        Self { context, journal, progress, feed }
    }

    /// A drain waits for at most one batch that fails.
    fn gives_up(&self) -> bool {
        self.feed.is_failing() && self.context.drain.phase() >= Phase::Draining
    }
}

impl Stage for CacheWriter {
    type Message = Batch;

    async fn receive(&mut self, batch: Batch) -> Result<(), Exit> {
        kill_point("stage.cache_writer");
        if self.gives_up() {
            self.feed.discard(&batch, "shutdown");
            return Ok(());
        }
        // A journal that has failed ends the process elsewhere; here the batch is only not worth caching.
        if !self.context.waiting(batch.is_durable(&self.journal)).await {
            self.feed.discard(&batch, "not_durable");
            return Ok(());
        }
        self.context.waiting(self.feed.apply(&batch)).await;
        self.progress.breaker_state(NAME, self.feed.breaker.state());
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        self.feed.observe()
    }
}

/// Applies batches to a cache behind a breaker, or discards and counts them.
pub struct CacheFeed {
    cache: Arc<dyn HotCache>,
    origin: Origin,
    breaker: Breaker,
    allowance: RateLimiter,
    applied_batches: u64,
    applied_records: u64,
    discarded_records: u64,
}

impl CacheFeed {
    /// A feed whose breaker is closed, with so many records a second for the windows.
    #[must_use]
    pub fn new(cache: Arc<dyn HotCache>, origin: Origin, recent_records_per_s: usize) -> Self {
        let breaker = Breaker::new(BREAKER);
        breaker::publish(NAME, breaker.state());
        let allowance = RateLimiter::new(recent_records_per_s, Instant::now());
        Self { cache, origin, breaker, allowance, applied_batches: 0, applied_records: 0, discarded_records: 0 }
    }

    /// Applies `batch` if the breaker lets it and the cache takes it.
    pub async fn apply(&mut self, batch: &Batch) {
        let started = Instant::now();
        if let Allow::No { .. } = self.breaker.allow(started) {
            self.discard(batch, "breaker_open");
            return;
        }
        let recent_max = self.allowance.at(started);
        let outcome = self.cache.apply_within(self.origin, batch, recent_max).await;
        metrics::histogram!("logweir_cache_apply_seconds").record(started.elapsed().as_secs_f64());
        match outcome {
            Ok(recent) => {
                self.allowance.spend(recent);
                if recent == recent_max {
                    let left_out = batch.records().saturating_sub(recent as u64);
                    metrics::counter!("logweir_cache_recent_skipped_records_total").increment(left_out);
                }
                self.succeeded(batch);
            }
            Err(error) => self.failed(batch, &error),
        }
        breaker::publish(NAME, self.breaker.state());
    }

    /// Counts `batch` as discarded for `reason`.
    pub fn discard(&mut self, batch: &Batch, reason: &'static str) {
        self.discarded_records += batch.records();
        metrics::counter!(
            "logweir_discarded_records_total", "component" => NAME, "reason" => reason, "intentional" => "true"
        )
        .increment(batch.records());
    }

    /// Whether the last batch that was tried failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.breaker.snapshot(Instant::now()).failures > 0
    }

    /// What operators see of it.
    #[must_use]
    pub fn observe(&self) -> Vec<Counter> {
        let breaker = self.breaker.snapshot(Instant::now());
        vec![
            Counter { name: "applied_batches", value: self.applied_batches },
            Counter { name: "applied_records", value: self.applied_records },
            Counter { name: "discarded_records", value: self.discarded_records },
            Counter { name: "breaker_state", value: breaker.state as u64 },
            Counter { name: "breaker_opened", value: breaker.opened },
        ]
    }

    fn succeeded(&mut self, batch: &Batch) {
        if self.breaker.state() != BreakerState::Closed {
            tracing::info!(cache = self.cache.name(), "the cache takes batches again");
        }
        self.breaker.succeeded(Instant::now());
        self.applied_batches += 1;
        self.applied_records += batch.records();
        metrics::counter!("logweir_cache_applied_records_total").increment(batch.records());
    }

    fn failed(&mut self, batch: &Batch, error: &CacheError) {
        let before = self.breaker.state();
        self.breaker.failed(Instant::now());
        if before == BreakerState::Closed && self.breaker.state() == BreakerState::Open {
            tracing::warn!(
                cache = self.cache.name(),
                error = error.detail,
                "the cache refuses batches: they are left out of it until it answers; the database is not affected"
            );
        }
        self.discard(batch, error.reason);
    }
}
