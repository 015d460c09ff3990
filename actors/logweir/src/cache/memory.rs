//! The in-process cache, for a single process without Redis.
//!
//! - Bounded in three ways: records per service, services, and total bytes. Above the byte bound the largest service
//!   drops its older half, so a noisy service never evicts quiet ones.
//! - Empty after a restart, and so are its cursors: nothing doubles.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use logweir_engine::clock;
use logweir_engine::journal::LaneId;
use uuid::Uuid;

use super::hot_cache::{CacheError, HotCache, Origin, RecentRecord};
use super::render;
use super::update::{CacheUpdate, HOUR_US, Limits, MINUTE_US, ServiceUpdate};
use crate::config;
use logweir_store::Batch;

/// Maximum size of the records and counters of this cache; part of the memory bound logged at startup.
pub const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Overhead of a record besides its text, and of a counter: the entry and its share of the container.
const ENTRY_BYTES: usize = 48;

/// Recent records and counters in this process.
pub struct MemoryCache {
    limits: Limits,
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// One entry per lane of this process's writer.
    cursors: HashMap<(Uuid, LaneId), u64>,
    services: HashMap<Box<str>, Service>,
    bytes: usize,
}

#[derive(Default)]
struct Service {
    seen_us: i64,
    /// Latest first.
    recent: VecDeque<Box<str>>,
    /// By minute since 1970 and severity number.
    counts: BTreeMap<(i64, u8), u64>,
    bytes: usize,
}

impl MemoryCache {
    /// An empty cache with the limits of `settings` and [`BYTES_MAX`].
    #[must_use]
    pub fn new(settings: &config::Cache) -> Self {
        Self::with_bytes_max(settings, BYTES_MAX)
    }

    /// An empty cache of at most `bytes_max`.
    #[must_use]
    pub fn with_bytes_max(settings: &config::Cache, bytes_max: usize) -> Self {
        Self { limits: settings.into(), bytes_max, state: Mutex::default() }
    }

    /// Returns the current size of its records and counters, in bytes.
    #[cfg(feature = "server")]
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves a cache that at worst lacks records, which is allowed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hides a service whose time to live has passed at `now_us`, even if no batch has arrived to remove it.
    fn alive(&self, service: &Service, now_us: i64) -> bool {
        service.seen_us >= now_us - self.limits.ttl_us()
    }
}

#[async_trait]
impl HotCache for MemoryCache {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    async fn apply_within(&self, origin: Origin, batch: &Batch, recent_max: usize) -> Result<usize, CacheError> {
        let mut state = self.state();
        let cursor = state.cursors.entry((origin.writer, batch.lane)).or_default();
        let Some(update) = CacheUpdate::of(batch, *cursor, &self.limits, recent_max) else { return Ok(0) };
        *cursor = update.last_seq;
        for service in &update.services {
            state.add(origin, batch, service, &self.limits);
        }
        state.expire(update.received_us, &self.limits);
        state.shrink(self.limits.services_max, self.bytes_max);
        Ok(update.recent())
    }

    async fn cursors(&self, writer: Uuid) -> Result<HashMap<LaneId, u64>, CacheError> {
        let state = self.state();
        let ours = state.cursors.iter().filter(|((owner, _), _)| *owner == writer);
        Ok(ours.map(|(&(_, lane), &seq)| (lane, seq)).collect())
    }

    async fn recent(&self, service: &str, limit: usize) -> Result<Vec<RecentRecord>, CacheError> {
        let state = self.state();
        let service = state.services.get(service).filter(|service| self.alive(service, clock::wall_us()));
        Ok(service
            .map_or_else(Vec::new, |service| service.recent.iter().take(limit).map(|text| text.to_string()).collect()))
    }

    async fn services(&self) -> Result<Vec<String>, CacheError> {
        let now_us = clock::wall_us();
        let state = self.state();
        let mut services: Vec<_> = state.services.iter().filter(|(_, service)| self.alive(service, now_us)).collect();
        services.sort_unstable_by(|(a_name, a), (b_name, b)| (b.seen_us, b_name).cmp(&(a.seen_us, a_name)));
        Ok(services.into_iter().map(|(name, _)| name.to_string()).collect())
    }

    async fn volume(&self, service: &str, since_us: i64) -> Result<Vec<(i64, u8, u64)>, CacheError> {
        let oldest = self.limits.hours(clock::wall_us()).0 * 60;
        let since = since_us.div_euclid(MINUTE_US).max(oldest);
        let state = self.state();
        let Some(service) = state.services.get(service) else { return Ok(Vec::new()) };
        let counts = service.counts.range((since, 0)..);
        Ok(counts.map(|(&(minute, severity), &count)| (minute * MINUTE_US, severity, count)).collect())
    }

    async fn ping(&self) -> Result<(), CacheError> {
        Ok(())
    }
}

impl State {
    fn add(&mut self, origin: Origin, batch: &Batch, update: &ServiceUpdate<'_>, limits: &Limits) {
        let service = self.services.entry(update.name.into()).or_default();
        let before = service.bytes;
        service.seen_us = service.seen_us.max(update.seen_us);
        let mut text = Vec::new();
        for entry in update.latest.iter().rev() {
            let Some((record, location)) = entry.of(batch, origin.run) else { continue };
            text.clear();
            render::record(&mut text, &location, &record);
            service.push(std::str::from_utf8(&text).expect("JSON text is UTF-8").into());
        }
        while service.recent.len() > limits.recent_records {
            service.pop_oldest();
        }
        for (&minute, counts) in &update.minutes {
            for (severity, &count) in (0_u8..).zip(counts).filter(|(_, count)| **count > 0) {
                service.count(minute, severity, u64::from(count));
            }
        }
        self.bytes = self.bytes - before + service.bytes;
    }

    /// Removes services and counters whose time to live has passed.
    fn expire(&mut self, now_us: i64, limits: &Limits) {
        let oldest_us = now_us - limits.ttl_us();
        self.services.retain(|_, service| service.seen_us >= oldest_us);
        let oldest_minute = limits.hours(now_us).0 * (HOUR_US / MINUTE_US);
        for service in self.services.values_mut() {
            service.remove_minutes_before(oldest_minute);
        }
        self.bytes = self.services.values().map(|service| service.bytes).sum();
    }

    fn shrink(&mut self, services_max: usize, bytes_max: usize) {
        if let Some(surplus) = self.services.len().checked_sub(services_max).filter(|&surplus| surplus > 0) {
            let mut by_age: Vec<_> =
                self.services.iter().map(|(name, service)| (service.seen_us, name.clone())).collect();
            by_age.sort_unstable();
            for (_, name) in by_age.into_iter().take(surplus) {
                self.remove(&name);
            }
        }
        while self.bytes > bytes_max {
            let largest = self.services.iter_mut().max_by_key(|(_, service)| service.bytes);
            let Some((name, service)) = largest else { return };
            let before = service.bytes;
            service.halve();
            self.bytes -= before - service.bytes;
            if service.bytes == before {
                let name = name.clone();
                self.remove(&name);
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(service) = self.services.remove(name) {
            self.bytes -= service.bytes;
        }
    }
}

impl Service {
    fn push(&mut self, text: Box<str>) {
        self.bytes += text.len() + ENTRY_BYTES;
        self.recent.push_front(text);
    }

    fn pop_oldest(&mut self) {
        if let Some(text) = self.recent.pop_back() {
            self.bytes -= text.len() + ENTRY_BYTES;
        }
    }

    fn count(&mut self, minute: i64, severity: u8, count: u64) {
        let slots = self.counts.len();
        *self.counts.entry((minute, severity)).or_default() += count;
        self.bytes += (self.counts.len() - slots) * ENTRY_BYTES;
    }

    fn remove_minutes_before(&mut self, minute: i64) {
        if self.counts.first_key_value().is_some_and(|(&(first, _), _)| first < minute) {
            let slots = self.counts.len();
            self.counts = self.counts.split_off(&(minute, 0));
            self.bytes -= (slots - self.counts.len()) * ENTRY_BYTES;
        }
    }

    /// Drops the older half of its records and counters.
    fn halve(&mut self) {
        for _ in 0..self.recent.len() / 2 {
            self.pop_oldest();
        }
        if let Some(&(middle, _)) = self.counts.keys().nth(self.counts.len() / 2) {
            self.remove_minutes_before(middle);
        }
    }
}
