//! Telling a webhook: one POST of JSON per change, again until it is taken.
//!
//! - Each alert has a teller of its own, so that one receiver that is down delays no other's alert.
//! - Only the newest change waits: when an alert is over before it could be told, there is nothing to tell, and that is
//!   counted. A receiver that was told once is always told the end.
//! - An answer that says that no retry helps (4xx) ends the attempts; it is logged, counted and on `/api/v1/alerts`.
//! - `text` is a sentence, which chats show as it is.

use std::time::Duration;

use rand::Rng as _;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use super::AlertRegistry;
use super::state::Change;
use crate::token::Token;

/// An attempt ends after this.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause; each is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a webhook gets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notice {
    /// The alert's name.
    pub alert: String,
    /// What has happened.
    pub state: Change,
    /// Since when, in RFC 3339.
    pub since: String,
    /// The value that made it so; none for a ratio of nothing.
    pub value: Option<f64>,
    /// What it is compared with.
    pub threshold: f64,
    /// `above` or `below`.
    pub condition: &'static str,
    /// `count`, `rate` or `ratio`.
    pub measure: &'static str,
    /// Which records.
    pub query: String,
    /// How far back it looks.
    pub window_ms: u64,
    /// Which process.
    pub instance: String,
    /// The same as a sentence.
    pub text: String,
}

/// How one attempt went.
enum Attempt {
    Taken,
    Again(String),
    Never(String),
}

/// Tells `webhook` whatever comes through `notices`, the newest; until they end.
pub async fn tell(alert: String, webhook: Token, mut notices: watch::Receiver<Option<Notice>>, board: AlertRegistry) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .into();
    let mut told_firing = false;
    while notices.changed().await.is_ok() {
        let Some(mut notice) = notices.borrow_and_update().clone() else { continue };
        let mut pause = PAUSE_FIRST;
        loop {
            if notice.state == Change::Resolved && !told_firing {
                count("superseded"); // nobody knows that there was something
                break;
            }
            match attempt(agent.clone(), webhook.clone(), &notice).await {
                Attempt::Taken => {
                    told_firing = notice.state == Change::Firing;
                    count("sent");
                    board.told(&alert, None);
                    break;
                }
                Attempt::Never(why) => {
                    tracing::error!(alert, error = why, "the alert's webhook refuses: it was not told");
                    count("refused");
                    board.told(&alert, Some(why));
                    break;
                }
                Attempt::Again(why) => {
                    tracing::warn!(alert, error = why, "the alert's webhook was not reached: trying again");
                    count("failed");
                    board.told(&alert, Some(why));
                }
            }
            let spread = pause.mul_f64(rand::rng().random_range(0.75..1.25));
            pause = (pause * 2).min(PAUSE_MAX);
            match timeout(spread, notices.changed()).await {
                Err(_) => {}
                Ok(Err(_)) => return,
                Ok(Ok(())) => {
                    if let Some(newer) = notices.borrow_and_update().clone() {
                        notice = newer;
                    }
                }
            }
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("logweir_alert_notifications_total", "outcome" => outcome).increment(1);
}

async fn attempt(agent: ureq::Agent, webhook: Token, notice: &Notice) -> Attempt {
    let body = serde_json::to_vec(notice).expect("a notice is always JSON");
    let post = tokio::task::spawn_blocking(move || {
        let url = &webhook.0; // all of it: a token in it may have a `=`
        agent
            .post(url)
            .header("content-type", "application/json")
            .send(&body[..])
            .map(|answer| answer.status().as_u16())
    });
    match post.await {
        Ok(Ok(200..=299)) => Attempt::Taken,
        Ok(Ok(status @ (408 | 425 | 429 | 500..))) => Attempt::Again(format!("it answered {status}")),
        Ok(Ok(status)) => Attempt::Never(format!("it answered {status}")),
        // The error may name the address, which may hold a secret.
        Ok(Err(error)) => Attempt::Again(kind(&error)),
        Err(error) => Attempt::Again(error.to_string()),
    }
}

fn kind(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::Io(error) => error.kind().to_string(),
        ureq::Error::HostNotFound => "its host is not known".to_owned(),
        ureq::Error::ConnectionFailed => "the connection failed".to_owned(),
        ureq::Error::Rustls(error) => format!("TLS: {error}"),
        ureq::Error::BadUri(_) => "its address is none".to_owned(),
        _ => "the request failed".to_owned(),
    }
}
