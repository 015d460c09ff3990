//! TimescaleDB's own jobs and settings beside those of logweir.

use logweir_tests::scenario::{PATIENCE, Scenario};

use super::{
    assert_verified, found, lines, maintain_again, now_us, number, on_timescale, post, start, step, store_days_ago,
    told,
};

const RETENTION_JOBS: &str = "SELECT count(*) FROM timescaledb_information.jobs WHERE proc_name = 'policy_retention'";

#[test]
fn compression_is_set_only_when_no_reader_has_to_wait_for_it() {
    on_timescale("settings", &[], |s| {
        start(s);
        post(s.server(), "committed", &lines("s", [now_us()]));
        // What earlier versions set, which this one replaces.
        s.postgres().execute(
            "ALTER TABLE logs SET (timescaledb.compress, timescaledb.compress_segmentby = 'service', \
             timescaledb.compress_orderby = 'ts')",
        );
        s.stop();
        let dump = s.postgres().session();
        dump.execute("BEGIN; LOCK TABLE logs IN ACCESS SHARE MODE");
        s.start();
        // Meanwhile records are stored, and found, as always.
        for nth in 1..=5 {
            post(s.server(), "committed", &lines("s", [now_us()]));
            assert_eq!(found(s.server(), "service:s"), 1 + nth);
        }
        assert!(step(s.server(), "policies").expect("it waits for the dump").contains("lock timeout"));
        dump.execute("COMMIT");
        maintain_again(s);
        assert_eq!(step(s.server(), "policies"), None);
        let order = "SELECT count(*) FROM timescaledb_information.compression_settings \
                     WHERE orderby_column_index IS NOT NULL AND NOT orderby_asc";
        assert_eq!(number(&s.store, order), 2);
        assert_verified(s);
    });
}

#[test]
fn a_retention_job_that_deletes_what_is_to_be_kept_is_removed_or_told() {
    on_timescale("retention job", &[], |s| {
        s.set("database.retention_days", 90);
        start(s);
        store_days_ago(s.server(), "s", &[0, 40]);
        // As earlier versions made it, with the age that was configured then.
        s.postgres().execute("SELECT add_retention_policy('logs', interval '30 days')");
        maintain_again(s);
        assert_eq!((step(s.server(), "policies"), number(&s.store, RETENTION_JOBS)), (None, 0));
        // Somebody else's, as its configuration shows.
        s.postgres().execute("SELECT add_retention_policy('logs', interval '30 days')");
        s.postgres().execute(
            "SELECT alter_job(job_id, config => config || '{\"note\": \"mine\"}') FROM timescaledb_information.jobs \
             WHERE proc_name = 'policy_retention'",
        );
        let job = s.store.rows("SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_retention'");
        let job = job.unwrap().concat().concat();
        for retention_days in [90, 0] {
            s.set("database.retention_days", retention_days);
            maintain_again(s);
            let told = step(s.server(), "policies").expect("it deletes too much");
            assert!(told.contains(&format!("SELECT delete_job({job})")) && told.contains("30 days"), "{told}");
        }
        s.set("database.retention_days", 20);
        maintain_again(s);
        assert_eq!((step(s.server(), "policies"), number(&s.store, RETENTION_JOBS)), (None, 1));
    });
}

#[test]
fn the_apache_edition_says_once_that_it_does_not_compress() {
    on_timescale("apache told", &[("timescaledb.license", "apache")], |s| {
        start(s);
        assert_eq!(step(s.server(), "policies"), None);
        assert_eq!(s.server().log_text().matches("database.compress_after_days has no effect").count(), 1);
        let version = s.server().status()["store_version"].to_string();
        assert!(version.contains("Apache edition"), "{version}");
        s.set("database.compress_after_days", 0);
        maintain_again(s);
        assert!(!s.server().log_text().contains("database.compress_after_days has no effect"));
    });
}

#[test]
fn a_job_that_is_switched_off_or_hangs_is_told() {
    on_timescale("paused job", &[], |s| {
        start(s);
        s.postgres().execute(
            "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs \
             WHERE proc_name = 'policy_compression'",
        );
        maintain_again(s);
        let told = step(s.server(), "jobs").expect("nothing is compressed");
        assert!(told.contains("switched off") && told.contains("policy_compression"), "{told}");

        // One that waits for a lock, as if since the day before yesterday.
        s.postgres().execute("INSERT INTO logs SELECT 1, now() - interval '30 days', 9, 's', 'h', 'm', NULL");
        let holder = s.postgres().session();
        holder.execute(
            "BEGIN; LOCK TABLE logs IN ACCESS SHARE MODE; DO $$ BEGIN EXECUTE format('LOCK TABLE %s IN SHARE MODE', \
            (SELECT show_chunks('logs', older_than => interval '29 days'))); END $$",
        );
        s.postgres().execute(
            "SELECT alter_job(job_id, scheduled => true, next_start => now()) FROM timescaledb_information.jobs \
             WHERE proc_name = 'policy_compression'",
        );
        let running = "SELECT count(*) FROM timescaledb_information.job_stats s JOIN timescaledb_information.jobs \
                       USING (job_id) WHERE proc_name = 'policy_compression' AND job_status = 'Running'";
        s.wait("the job to run", |s| number(&s.store, running) == 1);
        s.postgres().execute(
            "UPDATE _timescaledb_internal.bgw_job_stat SET last_start = now() - interval '2 days' WHERE job_id = \
             (SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression')",
        );
        maintain_again(s);
        let told = step(s.server(), "jobs").expect("it hangs");
        assert!(told.contains("running for more than a day"), "{told}");
        holder.execute("COMMIT");
    });
}

#[test]
fn rare_severities_are_found_without_decompressing_the_rest() {
    /// The sparse indexes that somebody has named, for columns with these names.
    fn sparse(s: &Scenario, columns: &str) -> i64 {
        number(
            &s.store,
            &format!(
                "SELECT count(*) FROM timescaledb_information.hypertable_compression_settings, jsonb_array_elements(index) e \
                 WHERE hypertable = 'logs'::regclass AND e->>'source' = 'config' AND e->>'column' ~ '^({columns})$'"
            ),
        )
    }
    on_timescale("sparse index", &[], |s| {
        s.set("database.maintenance", "false");
        s.start();
        post(s.server(), "committed", &lines("s", [now_us()]));
        let has = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'hypertable_compression_settings' \
                   AND table_schema = 'timescaledb_information' AND column_name = 'index'";
        if number(&s.store, has) == 0 {
            return told("sparse index: skipped: this version of TimescaleDB has none that can be named");
        }
        // TimescaleDB makes a sparse index for a column that an operator indexes, unless some are named.
        s.postgres().execute("CREATE INDEX mine ON logs (host)");
        s.set("database.maintenance", "true");
        maintain_again(s);
        assert_eq!((step(s.server(), "policies"), sparse(s, "severity")), (None, 0));
        s.postgres().execute("DROP INDEX mine");
        maintain_again(s);
        assert_eq!((step(s.server(), "policies"), sparse(s, "severity")), (None, 1));

        s.postgres().execute(
            "INSERT INTO logs SELECT n, date_trunc('day', now()) - interval '10 days' + n * interval '1 s', \
             CASE n WHEN 25000 THEN 21 ELSE 9 END, 'rare', 'h', 'm', NULL FROM generate_series(1, 50000) n",
        );
        let compress = "SELECT compress_chunk(c, true) FROM show_chunks('logs', older_than => interval '8 days') c";
        s.wait("the chunk to be compressed", |s| s.store.rows(compress).is_ok());
        assert_eq!(found(s.server(), "severity%3E=fatal"), 1);
        let explain =
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT count(*) FROM logs WHERE severity BETWEEN 21 AND 24";
        let plan: Vec<String> = s.store.rows(explain).unwrap().concat();
        let removed =
            plan.iter().filter_map(|line| line.trim().strip_prefix("Rows Removed by Filter: ")?.parse::<u64>().ok());
        // Of fifty batches, the one with that record, and what is not compressed.
        assert!(removed.sum::<u64>() < 2_000, "{plan:#?}");

        s.postgres().execute("ALTER TABLE logs SET (timescaledb.sparse_index = 'bloom(host)')");
        maintain_again(s);
        assert_eq!((step(s.server(), "policies"), sparse(s, "severity"), sparse(s, "host")), (None, 0, 1));
    });
}

#[test]
fn the_first_page_of_a_compressed_day_sorts_nothing() {
    let explain = [
        ("shared_preload_libraries", "timescaledb, auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_timing", "off"),
    ];
    on_timescale("first page", &explain, |s| {
        start(s);
        s.postgres().execute(
            "INSERT INTO logs SELECT n, date_trunc('day', now()) - interval '10 days' + n * interval '1 s', 9, \
             's' || n % 5, 'h', 'm', NULL FROM generate_series(1, 50000) n",
        );
        maintain_again(s);
        let compress = "SELECT compress_chunk(c, true) FROM show_chunks('logs', older_than => interval '8 days') c";
        s.wait("the chunk to be compressed", |s| s.store.rows(compress).is_ok());
        s.postgres().execute("ANALYZE logs");
        let told = s.postgres().log_text().len();
        let path = "/api/v1/query?query=*&start=-20d&limit=100";
        assert_eq!(s.server().data(path).unwrap().json()["records"].as_array().unwrap().len(), 100);
        // The plan of the product's own statement.
        let mut plan = String::new();
        let mut is_there = || {
            let log = s.postgres().log_text();
            let pages = log[told..].split("Query Text:").filter(|plan| plan.contains("id DESC LIMIT"));
            plan = pages.last().unwrap_or_default().to_owned();
            plan.contains("actual rows=")
        };
        let until = std::time::Instant::now() + PATIENCE;
        while !is_there() {
            assert!(std::time::Instant::now() < until, "no plan of a page was logged");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // PostgreSQL 18 counts fractions of rows.
        let rows = |part: &str| part.split([' ', ')']).next()?.parse::<f64>().ok();
        let read = plan.split("(actual rows=").skip(1).filter_map(rows).fold(0.0, f64::max);
        assert!(read > 0.0 && read <= 1_100.0, "a page of 100 records reads {read} rows: {plan}");
    });
}
