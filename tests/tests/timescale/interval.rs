//! How long chunks are, and records that are compressed while they are stored.

use logweir_tests::client::Load;

use super::{maintain_again, number, on_timescale, start, step};

const INTERVAL: &str = "SELECT extract(epoch FROM time_interval) FROM timescaledb_information.dimensions \
    WHERE hypertable_name = 'logs'";

#[test]
fn the_interval_of_chunks_is_the_keys_and_one_that_somebody_else_has_set_is_kept() {
    on_timescale("chunk interval", &[], |s| {
        s.set("database.chunk_interval_s", 3_600);
        start(s);
        assert_eq!(step(s.server(), "chunk_interval"), None);
        assert_eq!(number(&s.store, INTERVAL), 3_600);
        s.postgres().execute("SELECT set_chunk_time_interval('logs', interval '2 hours')");
        s.set("database.chunk_interval_s", 0);
        maintain_again(s);
        assert_eq!(step(s.server(), "chunk_interval"), None);
        assert_eq!(number(&s.store, INTERVAL), 7_200);
    });
}

#[test]
fn chunks_are_shorter_where_many_records_come_in() {
    on_timescale("chunks by rate", &[("effective_cache_size", "32MB")], |s| {
        s.set("database.retention_days", 30);
        start(s);
        assert_eq!(number(&s.store, INTERVAL), 86_400, "nothing is known yet");
        // About 100 MB of yesterday, beside 32 MB of shared buffers.
        s.postgres().execute(
            "INSERT INTO logs SELECT n, date_trunc('day', now(), 'UTC') - n * interval '1 s', 9, 's', 'h', \
             repeat('x', 1500), NULL FROM generate_series(1, 65000) n",
        );
        maintain_again(s);
        assert_eq!(step(s.server(), "chunk_interval"), None);
        assert_eq!(number(&s.store, INTERVAL), 21_600);
        maintain_again(s);
        assert_eq!(number(&s.store, INTERVAL), 21_600);
    });
}

#[test]
fn records_that_are_compressed_while_they_are_stored_are_each_stored_once() {
    on_timescale("direct compress", &[], |s| {
        start(s);
        assert_eq!(step(s.server(), "policies"), None);
        s.stop();
        s.set("database.direct_compress", true);
        start(s);
        let load = s.load(Load { records: 200, ..Load::default() });
        s.acknowledged(10_000);
        s.server().kill();
        start(s);
        s.acknowledged(10_000);
        load.stop();
        s.assert_contract();
        let setting = "SELECT count(*) FROM pg_settings WHERE name = 'timescaledb.enable_direct_compress_copy'";
        let compressed = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed";
        assert_eq!(number(&s.store, compressed), number(&s.store, setting), "in versions that can");
    });
}
