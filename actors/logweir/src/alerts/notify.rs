//! Webhook delivery: one POST of JSON per state change, retried until it is accepted.
//!
//! - Each alert has its own delivery task, so a webhook that is down delays no other alert.
//! - Only the latest change is pending. An alert that resolves before its firing was delivered needs no notification;
//!   this is counted as superseded. A webhook that received the firing always receives the resolution.
//! - A response that rules out a retry (4xx) ends the attempts; it is logged, counted and shown on `/api/v1/alerts`.
//! - `text` is a sentence that chat services display as it is.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::notification::Notification;
use super::registry::AlertRegistry;
use super::state::Change;
use crate::config::Token;
use crate::limits::backoff::Backoff;

/// Timeout of one attempt.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Delays between attempts.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));

/// Outcome of one attempt.
enum Attempt {
    Delivered,
    Retry(String),
    Rejected(String),
}

/// Delivers the latest of `notifications` to `webhook` until the channel closes.
pub async fn deliver(
    alert: String,
    webhook: Token,
    mut notifications: watch::Receiver<Option<Notification>>,
    registry: AlertRegistry,
) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .into();
    let mut firing_delivered = false;
    while notifications.changed().await.is_ok() {
        let Some(mut notification) = notifications.borrow_and_update().clone() else { continue };
        let mut delays = RETRY.delays();
        loop {
            if notification.state == Change::Resolved && !firing_delivered {
                count("superseded"); // the webhook never received the firing
                break;
            }
            match attempt(agent.clone(), webhook.clone(), &notification).await {
                Attempt::Delivered => {
                    firing_delivered = notification.state == Change::Firing;
                    count("sent");
                    registry.record_delivery(&alert, None);
                    break;
                }
                Attempt::Rejected(error) => {
                    tracing::error!(alert, error, "the webhook rejected the notification: not retrying");
                    count("rejected");
                    registry.record_delivery(&alert, Some(error));
                    break;
                }
                Attempt::Retry(error) => {
                    tracing::warn!(alert, error, "cannot deliver the notification to the webhook: retrying");
                    count("failed");
                    registry.record_delivery(&alert, Some(error));
                }
            }
            match timeout(delays.next_delay(), notifications.changed()).await {
                Err(_) => {}
                Ok(Err(_)) => return,
                Ok(Ok(())) => {
                    if let Some(newer) = notifications.borrow_and_update().clone() {
                        notification = newer;
                    }
                }
            }
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("logweir_alert_notifications_total", "outcome" => outcome).increment(1);
}

async fn attempt(agent: ureq::Agent, webhook: Token, notification: &Notification) -> Attempt {
    let body = serde_json::to_vec(notification).expect("a notification is always JSON");
    let post = tokio::task::spawn_blocking(move || {
        let url = &webhook.0; // the whole URL: a token in it may contain `=`
        agent
            .post(url)
            .header("content-type", "application/json")
            .send(&body[..])
            .map(|answer| answer.status().as_u16())
    });
    match post.await {
        Ok(Ok(200..=299)) => Attempt::Delivered,
        Ok(Ok(status @ (408 | 425 | 429 | 500..))) => {
            Attempt::Retry(format!("the webhook responded with status {status}"))
        }
        Ok(Ok(status)) => Attempt::Rejected(format!("the webhook responded with status {status}")),
        // The error may include the URL, which may contain a secret.
        Ok(Err(error)) => Attempt::Retry(kind(&error)),
        Err(error) => Attempt::Retry(error.to_string()),
    }
}

fn kind(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "timed out".to_owned(),
        ureq::Error::Io(error) => error.kind().to_string(),
        ureq::Error::HostNotFound => "host not found".to_owned(),
        ureq::Error::ConnectionFailed => "connection failed".to_owned(),
        ureq::Error::Rustls(error) => format!("TLS: {error}"),
        ureq::Error::BadUri(_) => "invalid URL".to_owned(),
        _ => "request failed".to_owned(),
    }
}
