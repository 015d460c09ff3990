//! One stage per alert, and the task that feeds them all.

use std::sync::Arc;

use logweir_engine::journal::Journal;
use logweir_engine::mailbox::{Bound, ExternalSender, Message};
use logweir_engine::stage::Exit;
use logweir_engine::topology::{StageSpec, Topology};
use logweir_engine::window::{ClosedWindow, WindowHandler, WindowStage, Windows};
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use tokio::sync::watch;

use super::notification::Notification;
#[cfg(feature = "webhooks")]
use super::notify;
use super::registry::AlertRegistry;
use crate::config::{Config, Counts, Measure, Rule};
use crate::follow::{self, DurableFrame, Follower, Position};

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
            #[cfg(feature = "webhooks")]
            actix_rt::spawn(notify::deliver(rule.name.clone(), webhook, receiver, registry.clone()));
            #[cfg(not(feature = "webhooks"))]
            drop((webhook, receiver)); // the configuration's check accepts none
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
    let stages: Vec<_> = stages.map(|stage| stage.external()).collect();
    actix_rt::spawn(feed(journal, stages));
}

/// Sends each frame that becomes durable from now on to every stage.
fn feed(journal: &Journal, stages: Vec<ExternalSender<FrameMessage>>) -> impl Future<Output = ()> + use<> {
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
