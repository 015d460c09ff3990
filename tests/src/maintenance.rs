//! Waits for the maintenance of tables, in which what fails temporarily is tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use logweir_store::{LogStore, MaintenanceStep, StoreError};

use crate::process::Server;
use crate::scenario::PATIENCE;

/// Maintains the tables by the clock `now_us`. Returns the failures, as `step: error`.
///
/// A step that fails temporarily is tried again, as by the server: autovacuum can hold a lock for longer than it waits.
pub async fn maintain(store: &Arc<dyn LogStore>, now_us: i64) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut steps = store.maintain(now_us).await;
        steps.extend(store.build_indexes().await);
        let passes = |step: &MaintenanceStep| matches!(step.result, Err(StoreError::Transient(_)));
        if Instant::now() > deadline || !steps.iter().any(passes) {
            let failure = |step: MaintenanceStep| Some(format!("{}: {}", step.name, step.result.err()?));
            return steps.into_iter().filter_map(failure).collect();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until a step of maintenance works.
///
/// # Panics
/// On timeout.
pub fn await_step(server: &Server, step: &str) {
    let works = format!("logweir_maintenance_failing{{step=\"{step}\"}} 0");
    poll(server, step, || {
        let metrics = server.admin("/metrics").map(|answer| answer.body).unwrap_or_default();
        metrics.lines().any(|line| line == works)
    });
}

/// Waits until a step of maintenance fails for a reason that contains `texts`.
///
/// # Panics
/// On timeout.
pub fn await_failing(server: &Server, step: &str, texts: &[&str]) {
    poll(server, &format!("{step} failing with {texts:?}"), || {
        server.status()["maintenance_failing"].as_array().into_iter().flatten().any(|failing| {
            let reason = failing["error"].as_str().unwrap_or_default();
            failing["step"] == step && texts.iter().all(|text| reason.contains(text))
        })
    });
}

/// Waits until no step of maintenance fails.
///
/// # Panics
/// On timeout.
pub fn await_none_failing(server: &Server) {
    poll(server, "no step failing", || server.status()["maintenance_failing"] == serde_json::json!([]));
}

fn poll(server: &Server, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        let failing = || server.status()["maintenance_failing"].to_string();
        assert!(Instant::now() < deadline, "timed out waiting for {what}; failing: {}", failing());
        std::thread::sleep(Duration::from_millis(50));
    }
}
