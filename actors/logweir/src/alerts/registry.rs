//! The status of all alerts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logweir_engine::window::ClosedWindow;
use logweir_record::timestamp;
use serde::Serialize;

use super::notification::Notification;
use super::state::{Change, Machine, State};
use crate::config::{Counts, Rule};

/// Status of all alerts; outlives the stages. Clones share the same state.
#[derive(Clone, Default)]
pub struct AlertRegistry(Arc<Inner>);

#[derive(Default)]
struct Inner {
    instance: String,
    entries: Mutex<BTreeMap<String, Entry>>,
}

struct Entry {
    machine: Machine,
    status: Status,
}

/// Status of one alert, as returned by the API.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "server", schema(as = Alert))]
pub struct Status {
    name: String,
    state: State,
    since: String,
    value: Option<f64>,
    threshold: f64,
    condition: &'static str,
    measure: &'static str,
    query: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    window_ms: u64,
    for_ms: u64,
    last_evaluated: Option<String>,
    last_notified: Option<String>,
    last_error: Option<String>,
}

impl AlertRegistry {
    /// Registers `rules`, each inactive since `now_us`.
    #[must_use]
    pub fn new(rules: &[Rule], now_us: i64, instance: String) -> Self {
        let entries = rules.iter().map(|rule| {
            let status = Status {
                name: rule.name.clone(),
                state: State::Inactive,
                since: timestamp::text(now_us),
                value: None,
                threshold: rule.threshold.limit(),
                condition: rule.threshold.name(),
                measure: rule.measure.name(),
                query: rule.query.clone(),
                of: rule.of.clone(),
                window_ms: rule.window_ms,
                for_ms: rule.for_ms,
                last_evaluated: None,
                last_notified: None,
                last_error: None,
            };
            let for_us = i64::try_from(rule.for_ms * 1000).unwrap_or(i64::MAX);
            (rule.name.clone(), Entry { machine: Machine::new(for_us, now_us), status })
        });
        Self(Arc::new(Inner { instance, entries: Mutex::new(entries.collect()) }))
    }

    /// Returns the status of every alert, ordered by name.
    #[must_use]
    pub fn alerts(&self) -> Vec<Status> {
        self.entries().values().map(|entry| entry.status.clone()).collect()
    }

    /// Evaluates a closed window of `rule`; returns the notification to send, if any.
    pub(super) fn close(&self, rule: &Rule, window: &ClosedWindow<Counts>) -> Option<Notification> {
        let value = rule.value(window.value);
        let mut entries = self.entries();
        let Entry { machine, status } = entries.get_mut(&rule.name)?;
        let began_us = machine.state().1;
        let change = machine.on(value.is_some_and(|value| rule.threshold.is_crossed_by(value)), window.end_us);
        let (state, since_us) = machine.state();
        (status.state, status.since, status.value) = (state, timestamp::text(since_us), value);
        status.last_evaluated = Some(timestamp::text(window.end_us));
        let alert = || rule.name.clone();
        metrics::gauge!("logweir_alert_state", "alert" => alert()).set(f64::from(state as u8));
        metrics::gauge!("logweir_alert_value", "alert" => alert()).set(value.unwrap_or(0.0));
        let change = change?;
        match change {
            Change::Firing => tracing::warn!(alert = rule.name, value, "alert firing"),
            Change::Resolved => tracing::info!(alert = rule.name, value, "alert resolved"),
        }
        let since_us = if change == Change::Firing { since_us } else { began_us };
        Some(self.notification(rule, change, since_us, value))
    }

    fn notification(&self, rule: &Rule, state: Change, since_us: i64, value: Option<f64>) -> Notification {
        let (measure, condition, limit) = (rule.measure.name(), rule.threshold.name(), rule.threshold.limit());
        let word = if state == Change::Firing { "FIRING" } else { "RESOLVED" };
        let shown = value.map_or("undefined".to_owned(), |value| format!("{}", (value * 1000.0).round() / 1000.0));
        let records = if rule.query.is_empty() { "all records".to_owned() } else { format!("`{}`", rule.query) };
        let text = format!(
            "{word} {name}: {measure} is {shown} over the last {window} s for {records} (fires {condition} {limit})",
            name = rule.name,
            window = rule.window_ms as f64 / 1000.0,
        );
        Notification {
            alert: rule.name.clone(),
            state,
            since: timestamp::text(since_us),
            value,
            threshold: limit,
            condition,
            measure,
            query: rule.query.clone(),
            window_ms: rule.window_ms,
            instance: self.0.instance.clone(),
            text,
        }
    }

    /// Records that the webhook of `alert` was notified, or the error.
    #[cfg(feature = "webhooks")]
    pub(super) fn record_delivery(&self, alert: &str, error: Option<String>) {
        if let Some(Entry { status, .. }) = self.entries().get_mut(alert) {
            if error.is_none() {
                status.last_notified = Some(timestamp::text(logweir_engine::clock::wall_us()));
            }
            status.last_error = error;
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // No step leaves an entry half changed, so a poisoned lock is safe to use.
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
