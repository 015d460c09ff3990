//! How long an answer is waited for, before a new connection is tried.
//!
//! A connection can be silent for good, although the server works: a load balancer or a pooler has forgotten it, or was
//! frozen. So the first wait is short. A server that is merely slow has more time with each further attempt: it would
//! never get ready otherwise. (Keepalives notice only a peer that is gone, not one that says nothing.)

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::connect::no_answer;
use crate::error::StoreError;

/// How long a step of one kind may take: at first `least`, and twice as long after each that had no answer, up to `most`.
#[derive(Debug)]
pub(super) struct Patience {
    least: Duration,
    most: Duration,
    unanswered: AtomicU32,
}

impl Patience {
    pub(super) const fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, unanswered: AtomicU32::new(0) }
    }

    /// Waits for `work`. Without an answer the error is transient, and the next one is waited for twice as long.
    pub(super) async fn wait<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let unanswered = self.unanswered.load(Ordering::Relaxed);
        let limit = self.least.saturating_mul(2_u32.saturating_pow(unanswered)).min(self.most);
        let done = tokio::time::timeout(limit, work).await;
        self.unanswered.store(if done.is_ok() { 0 } else { unanswered.saturating_add(1) }, Ordering::Relaxed);
        done.unwrap_or_else(|_| Err(no_answer(what, limit)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_left_soon_and_a_slow_server_is_waited_for() {
        let patience = Patience::new(Duration::from_secs(10), Duration::from_secs(60));
        let answered_after = |seconds| async move {
            sleep(Duration::from_secs(seconds)).await;
            Ok::<_, StoreError>(seconds)
        };
        for limit in [10, 20, 40, 60, 60] {
            let began = Instant::now();
            assert!(matches!(patience.wait("step", answered_after(500)).await, Err(StoreError::Transient(_))));
            assert_eq!(began.elapsed(), Duration::from_secs(limit));
        }
        assert!(patience.wait("step", answered_after(55)).await.is_ok(), "slow, but there");
        assert!(patience.wait("step", answered_after(15)).await.is_err(), "as at first again");
    }
}
