//! `ALTER EXTENSION timescaledb UPDATE`, as each newer image needs it, while records come in.

use logweir_tests::client::Load;
use logweir_tests::process::Server;
use logweir_tests::scenario::PATIENCE;

use super::{caught_up, found, maintain_again, number, on_timescale, start, step, told};

/// The versions that this server can create, the default one last.
const VERSIONS: &str = "SELECT version FROM pg_available_extension_versions WHERE name = 'timescaledb' \
    AND string_to_array(split_part(version, '-', 1), '.')::int[] < ANY (SELECT string_to_array(split_part(default_version, \
    '-', 1), '.')::int[] FROM pg_available_extensions WHERE name = 'timescaledb') \
    ORDER BY string_to_array(split_part(version, '-', 1), '.')::int[]";

#[test]
fn an_update_of_the_extension_under_load_loses_and_doubles_nothing() {
    on_timescale("extension update", &[], |s| {
        let versions = s.store.rows(VERSIONS).unwrap();
        let Some([former]) = versions.first().map(Vec::as_slice) else {
            return told("extension update: skipped: the server of LOGWEIR_TEST_PG_BIN has one version of TimescaleDB");
        };
        s.postgres().execute(&format!("CREATE EXTENSION timescaledb VERSION '{former}'"));
        start(s);
        let insert =
            "INSERT INTO logs SELECT n, now() - n * interval '1 day', 9, 'old', 'h', 'm', NULL FROM generate_series";
        s.postgres().execute(&format!("{insert}(2, 4) n"));
        s.postgres().execute("SELECT compress_chunk(c) FROM show_chunks('logs', older_than => interval '1 day') c");
        let compressed = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed";
        assert_eq!(number(&s.store, compressed), 3);

        let load = s.load(Load::default());
        s.acknowledged(500);
        s.stored();
        // It must be the first statement of its session.
        s.postgres().execute("ALTER EXTENSION timescaledb UPDATE");
        s.acknowledged(2_000);
        load.stop();
        // Lanes whose sessions have the former library open others by themselves.
        caught_up(s.server());

        let now = s.store.rows("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'").unwrap();
        assert_ne!(now[0][0], *former);
        let is_told = |server: &Server| {
            server.status()["store_version"].as_str().is_some_and(|version| version.starts_with(&now[0][0]))
        };
        s.server().until("the version in the status", PATIENCE, is_told).unwrap();
        maintain_again(s);
        for name in ["policies", "late_records"] {
            assert_eq!(step(s.server(), name), None, "{name}");
        }
        assert_eq!((found(s.server(), "service:old"), number(&s.store, compressed)), (3, 3));
        // The chunks that the former version compressed still take records.
        s.postgres().execute(&format!("{insert}(2, 4) n"));
        assert_eq!(found(s.server(), "service:old"), 6);
        s.postgres().execute("DELETE FROM logs WHERE service = 'old'");
        let counted = number(&s.store, "SELECT sum(records) FROM log_volume");
        assert_eq!(s.store.count().unwrap(), counted.unsigned_abs());
        s.assert_contract();
    });
}
