//! Alerts: a query, a window over event time and a threshold; told to a webhook when it fires and when it is over.
//!
//! - The windows see what the journal has made durable, through a [`Follower`]: an alert neither delays intake nor waits for
//!   the database, and records that it sees late are stored like all others.
//! - Each alert is a stage of its own. They are fed in step, with room for a few frames: memory has a bound, and nothing
//!   is lost on the way. What the journal let go before it was read is counted.
//! - It sees the records of this process. Where several share the load, a ratio means the same; a count is a share.
//! - Windows begin empty with the process, and none is looked at that began before: a `below` does not fire because of a restart.

pub mod rule;
pub mod state;
mod notify;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logweir_engine::codec::PAYLOAD_BYTES_MAX;
use logweir_engine::journal::Journal;
use logweir_engine::mailbox::{Bound, Mailbox, Message};
use logweir_engine::stage::Exit;
use logweir_engine::topology::{StageSpec, Topology};
use logweir_engine::window::{Closed, WindowStage, Windowed, Windows};
use serde::Serialize;
use tokio::sync::watch;

use crate::config::Config;
use crate::follow::{self, DurableFrame, Follower, Position};
use crate::store::time_text;
use notify::Notice;
use rule::{Measure, Rule, Tally};
use state::{Change, Machine, State};

/// What is read from the journal at once, unless one frame is larger.
const READ_BYTES: usize = 1 << 20;
/// What waits before each alert: frames that all share.
const BOUND: Bound = Bound { messages_max: 4, bytes_max: 1 << 20 };
/// How exactly a window closes.
const TICK_MS: u64 = 50;

/// The most bytes that are held beside the mailboxes.
#[must_use]
pub fn memory_bytes_max(rules: &[Rule]) -> usize {
    // The frames in the mailboxes may be larger than their bound: one that is being looked at, one that waits.
    if rules.is_empty() { 0 } else { follow::memory_bytes_max(READ_BYTES) + 2 * PAYLOAD_BYTES_MAX }
}

/// One frame on its way to the alerts.
#[derive(Clone, Debug)]
pub struct FrameMessage(Arc<DurableFrame>);

impl Message for FrameMessage {
    fn bytes(&self) -> usize {
        self.0.chunk.bytes()
    }
}

/// Spawns a stage for each alert, and whoever feeds them and tells their webhooks.
pub fn spawn(topology: &mut Topology, config: &Config, journal: &Journal, board: &AlertRegistry) {
    if config.alerts.is_empty() {
        return;
    }
    let stages = config.alerts.iter().map(|rule| {
        let notices = rule.webhook.clone().or_else(|| config.alerting.webhook_url.clone()).map(|webhook| {
            let (sender, receiver) = watch::channel(None);
            actix_rt::spawn(notify::tell(rule.name.clone(), webhook, receiver, board.clone()));
            Arc::new(sender)
        });
        let (rule, board) = (Arc::new(rule.clone()), board.clone());
        let name = format!("alert-{}", rule.name);
        let spec = StageSpec { name, arbiter: "alerts".to_owned(), bound: BOUND, tick_ms: Some(TICK_MS) };
        topology.spawn(spec, move |_| {
            let watch = Watch { rule: Arc::clone(&rule), board: board.clone(), notices: notices.clone(), late: 0 };
            WindowStage::new(rule.spec(), watch)
        })
    });
    let stages: Vec<Mailbox<FrameMessage>> = stages.collect();
    actix_rt::spawn(feed(journal, stages));
}

/// Gives every stage every frame that becomes durable from now on.
fn feed(journal: &Journal, stages: Vec<Mailbox<FrameMessage>>) -> impl Future<Output = ()> + use<> {
    let (seq, tails) = journal.durable_now();
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
                        return; // on the way down
                    }
                }
            }
        }
    }
}

/// What one alert's stage does.
struct Watch {
    rule: Arc<Rule>,
    board: AlertRegistry,
    notices: Option<Arc<watch::Sender<Option<Notice>>>>,
    late: u64,
}

impl Windowed for Watch {
    type Message = FrameMessage;
    type Value = Tally;

    fn gather(&mut self, FrameMessage(frame): &FrameMessage, windows: &mut Windows<Tally>) {
        for record in frame.chunk.iter() {
            let of = match &self.rule.measure {
                Measure::Ratio(of) => of.matches(&record),
                Measure::Count | Measure::Rate => true,
            };
            let matched = of && self.rule.filter.matches(&record);
            let counts = matched || (of && matches!(self.rule.measure, Measure::Ratio(_)));
            if counts && let Some(tally) = windows.at(record.ts_us) {
                tally.matched += u64::from(matched);
                tally.of += u64::from(of);
            }
        }
        let late = windows.late() - std::mem::replace(&mut self.late, windows.late());
        if late > 0 {
            metrics::counter!("logweir_alert_late_records_total", "alert" => self.rule.name.clone()).increment(late);
        }
    }

    async fn close(&mut self, window: Closed<Tally>) -> Result<(), Exit> {
        let notice = self.board.close(&self.rule, &window);
        if let (Some(notices), Some(notice)) = (&self.notices, notice) {
            notices.send_replace(Some(notice));
        }
        Ok(())
    }
}

/// How all alerts stand; outlives the stages. A clone is a handle on the same.
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

/// One alert, for people and scripts.
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
    /// All of `rules` inactive since `now_us`.
    #[must_use]
    pub fn new(rules: &[Rule], now_us: i64, instance: String) -> Self {
        let entries = rules.iter().map(|rule| {
            let status = Status {
                name: rule.name.clone(),
                state: State::Inactive,
                since: time_text(now_us),
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

    /// Every alert, by name.
    #[must_use]
    pub fn alerts(&self) -> Vec<Status> {
        self.entries().values().map(|entry| entry.status.clone()).collect()
    }

    /// A window of `rule` has closed; says what has to be told.
    fn close(&self, rule: &Rule, window: &Closed<Tally>) -> Option<Notice> {
        let value = rule.value(window.value);
        let mut entries = self.entries();
        let Entry { machine, status } = entries.get_mut(&rule.name)?;
        let began_us = machine.state().1;
        let change = machine.on(value.is_some_and(|value| rule.threshold.is_passed(value)), window.end_us);
        let (state, since_us) = machine.state();
        (status.state, status.since, status.value) = (state, time_text(since_us), value);
        status.last_evaluated = Some(time_text(window.end_us));
        let alert = || rule.name.clone();
        metrics::gauge!("logweir_alert_state", "alert" => alert()).set(f64::from(state as u8));
        metrics::gauge!("logweir_alert_value", "alert" => alert()).set(value.unwrap_or(0.0));
        let change = change?;
        match change {
            Change::Firing => tracing::warn!(alert = rule.name, value, "the alert fires"),
            Change::Resolved => tracing::info!(alert = rule.name, value, "the alert is over"),
        }
        let since_us = if change == Change::Firing { since_us } else { began_us };
        Some(self.notice(rule, change, since_us, value))
    }

    fn notice(&self, rule: &Rule, state: Change, since_us: i64, value: Option<f64>) -> Notice {
        let (measure, condition, limit) = (rule.measure.name(), rule.threshold.name(), rule.threshold.limit());
        let word = if state == Change::Firing { "FIRING" } else { "RESOLVED" };
        let shown = value.map_or("nothing".to_owned(), |value| format!("{}", (value * 1000.0).round() / 1000.0));
        let text = format!(
            "{word} {name}: {measure} is {shown} ({condition} {limit} fires) over {window} s of `{query}`",
            name = rule.name,
            window = rule.window_ms as f64 / 1000.0,
            query = rule.query,
        );
        Notice {
            alert: rule.name.clone(),
            state,
            since: time_text(since_us),
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

    /// The webhook of `alert` was told, or why it was not.
    fn told(&self, alert: &str, error: Option<String>) {
        if let Some(Entry { status, .. }) = self.entries().get_mut(alert) {
            if error.is_none() {
                status.last_notified = Some(time_text(logweir_engine::clock::wall_us()));
            }
            status.last_error = error;
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // No step leaves an entry half changed.
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
