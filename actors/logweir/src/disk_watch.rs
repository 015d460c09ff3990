//! Watches the journal's disk: an append that does not become durable turns readiness, and is told once.
//!
//! Nothing is restarted because of it: a new process would wait for the same disk, without answering queries meanwhile.

use logweir_engine::drain::{DrainWatch, Phase};
use logweir_engine::journal::Journal;
use tokio::time::Duration;

use crate::config::Config;

/// Interval between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// Slow disks pause for a part of a second.
const LIMIT_MIN: Duration = Duration::from_secs(1);

/// How long an append may wait for the disk: after that time, requests are answered 503.
pub(crate) fn limit(config: &Config) -> Duration {
    Duration::from_millis(config.http.ack_timeout_ms).max(LIMIT_MIN)
}

/// Why no record is acknowledged, if the oldest append has waited for at least `limit`.
#[cfg(feature = "server")]
pub(crate) fn stalled(journal: &Journal, limit: Duration) -> Option<String> {
    let age = journal.oldest_append_age();
    (age >= limit).then(|| format!("the journal's disk has not answered for {} s", age.as_secs()))
}

/// Updates the gauge and tells when the disk stops answering, and when it answers again, until the shutdown.
pub(crate) async fn run(journal: Journal, limit: Duration, drain: DrainWatch) {
    let mut stalls = false;
    loop {
        let age = journal.oldest_append_age();
        publish(age);
        if stalls != (age >= limit) {
            stalls = !stalls;
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            match stalls {
                true => tracing::error!(
                    age_ms,
                    "the journal's disk does not answer: no record is acknowledged; see the kernel's log and the volume"
                ),
                false => tracing::info!("the journal's disk answers again"),
            }
        }
        tokio::select! {
            () = drain.reached(Phase::Persisting) => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Sets the gauge.
pub(crate) fn publish(age: Duration) {
    metrics::gauge!("logweir_journal_oldest_append_age_seconds").set(age.as_secs_f64());
}
