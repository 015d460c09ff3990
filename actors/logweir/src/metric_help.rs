//! Kind and help text of every metric, for `/metrics`. A test checks that the list is complete.

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only increases; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution of observed values.
    Histogram,
}

/// Description of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name, with the unit last (before `_total`).
    pub name: &'static str,
    /// Kind.
    pub kind: MetricKind,
    /// Help text.
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, help }
}

/// Every metric, sorted by name.
pub const METRICS: &[Metric] = &[
    counter(
        "logweir_alert_late_records_total",
        "Total number of records that arrived after their alert window had closed, by alert. They are stored, \
         but not evaluated.",
    ),
    counter("logweir_alert_missed_records_total", "Total number of records that alert rules could not evaluate."),
    counter("logweir_alert_notifications_total", "Total number of webhook notifications, by outcome."),
    gauge("logweir_alert_state", "State of an alert: 0 inactive, 1 pending, 2 firing."),
    gauge("logweir_alert_value", "Value of an alert's measure in its last closed window."),
    gauge("logweir_breaker_state", "State of a circuit breaker, by name: 0 closed, 1 half-open, 2 open."),
    gauge("logweir_build_info", "Build information: always 1, with the label version."),
    counter("logweir_cache_applied_records_total", "Total number of records written to the hot cache."),
    histogram("logweir_cache_apply_seconds", "Time to write a batch to the hot cache, in seconds."),
    counter(
        "logweir_cache_recent_skipped_records_total",
        "Total number of records omitted from the hot cache's lists of recent records because of a high rate.",
    ),
    counter(
        "logweir_discarded_records_total",
        "Total number of discarded records, by component, reason and whether it was intentional.",
    ),
    counter(
        "logweir_files_checkpoint_errors_total",
        "Total number of failures to write the checkpoint with the offsets of tailed files.",
    ),
    gauge(
        "logweir_files_ignored_duplicates",
        "Number of files that are not tailed because they start with the same bytes as another file.",
    ),
    counter(
        "logweir_files_removed_unread_total",
        "Total number of tailed files that were removed before they were read to the end.",
    ),
    gauge("logweir_files_watched", "Number of tailed files."),
    counter("logweir_gateway_lookup_errors_total", "Total number of failed DNS lookups of processors."),
    gauge(
        "logweir_gateway_other_database_processors",
        "Number of processors that write to another database than the one that the gateway reads.",
    ),
    gauge(
        "logweir_gateway_processors",
        "Number of processors known to the gateway, by state: available or unavailable (circuit breaker open).",
    ),
    counter("logweir_gateway_requests_total", "Total number of requests from the gateway to processors, by outcome."),
    counter("logweir_gateway_tail_reconnects_total", "Total number of reconnections to a processor's live tail."),
    gauge("logweir_http_inflight_bytes", "Size of the request bodies that are being read, in bytes."),
    histogram("logweir_http_request_duration_seconds", "Duration of HTTP requests, in seconds, by route."),
    counter("logweir_http_requests_total", "Total number of HTTP requests, by route and status code."),
    counter("logweir_journal_appended_bytes_total", "Total number of bytes appended to the journal."),
    counter("logweir_journal_appended_frames_total", "Total number of frames appended to the journal."),
    gauge("logweir_journal_bytes", "Size of all journal files, in bytes."),
    counter(
        "logweir_journal_damaged_frames_total",
        "Total number of damaged frames found in the journal. Their bytes are quarantined.",
    ),
    counter(
        "logweir_journal_disk_full_failures_total",
        "Total number of journal appends that failed because the disk was full.",
    ),
    histogram("logweir_journal_fsync_seconds", "Duration of a journal fsync, in seconds."),
    histogram("logweir_journal_group_frames", "Number of frames covered by one fsync (group commit)."),
    counter(
        "logweir_journal_housekeeper_panics_total",
        "Total number of panics of the thread that prepares and removes the journal's files.",
    ),
    gauge(
        "logweir_journal_oldest_append_age_seconds",
        "Age of the oldest append that is not durable yet, in seconds. It grows while the disk does not answer.",
    ),
    gauge("logweir_journal_quarantine_bytes", "Size of the quarantined damaged and torn data, in bytes."),
    gauge("logweir_journal_queue_bytes", "Size of the frames that wait for the journal's writer, in bytes."),
    gauge("logweir_journal_quota_bytes", "Configured maximum size of the journal, in bytes."),
    gauge("logweir_journal_recovery_seconds", "Time to read the journal at startup, in seconds."),
    counter("logweir_journal_rejected_appends_total", "Total number of appends rejected by the journal, by reason."),
    gauge(
        "logweir_journal_retained_bytes",
        "Size of the committed journal segments, in bytes. They are retained in case the database is restored \
         to an earlier time, and removed when the journal needs the space.",
    ),
    gauge("logweir_journal_segments", "Number of journal segment files."),
    counter(
        "logweir_journal_torn_bytes_total",
        "Total number of bytes in torn tails that recovery cut off and quarantined.",
    ),
    gauge("logweir_journal_writable", "Whether the journal accepts records: 1 yes, 0 no."),
    counter("logweir_lane_accepted_records_total", "Total number of records of a lane accepted by the journal."),
    gauge(
        "logweir_lane_backlog_records",
        "Number of records of a lane that are in the journal but not yet in the database.",
    ),
    counter(
        "logweir_lane_committed_records_total",
        "Total number of records of a lane committed to the database. If the database is restored to an earlier \
         state, it does not increase until the previous number is reached again.",
    ),
    counter(
        "logweir_lane_dead_lettered_records_total",
        "Total number of records of a lane that the database rejected and that were dead-lettered.",
    ),
    counter(
        "logweir_lane_lost_records_total",
        "Total number of records of a lane that were lost: damaged in the journal or past its retention. The \
         log contains the ranges.",
    ),
    counter(
        "logweir_lane_resets_total",
        "Total number of lanes reset because the journal was older than the database.",
    ),
    counter(
        "logweir_log_lines_dropped_total",
        "Total number of lines of the log that were dropped because nobody read standard error.",
    ),
    gauge("logweir_mailbox_capacity_bytes", "Capacity of a mailbox, in bytes."),
    gauge("logweir_mailbox_capacity_messages", "Capacity of a mailbox, in messages."),
    gauge("logweir_mailbox_depth_bytes", "Size of the messages in a mailbox, in bytes."),
    gauge("logweir_mailbox_depth_messages", "Number of messages in a mailbox."),
    counter(
        "logweir_mailbox_discarded_total",
        "Total number of messages discarded from a mailbox when its stage ended.",
    ),
    counter("logweir_mailbox_full_total", "Total number of sends that found a mailbox full."),
    counter("logweir_mailbox_wait_seconds_total", "Total time that senders waited for space in a mailbox, in seconds."),
    gauge(
        "logweir_maintenance_failing",
        "Whether a step of the database's maintenance fails: 1 yes, 0 no. Records are stored all the same.",
    ),
    gauge(
        "logweir_maintenance_failing_since_seconds",
        "Unix time since which a step of the database's maintenance fails; 0 if it does not.",
    ),
    counter("logweir_network_errors_total", "Total number of network errors, by peer or by component and kind."),
    counter(
        "logweir_parse_errors_total",
        "Total number of records that could not be parsed and were stored as plain text, by format.",
    ),
    counter(
        "logweir_queries_behind_total",
        "Total number of queries whose result may lack acknowledged records, because the database that answered is behind.",
    ),
    counter(
        "logweir_queries_canceled_total",
        "Total number of queries canceled in the database because the client disconnected, the time limit \
         passed, or flushes fell behind.",
    ),
    counter(
        "logweir_queries_partial_total",
        "Total number of queries answered from the hot cache alone because the database was unavailable or not prepared.",
    ),
    counter("logweir_queries_rejected_total", "Total number of rejected queries, by reason."),
    counter(
        "logweir_query_cache_errors_total",
        "Total number of queries answered without the hot cache because it could not be read, by reason.",
    ),
    histogram("logweir_query_duration_seconds", "Duration of queries, in seconds, by kind."),
    counter(
        "logweir_query_result_cache_hits_total",
        "Total number of histogram queries answered from the result cache.",
    ),
    counter(
        "logweir_query_throttle_pauses_total",
        "Total number of pauses of running queries while the database was behind the intake.",
    ),
    counter("logweir_received_bytes_total", "Total size of received request and source bodies, in bytes."),
    counter("logweir_received_records_total", "Total number of received records."),
    counter(
        "logweir_records_ahead_total",
        "Total number of received records that are dated more than a day ahead of this process's clock, by format.",
    ),
    counter(
        "logweir_records_beyond_retention_total",
        "Total number of received records by format that are older than database.retention_days, so that the next maintenance deletes them.",
    ),
    counter("logweir_rejected_requests_total", "Total number of rejected requests and source batches, by reason."),
    counter(
        "logweir_sanitized_values_total",
        "Total number of values changed so that the database can store them, by cause.",
    ),
    gauge("logweir_shutdown_phase", "Shutdown phase: 0 accepting, 1 closing, 2 draining, 3 persisting, 4 done."),
    counter("logweir_stage_busy_seconds_total", "Total time that a stage spent processing messages, in seconds."),
    counter("logweir_stage_handled_total", "Total number of messages processed by a stage."),
    counter("logweir_stage_restarts_total", "Total number of restarts of a stage, by cause: panic or stall."),
    counter(
        "logweir_store_clamped_timestamps_total",
        "Total number of records whose time was outside the years 1 to 9999 and was moved to the nearest limit.",
    ),
    counter("logweir_store_dead_letters_purged_total", "Total number of purged dead letters."),
    counter("logweir_store_dead_letters_total", "Total number of dead-lettered records, by SQLSTATE."),
    counter("logweir_store_errors_total", "Total number of failed flushes, by error class."),
    gauge(
        "logweir_store_fallback",
        "Whether records go to another table because a session holds a lock on this one (logs or one of its chunks, or \
         logweir_late): 1 yes, 0 no.",
    ),
    histogram(
        "logweir_store_flush_seconds",
        "Duration of a flush of one batch to the database, in seconds, including failed ones.",
    ),
    counter("logweir_store_indexes_built_total", "Total number of indexes built on closed partitions."),
    counter(
        "logweir_store_late_moved_rows_total",
        "Total number of late records that moved from table logweir_late into chunks (TimescaleDB).",
    ),
    gauge(
        "logweir_store_late_overdue_seconds",
        "Seconds for which the longest-waiting late record has been overdue to move from table logweir_late into its chunk (TimescaleDB); 0 if none is.",
    ),
    gauge(
        "logweir_store_late_rows",
        "Number of records in table logweir_late (TimescaleDB); an estimate if there are more than 10000.",
    ),
    counter(
        "logweir_store_partition_moved_rows_total",
        "Total number of records that moved from former partitions into a hypertable (TimescaleDB).",
    ),
    counter("logweir_store_partitions_dropped_total", "Total number of partitions and chunks dropped by retention."),
    counter(
        "logweir_store_retention_deleted_rows_total",
        "Total number of rows deleted by retention, by table. Those of dropped partitions and chunks are counted for the table logs, from the counters per minute.",
    ),
    counter(
        "logweir_store_rewinds_total",
        "Total number of times that a lane found the database restored to an earlier time and read the journal again.",
    ),
    counter("logweir_store_rows_total", "Total number of rows committed to the database, by lane."),
    gauge("logweir_store_sqlite_wal_bytes", "Size of the write-ahead log of the SQLite file, in bytes."),
    counter(
        "logweir_store_terminated_sessions_total",
        "Total number of database sessions of an earlier owner that were terminated because they held a lane's lock.",
    ),
    counter("logweir_store_transactions_total", "Total number of committed flush transactions."),
    gauge("logweir_syslog_connections", "Number of open syslog connections, by component."),
    gauge("logweir_tail_buffer_bytes", "Size of the recent records buffered for live tails, in bytes."),
    gauge("logweir_tail_clients", "Number of open live tails."),
    counter(
        "logweir_tail_dropped_records_total",
        "Total number of matching records not sent to a live tail, by reason. Each tail is notified of its own.",
    ),
    counter("logweir_tail_records_total", "Total number of records sent to live tails."),
    counter(
        "logweir_tail_stalled_clients_total",
        "Total number of live tails closed because the client stopped reading.",
    ),
    counter(
        "logweir_tls_certificate_reloads_total",
        "Total number of reloads of changed TLS certificates, by listener and outcome.",
    ),
    gauge("logweir_uptime_seconds", "Time since the process started, in seconds."),
    gauge("logweir_volume_free_bytes", "Free space on the journal's volume, in bytes."),
];

/// Registers the descriptions with the recorder.
pub fn describe() {
    for Metric { name, kind, help } in METRICS {
        match kind {
            MetricKind::Counter => metrics::describe_counter!(*name, *help),
            MetricKind::Gauge => metrics::describe_gauge!(*name, *help),
            MetricKind::Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use regex::Regex;

    use super::*;

    /// Names in the code that look like metrics but are not: crates and a table.
    const OTHER_NAMES: [&str; 15] = [
        "logweir_engine",
        "logweir_store",
        "logweir_tls",
        "logweir_schema_history",
        "logweir_clock",
        "logweir_next_partitions",
        "logweir_writer",
        "logweir_takeover",
        "logweir_lane",
        "logweir_replayed",
        "logweir_dead_letter",
        "logweir_idempotency_key",
        "logweir_late",
        "logweir_logs",
        "logweir_partitions",
    ];

    /// Calls `visit` with the text of every Rust file below `dir` except this one.
    fn sources(dir: &Path, visit: &mut impl FnMut(&str)) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, visit);
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("metric_help.rs") {
                visit(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    fn all_sources(visit: &mut impl FnMut(&str)) {
        // Every crate that records metrics.
        for package in ["../../engine/src", "../store/src", "../tls/src", "../cli/src", "src"] {
            sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(package), visit);
        }
    }

    #[test]
    fn every_metric_is_described_and_every_description_is_used() {
        let name = Regex::new("\"(logweir_[a-z_]+)\"").unwrap();
        let mut used = BTreeSet::new();
        all_sources(&mut |text| used.extend(name.captures_iter(text).map(|found| found[1].to_owned())));
        OTHER_NAMES.iter().for_each(|name| _ = used.remove(*name));
        let described: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
        assert_eq!(used, described);
        assert!(METRICS.is_sorted_by_key(|metric| metric.name), "the list is not sorted");
    }

    #[test]
    fn each_metric_is_recorded_as_the_kind_that_is_described() {
        let recorded = Regex::new("(counter|gauge|histogram)!?\\(\\s*\"(logweir_[a-z_]+)\"").unwrap();
        let mut checked = BTreeSet::new();
        all_sources(&mut |text| {
            for found in recorded.captures_iter(text) {
                let metric = METRICS.iter().find(|metric| metric.name == &found[2]).unwrap();
                let kind = format!("{:?}", metric.kind).to_lowercase();
                assert_eq!(&found[1], kind, "{}", metric.name);
                checked.insert(metric.name);
            }
        });
        let unchecked: Vec<_> = METRICS.iter().filter(|metric| !checked.contains(metric.name)).collect();
        assert!(unchecked.is_empty(), "cannot tell how these are recorded: {unchecked:?}");
    }

    #[test]
    fn names_and_help_texts_follow_the_prometheus_conventions() {
        for Metric { name, kind, help } in METRICS {
            let is_counter = *kind == MetricKind::Counter;
            assert_eq!(name.ends_with("_total"), is_counter, "{name}: only counters end in _total");
            let base = name.strip_suffix("_total").unwrap_or(name);
            for unit in ["seconds", "bytes"] {
                let parts: Vec<&str> = base.split('_').collect();
                let misplaced = parts.contains(&unit) && !base.ends_with(unit);
                assert!(!misplaced, "{name}: the unit comes last");
            }
            assert!(!["_ms", "_us", "_kb", "_mib"].iter().any(|unit| base.ends_with(unit)), "{name}: not a base unit");
            assert!(help.starts_with(char::is_uppercase) && help.ends_with('.'), "{name}: {help}");
            assert_eq!(help.starts_with("Total "), is_counter, "{name}: {help}");
        }
    }
}
