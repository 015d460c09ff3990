//! Alerts: a query, a window over event time and a threshold. Firing and resolution are sent to a webhook.
//!
//! - The windows see what the journal has made durable, through a [`Follower`]: an alert neither delays intake nor
//!   waits for the database. Records that are late for a window are stored like all others.
//! - Each alert is a stage of its own. All are fed in lockstep through mailboxes of a few frames, so memory is bounded
//!   and nothing is lost in between. Records that the journal removed before they were read are counted.
//! - An alert sees the records of this process only. Where several processes share the load, a ratio is comparable; a
//!   count covers only this process's share.
//! - Windows start empty with the process, and a window that began earlier is not evaluated: a restart does not fire a
//!   `below`.

pub mod state;
mod notify;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logweir_engine::journal::Journal;
use logweir_engine::mailbox::{Bound, Mailbox, Message};
use logweir_engine::stage::Exit;
use logweir_engine::topology::{StageSpec, Topology};
use logweir_engine::window::{ClosedWindow, WindowHandler, WindowStage, Windows};
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use serde::Serialize;
use tokio::sync::watch;

use crate::config::{Config, Counts, Measure, Rule};
use crate::follow::{self, DurableFrame, Follower, Position};
use logweir_record::timestamp;
use notify::Notification;
use state::{Change, Machine, State};

/// Bytes read from the journal at once, unless a single frame is larger.
const READ_BYTES: usize = 1 << 20;
/// Mailbox bound of each alert; the frames are shared by all.
const BOUND: Bound = Bound { messages_max: 4, bytes_max: 1 << 20 };
/// Resolution at which windows close.
const TICK_MS: u64 = 50;

/// Upper bound of the memory used beside the mailboxes, in bytes.
#[must_use]
pub fn memory_bytes_max(rules: &[Rule]) -> usize {
    // Frames may exceed the mailbox bound: one that is being processed, and one that waits.
    if rules.is_empty() { 0 } else { follow::memory_bytes_max(READ_BYTES) + 2 * PAYLOAD_BYTES_MAX }
}

/// A frame for the alert stages.
#[derive(Clone, Debug)]
pub struct FrameMessage(Arc<DurableFrame>);

impl Message for FrameMessage {
    fn bytes(&self) -> usize {
        self.0.chunk.bytes()
    }
}

/// Spawns one stage per alert, the task that feeds them, and the tasks that notify their webhooks.
pub fn spawn(topology: &mut Topology, config: &Config, journal: &Journal, registry: &AlertRegistry) {
    if config.alerts.is_empty() {
        return;
    }
    let stages = config.alerts.iter().map(|rule| {
        let notifications = rule.webhook.clone().or_else(|| config.alerting.webhook_url.clone()).map(|webhook| {
            let (sender, receiver) = watch::channel(None);
            actix_rt::spawn(notify::deliver(rule.name.clone(), webhook, receiver, registry.clone()));
            Arc::new(sender)
        });
        let (rule, registry) = (Arc::new(rule.clone()), registry.clone());
        let name = format!("alert-{}", rule.name);
        let spec = StageSpec { name, arbiter: "alerts".to_owned(), bound: BOUND, tick_ms: Some(TICK_MS) };
        topology.spawn(spec, move |_| {
            let watch = AlertWindows {
                rule: Arc::clone(&rule),
                registry: registry.clone(),
                notifications: notifications.clone(),
                late: 0,
            };
            WindowStage::new(rule.spec(), watch)
        })
    });
    let stages: Vec<Mailbox<FrameMessage>> = stages.collect();
    actix_rt::spawn(feed(journal, stages));
}

/// Sends each frame that becomes durable from now on to every stage.
fn feed(journal: &Journal, stages: Vec<Mailbox<FrameMessage>>) -> impl Future<Output = ()> + use<> {
    let (seq, tails) = journal.durable_position();
    let mut position = Position::of(seq, &tails);
    let mut follower = Follower::new(journal.clone(), seq, READ_BYTES);
    async move {
        loop {
            let frames = follower.next().await;
            if frames.is_empty() && follower.more().await.is_err() {
                return;
            }
            for frame in frames {
                let missed = frame.records_before.saturating_sub(position.records(frame.lane));
                metrics::counter!("logweir_alert_missed_records_total").increment(missed);
                position.pass(frame.lane, frame.records_after());
                let frame = Arc::new(frame);
                for stage in &stages {
                    if stage.send(FrameMessage(Arc::clone(&frame))).await.is_err() {
                        return; // shutting down
                    }
                }
            }
        }
    }
}

/// The window logic of one alert.
struct AlertWindows {
    rule: Arc<Rule>,
    registry: AlertRegistry,
    notifications: Option<Arc<watch::Sender<Option<Notification>>>>,
    late: u64,
}

impl WindowHandler for AlertWindows {
    type Message = FrameMessage;
    type Value = Counts;

    fn aggregate(&mut self, FrameMessage(frame): &FrameMessage, windows: &mut Windows<Counts>) {
        for record in frame.chunk.iter() {
            let of = match &self.rule.measure {
                Measure::Ratio(of) => of.matches(&record),
                Measure::Count | Measure::Rate => true,
            };
            let matched = of && self.rule.filter.matches(&record);
            let is_counted = matched || (of && matches!(self.rule.measure, Measure::Ratio(_)));
            if is_counted && let Some(counts) = windows.pane_mut(record.ts_us) {
                counts.matched += u64::from(matched);
                counts.total += u64::from(of);
            }
        }
        let late = windows.late() - std::mem::replace(&mut self.late, windows.late());
        if late > 0 {
            metrics::counter!("logweir_alert_late_records_total", "alert" => self.rule.name.clone()).increment(late);
        }
    }

    async fn close(&mut self, window: ClosedWindow<Counts>) -> Result<(), Exit> {
        let notification = self.registry.close(&self.rule, &window);
        if let (Some(notifications), Some(notification)) = (&self.notifications, notification) {
            notifications.send_replace(Some(notification));
        }
        Ok(())
    }
}

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
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = Alert)]
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
    fn close(&self, rule: &Rule, window: &ClosedWindow<Counts>) -> Option<Notification> {
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
    fn record_delivery(&self, alert: &str, error: Option<String>) {
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
