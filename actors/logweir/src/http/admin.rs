//! Probes, metrics, drain and flush.
//!
//! - Liveness reports only whether this process can still answer: a restart does not repair a database.
//! - Readiness reports whether a body would be accepted now. It never depends on the database or Redis: the journal
//!   stands in for them, and taking a process out of service because of them would only move the load to others with
//!   the same problem.

use std::time::Duration;

use actix_web::web;
use logweir_engine::drain::Phase;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::answer::Answer;
use super::shared::Shared;
use crate::config::Role;
use crate::disk_watch;
use crate::progress::Recovery;
use crate::resources;

/// 200 as long as the listener answers.
pub async fn livez(_shared: web::Data<Shared>) -> Answer {
    Answer::json(200, &serde_json::json!({ "alive": true }))
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    phase: Phase,
    reasons: Vec<String>,
}

/// 200 if a body would be accepted now, otherwise 503 with the reasons.
pub async fn readyz(shared: web::Data<Shared>) -> Answer {
    let phase = shared.drain.phase();
    let mut reasons = Vec::new();
    if phase > Phase::Accepting {
        reasons.push("shutting down".to_owned());
    }
    if shared.config.role == Role::Gateway {
        // A gateway that answers is ready: nothing of its own can be unavailable.
        let ready = reasons.is_empty();
        return Answer::json(if ready { 200 } else { 503 }, &Ready { ready, phase, reasons });
    }
    if !shared.progress.recovered() {
        reasons.push("the journal is still being read: see /startupz".to_owned());
    }
    match shared.running() {
        Err(_) => reasons.push("the pipeline has not started yet".to_owned()),
        Ok(running) => {
            reasons.extend(running.journal.check_writable().err().map(|error| error.to_string()));
            reasons.extend(disk_watch::stalled(&running.journal, disk_watch::limit(&shared.config)));
        }
    }
    let ready = reasons.is_empty();
    Answer::json(if ready { 200 } else { 503 }, &Ready { ready, phase, reasons })
}

#[derive(Serialize)]
struct Startup {
    started: bool,
    #[serde(flatten)]
    recovery: Recovery,
}

/// 503 with the progress until the journal has been read, then 200 for as long as the process runs.
pub async fn startupz(shared: web::Data<Shared>) -> Answer {
    let recovery = shared.progress.recovery_now();
    let started = shared.config.role == Role::Gateway || recovery.finished && shared.running().is_ok();
    Answer::json(if started { 200 } else { 503 }, &Startup { started, recovery })
}

/// The metrics, in the Prometheus text format.
pub async fn metrics(shared: web::Data<Shared>) -> Answer {
    refresh_gauges(&shared);
    shared.prometheus.run_upkeep();
    Answer::text("text/plain; version=0.0.4; charset=utf-8", shared.prometheus.render())
}

/// Updates the metrics that are read on demand rather than written on change.
#[allow(clippy::cast_precision_loss)] // gauges are doubles
fn refresh_gauges(shared: &Shared) {
    let gauge = |name: &'static str, value: u64| metrics::gauge!(name).set(value as f64);
    metrics::gauge!("logweir_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge("logweir_uptime_seconds", shared.started.elapsed().as_secs());
    gauge("logweir_http_inflight_bytes", shared.inflight_bytes() as u64);
    gauge("logweir_shutdown_phase", shared.drain.phase() as u64);
    if shared.config.role != Role::Gateway
        && let Some(bytes) = resources::volume_bytes_free(&shared.config.data_dir)
    {
        gauge("logweir_volume_free_bytes", bytes);
    }
    let Ok(running) = shared.running() else { return };
    // The journal and the mailboxes update their own gauges.
    gauge("logweir_journal_writable", u64::from(running.journal.check_writable().is_ok()));
    disk_watch::publish(running.journal.oldest_append_age());
    for lane in shared.progress.snapshot(&running.journal.lanes()).lanes {
        let id = lane.lane.to_string();
        metrics::gauge!("logweir_lane_backlog_records", "lane" => id.clone()).set(lane.backlog as f64);
        // Until the database has reported its cursor, these numbers are not known.
        if !lane.cursor_known {
            continue;
        }
        // Counters never decrease: `absolute` keeps the maximum. When the database is restored from a backup, its
        // committed number goes back and the journal is replayed; the counter then stands still until the database has
        // caught up. The backlog gauge and the numbers of `/api/v1/status` are exact at all times.
        let counter = |name: &'static str, value: u64| metrics::counter!(name, "lane" => id.clone()).absolute(value);
        counter("logweir_lane_accepted_records_total", lane.accepted);
        counter("logweir_lane_committed_records_total", lane.committed);
        counter("logweir_lane_dead_lettered_records_total", lane.dead_lettered);
        counter("logweir_lane_lost_records_total", lane.lost);
    }
}

/// Starts the drain, as SIGTERM does, and answers 202 immediately.
pub async fn drain(shared: web::Data<Shared>) -> Answer {
    (shared.start_drain)();
    Answer::json(202, &serde_json::json!({ "draining": true, "phase": shared.drain.phase() }))
}

#[derive(Serialize)]
struct FlushOutcome {
    flushed: bool,
    backlog: u64,
}

/// Flushes open batches and waits until everything accepted before is in the database.
pub async fn flush(shared: web::Data<Shared>) -> Answer {
    let running = match shared.running() {
        Ok(running) => running,
        Err(rejection) => return rejection.into(),
    };
    let tails = running.journal.lanes();
    shared.progress.flush_now();
    let until = Instant::now() + Duration::from_millis(shared.config.http.ack_timeout_ms);
    let all = async {
        for (&lane, tail) in &tails {
            shared.progress.committed(lane, tail.seq).await;
        }
    };
    let flushed = tokio::select! {
        flushed = timeout_at(until, all) => flushed.is_ok(),
        () = shared.drain.reached(Phase::Persisting) => false,
    };
    // Counts only what was accepted before the flush began.
    let backlog = shared.progress.snapshot(&tails).lanes.iter().map(|lane| lane.backlog).sum();
    let answer = Answer::json(if flushed { 200 } else { 503 }, &FlushOutcome { flushed, backlog });
    if flushed { answer } else { answer.with_header("Retry-After", "5") }
}
