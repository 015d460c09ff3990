//! What each metric says, in one list: `/metrics` shows it, and a test sees to it that none is missing.

/// Name and help text of every metric.
pub const METRICS: &[(&str, &str)] = &[
    ("logweir_alert_late_records_total", "Records that came after their window was closed; they are stored."),
    ("logweir_alert_missed_records_total", "Records that alerts could not look at."),
    ("logweir_alert_notifications_total", "Notifications to webhooks, by outcome."),
    ("logweir_alert_state", "How an alert stands: 0 inactive, 1 pending, 2 firing."),
    ("logweir_alert_value", "What an alert's last window has given."),
    ("logweir_breaker_state", "A circuit breaker: 0 closed, 1 half open, 2 open."),
    ("logweir_build_info", "Always 1; its label says the version."),
    ("logweir_cache_applied_records_total", "Records written to the hot cache."),
    ("logweir_cache_apply_seconds", "How long writing a batch to the hot cache takes."),
    (
        "logweir_cache_recent_skipped_records_total",
        "Records that the windows of recent records left out at a high rate.",
    ),
    ("logweir_discarded_records_total", "Records that were not taken, by component and reason."),
    ("logweir_files_checkpoint_errors_total", "Times that the offsets of tailed files could not be written."),
    ("logweir_files_removed_unread_total", "Tailed files that went away before they were read to their end."),
    ("logweir_files_ignored_duplicates", "Files that are not tailed because they begin like another one."),
    ("logweir_files_watched", "Files that are tailed."),
    ("logweir_gateway_lookup_errors_total", "Lookups of processors' names that failed."),
    ("logweir_gateway_processors", "Processors that are asked, and those that are not because they failed too often."),
    ("logweir_gateway_requests_total", "Requests to processors, by outcome."),
    ("logweir_gateway_tail_reconnects_total", "Times that a processor's live tail broke and was asked for again."),
    ("logweir_http_inflight_bytes", "Bytes of request bodies that are being read."),
    ("logweir_http_request_duration_seconds", "How long requests take, by route."),
    ("logweir_http_requests_total", "Requests, by route and status."),
    ("logweir_journal_appended_bytes_total", "Bytes appended to the journal."),
    ("logweir_journal_appended_frames_total", "Frames appended to the journal."),
    ("logweir_journal_bytes", "Bytes of all files of the journal."),
    ("logweir_journal_damaged_frames_total", "Frames that were damaged on disk and kept aside."),
    ("logweir_journal_disk_full_failures_total", "Appends that failed because the disk was full."),
    ("logweir_journal_fsync_seconds", "How long an fsync of the journal takes."),
    ("logweir_journal_group_frames", "Frames that one fsync covers."),
    ("logweir_journal_quarantine_bytes", "Bytes of damaged and torn pieces that are kept aside."),
    ("logweir_journal_queue_bytes", "Bytes that wait for the journal's writer."),
    ("logweir_journal_quota_bytes", "Bytes that the journal may have."),
    ("logweir_journal_recovery_seconds", "How long reading the journal took at start."),
    ("logweir_journal_rejected_appends_total", "Appends that the journal refused, by reason."),
    (
        "logweir_journal_retained_bytes",
        "Bytes of the journal that the database has, kept in case it goes back in time; they give way.",
    ),
    ("logweir_journal_segments", "Segment files of the journal."),
    ("logweir_journal_torn_bytes_total", "Bytes of a torn end that were cut off and kept aside."),
    ("logweir_journal_writable", "Whether the journal takes records: 1 or 0."),
    ("logweir_lane_accepted_records_total", "Records of a lane that the journal was given."),
    ("logweir_lane_backlog_records", "Records of a lane that only the journal has."),
    ("logweir_lane_committed_records_total", "Records of a lane in the database."),
    ("logweir_lane_dead_lettered_records_total", "Records of a lane that the database would not take."),
    (
        "logweir_lane_lost_records_total",
        "Records of a lane that the journal no longer had, each range named in the log.",
    ),
    ("logweir_lane_resets_total", "Lanes that had to begin anew because the database did not know them."),
    ("logweir_mailbox_capacity_bytes", "Bytes that a mailbox may hold."),
    ("logweir_mailbox_capacity_messages", "Messages that a mailbox may hold."),
    ("logweir_mailbox_depth_bytes", "Bytes in a mailbox."),
    ("logweir_mailbox_depth_messages", "Messages in a mailbox."),
    ("logweir_mailbox_discarded_total", "Messages that were in a mailbox when its stage ended."),
    ("logweir_mailbox_full_total", "Messages that found no room in a mailbox."),
    ("logweir_mailbox_wait_seconds_total", "Time that senders have waited for room in a mailbox."),
    ("logweir_network_errors_total", "Connections that failed, by component."),
    ("logweir_parse_errors_total", "Lines that were kept whole because their format was not understood."),
    ("logweir_shutdown_phase", "The way down: 0 accepting, 1 closing, 2 draining, 3 persisting, 4 done."),
    (
        "logweir_queries_cancelled_total",
        "Queries that were ended in the database: nobody waited for them any more, or the rows had fallen behind.",
    ),
    (
        "logweir_query_result_cache_hits_total",
        "Histograms that were not counted again because nothing had come into their range.",
    ),
    ("logweir_queries_partial_total", "Queries answered from the cache alone because the database was away."),
    ("logweir_queries_rejected_total", "Queries that were refused, by reason."),
    ("logweir_query_cache_errors_total", "Times that a query could not read the cache and did without it."),
    ("logweir_query_duration_seconds", "How long queries take, by kind."),
    ("logweir_query_throttle_pauses_total", "Rests of readers while the database was behind what came in."),
    ("logweir_received_bytes_total", "Bytes of bodies taken in."),
    ("logweir_received_records_total", "Records taken in."),
    ("logweir_rejected_requests_total", "Requests that were refused, by reason."),
    (
        "logweir_sanitized_values_total",
        "Values that were changed so that the database can hold them, by what was wrong.",
    ),
    ("logweir_stage_busy_seconds_total", "Time that a stage has worked."),
    ("logweir_stage_handled_total", "Messages that a stage has handled."),
    ("logweir_stage_restarts_total", "Times that a stage was built anew after a panic or a stall."),
    ("logweir_store_dead_letters_purged_total", "Dead letters that were removed for good."),
    ("logweir_store_dead_letters_total", "Records that the database would not take, by reason."),
    ("logweir_store_errors_total", "Errors of the database, by class."),
    ("logweir_store_flush_seconds", "How long a transaction with a batch takes."),
    ("logweir_store_indexes_built_total", "Indexes that were built on partitions of days that are over."),
    ("logweir_store_partitions_dropped_total", "Partitions dropped because of their age."),
    ("logweir_store_retention_deleted_total", "Rows deleted because of their age."),
    (
        "logweir_store_rewinds_total",
        "Times that a lane found the database at an earlier time, and read the journal again.",
    ),
    ("logweir_store_rows_total", "Rows committed."),
    ("logweir_store_terminated_sessions_total", "Sessions of former owners that held a lane's row and were ended."),
    ("logweir_store_transactions_total", "Transactions, by outcome."),
    (
        "logweir_store_clamped_timestamps_total",
        "Records whose time no partition can hold; it was moved to the nearest.",
    ),
    ("logweir_syslog_connections", "Open syslog connections."),
    ("logweir_tail_buffer_bytes", "Bytes of the newest records that are kept for live tails."),
    ("logweir_tail_clients", "Live tails that are open."),
    ("logweir_tail_dropped_records_total", "Records that a live tail was not shown, by reason; each tail is told."),
    ("logweir_tail_records_total", "Records sent to live tails."),
    ("logweir_tail_stalled_clients_total", "Live tails that were ended because their client took nothing any more."),
    (
        "logweir_tls_certificate_reloads_total",
        "Certificates that have changed on disk, by whose they are and whether they could be used.",
    ),
    ("logweir_uptime_seconds", "Time since the start."),
    ("logweir_volume_free_bytes", "Bytes that the journal's volume has left."),
];

/// Tells the recorder. The kind of a description plays no part in what `/metrics` shows.
pub fn describe() {
    for (name, help) in METRICS {
        metrics::describe_gauge!(*name, *help);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Names in our code that begin like a metric's and are a table's.
    const TABLES: [&str; 1] = ["logweir_schema_history"];

    fn names_in(dir: &Path, names: &mut BTreeSet<String>) {
        let name = regex::Regex::new("\"(logweir_[a-z_]+)\"").unwrap();
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                names_in(&path, names);
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("metric_help.rs") {
                let text = fs::read_to_string(&path).unwrap();
                names.extend(name.captures_iter(&text).map(|found| found[1].to_owned()));
            }
        }
    }

    #[test]
    fn every_metric_has_a_help_text_and_every_text_its_metric() {
        let mut names = BTreeSet::new();
        for package in ["src", "../engine/src"] {
            names_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join(package), &mut names);
        }
        TABLES.iter().for_each(|table| _ = names.remove(*table));
        let described: BTreeSet<String> = METRICS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names, described);
        assert!(METRICS.is_sorted_by_key(|(name, _)| name));
    }
}
