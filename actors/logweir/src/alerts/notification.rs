//! What a webhook receives.

use serde::Serialize;

use super::state::Change;

/// The JSON body sent to a webhook.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notification {
    /// Name of the alert.
    pub alert: String,
    /// The change of state.
    pub state: Change,
    /// Start of the firing state, in RFC 3339.
    pub since: String,
    /// Value that caused the change; `None` for a ratio without records.
    pub value: Option<f64>,
    /// Threshold that the value is compared with.
    pub threshold: f64,
    /// `above` or `below`.
    pub condition: &'static str,
    /// `count`, `rate` or `ratio`.
    pub measure: &'static str,
    /// Query that selects the records.
    pub query: String,
    /// Length of the window.
    pub window_ms: u64,
    /// Instance that evaluated the alert.
    pub instance: String,
    /// The notification as a sentence.
    pub text: String,
}
