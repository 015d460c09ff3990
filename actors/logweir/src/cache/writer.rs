//! Stage cache-writer: feeds the hot cache. It may lose data; it must not cause delays.
//!
//! - Nothing waits for it: the batcher sends batches with `try_send` and counts those that do not fit.
//! - Only durable batches are applied. When a frame is rolled back (the disk was full), its sequence number is reused:
//!   the cache, having seen the first frame, would reject the second. A frame lost in a crash would be in the cache
//!   only.
//! - Rendering a record for the recent records costs as much as all other processing of it, so the number per second is
//!   limited: at a higher rate only the latest records of each batch are rendered and the others are counted as
//!   skipped. Counters always count everything.
//! - A batch is tried once. Batches that the cache rejects are discarded and counted by reason; the database has them.

use std::sync::Arc;

use logweir_engine::drain::Phase;
use logweir_engine::fault::kill_point;
use logweir_engine::journal::Journal;
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use tokio::time::Instant;

use super::hot_cache::{CacheError, HotCache, Origin};
use crate::limits::breaker::{self, Allow, Breaker, BreakerSettings, BreakerState};
use crate::limits::rate_limit::RateLimiter;
use crate::progress::Progress;
use logweir_store::Batch;

/// Name of the component in metrics.
const NAME: &str = "cache-writer";

/// Three timeouts are conclusive; after that one batch, at most every half minute, probes the cache.
const BREAKER: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 1_000, open_ms_max: 30_000 };

/// The stage.
pub struct CacheWriter {
    context: StageContext,
    journal: Journal,
    progress: Progress,
    feed: CacheFeed,
}

impl CacheWriter {
    /// A stage that applies the batches of `origin` to `cache` once `journal` has them on disk.
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
        // A failed journal ends the process elsewhere; here the batch is merely not cached.
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
    rate_limiter: RateLimiter,
    applied_batches: u64,
    applied_records: u64,
    discarded_records: u64,
}

impl CacheFeed {
    /// A feed with a closed breaker that renders at most `recent_records_per_s` recent records per second.
    #[must_use]
    pub fn new(cache: Arc<dyn HotCache>, origin: Origin, recent_records_per_s: usize) -> Self {
        let breaker = Breaker::new(BREAKER);
        breaker::publish(NAME, breaker.state());
        let rate_limiter = RateLimiter::new(recent_records_per_s, Instant::now());
        Self { cache, origin, breaker, rate_limiter, applied_batches: 0, applied_records: 0, discarded_records: 0 }
    }

    /// Applies `batch` if the breaker allows it and the cache accepts it.
    pub async fn apply(&mut self, batch: &Batch) {
        let started = Instant::now();
        if let Allow::No { .. } = self.breaker.allow(started) {
            self.discard(batch, "breaker_open");
            return;
        }
        let recent_max = self.rate_limiter.available(started);
        let outcome = self.cache.apply_within(self.origin, batch, recent_max).await;
        metrics::histogram!("logweir_cache_apply_seconds").record(started.elapsed().as_secs_f64());
        match outcome {
            Ok(recent) => {
                self.rate_limiter.take(recent);
                if recent == recent_max {
                    let skipped = batch.records().saturating_sub(recent as u64);
                    metrics::counter!("logweir_cache_recent_skipped_records_total").increment(skipped);
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

    /// Returns whether the last batch that was tried failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.breaker.snapshot(Instant::now()).failures > 0
    }

    /// Counters for operators.
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
            tracing::info!(cache = self.cache.name(), "the cache accepts batches again");
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
                "cannot write to the cache: batches are not cached until it recovers; the database is not affected"
            );
        }
        self.discard(batch, error.reason);
    }
}
