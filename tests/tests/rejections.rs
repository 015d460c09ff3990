//! What the database refuses ends by itself: a batch that is too much for it, a row that a trigger does not accept or
//! that ends the connection, and a spell in which everything is refused. In the end each acknowledged record is in the
//! table or among the dead letters, once.

// Test helpers unwrap like tests.
#![allow(missing_docs, clippy::unwrap_used)]

use logweir_tests::client::Load;
use logweir_tests::process::Server;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres};

/// Starts the server, and creates a trigger on the table of the logs when it exists.
fn start(s: &mut Scenario, function: &str, trigger: &str) {
    s.set("lanes", 1);
    s.start();
    send(s, 1);
    s.stored();
    refuse(s, function, trigger);
}

fn refuse(s: &Scenario, function: &str, trigger: &str) {
    let function = format!("CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {function} $$");
    s.postgres().execute(&function);
    s.postgres().execute(&format!("CREATE TRIGGER refuse {trigger} EXECUTE FUNCTION refuse()"));
}

/// One request, so that its records are one frame of the journal.
fn send(s: &Scenario, records: u32) {
    s.load(Load { clients: 1, records, posts_max: 1, ..Load::default() }).finish();
}

const EACH_ROW: &str = "BEFORE INSERT ON logs FOR EACH ROW";
const EACH_STATEMENT: &str = "AFTER INSERT ON logs REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT";

fn dead_letters(s: &Scenario) -> Vec<String> {
    let rows = s.store.rows("SELECT sqlstate FROM logweir_dead_letter ORDER BY id").expect("the table exists");
    rows.into_iter().flatten().collect()
}

#[test]
fn a_batch_that_takes_longer_than_the_statement_timeout_is_divided() {
    on_postgres("slow trigger", |s| {
        s.set("database.statement_timeout_ms", 1000);
        start(s, "BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END", EACH_ROW);
        send(s, 4000);
        s.wait("all is stored", |s| s.store.count() == Ok(4001));
        s.assert_contract();
        assert!(dead_letters(s).is_empty(), "{:?}", dead_letters(s));
    });
}

#[test]
fn a_row_that_a_trigger_refuses_is_a_dead_letter_and_its_neighbors_are_stored() {
    on_postgres("a trigger that raises", |s| {
        // The key of a record is in its message.
        let raise = "BEGIN IF NEW.message LIKE '%-177/%' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END";
        start(s, raise, EACH_ROW);
        send(s, 400);
        s.wait("the neighbors are stored", |s| s.store.count() == Ok(400));
        s.wait("a dead letter", |s| dead_letters(s) == ["P0001"]);
        s.assert_contract();
    });
}

/// `act` happens with one record of eight, whatever it is stored with.
fn one_record_fails_as_if_it_were_temporary(name: &str, act: &str) {
    on_postgres(name, |s| {
        start(s, &format!("BEGIN IF NEW.message LIKE '%-5/%' THEN {act}; END IF; RETURN NEW; END"), EACH_ROW);
        send(s, 8);
        let patience = 2 * PATIENCE; // it is tried often, at growing intervals, before it is suspected
        let done = |s: &Scenario| s.store.count() == Ok(8) && dead_letters(s) == ["interrupted"];
        s.wait_within("the neighbors are stored, and it is a dead letter", patience, done);
        s.assert_contract();
    });
}

#[test]
fn a_record_that_fails_for_ever_with_a_temporary_error_is_a_dead_letter() {
    one_record_fails_as_if_it_were_temporary("40001", "RAISE EXCEPTION 'not now' USING ERRCODE = '40001'");
}

#[test]
fn a_record_that_always_ends_the_connection_is_a_dead_letter() {
    one_record_fails_as_if_it_were_temporary("terminated", "PERFORM pg_terminate_backend(pg_backend_pid())");
}

#[test]
fn a_batch_that_takes_too_much_memory_or_too_many_days_is_divided() {
    for (code, limit) in [("53200", "count(*) > 100"), ("54000", "count(*) > 5"), ("XX000", "count(*) > 30")] {
        on_postgres(&format!("only together: {code}"), |s| {
            let raise = format!(
                "BEGIN IF (SELECT {limit} FROM new_rows) THEN RAISE EXCEPTION 'too much' USING ERRCODE = '{code}'; \
                 END IF; RETURN NULL; END"
            );
            start(s, &raise, EACH_STATEMENT);
            send(s, 300);
            s.wait("all is stored", |s| s.store.count() == Ok(301));
            s.assert_contract();
            assert!(dead_letters(s).is_empty(), "{:?}", dead_letters(s));
        });
    }
}

/// Gives the processes of the server from now on no more memory than a lane's has now, and `spare_bytes`.
fn limit_memory(s: &Scenario, spare_bytes: u64) {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^logweir/[0-9a-f]{32}/0/[0-9]+$'";
    let lane: i32 = s.store.rows(sql).unwrap()[0][0].parse().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{lane}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size_kb: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = (size_kb << 10) + spare_bytes;
    // As the server's user: a container's root may not change the limits of others.
    let text = format!("for pid in {} {lane}; do prlimit --pid $pid --as={limit}: || exit 1; done", s.postgres().pid());
    let mut limiting = s.postgres().script(&text, &[], &s.dir.join("prlimit.log"));
    assert!(limiting.wait().unwrap().success());
}

#[test]
fn a_batch_for_which_the_server_has_no_memory_is_divided() {
    on_postgres("out of memory", |s| {
        start(
            s,
            "DECLARE much text[]; BEGIN much := (SELECT array_agg(repeat(message, 300)) FROM new_rows); RETURN NULL; END",
            EACH_STATEMENT,
        );
        send(s, 10);
        s.wait("the lane is connected", |s| s.store.count() == Ok(11));
        limit_memory(s, 48 << 20);
        send(s, 4000);
        s.wait("all is stored", |s| s.store.count() == Ok(4011));
        let log = std::fs::read_to_string(s.postgres().socket_dir().join("log")).unwrap();
        assert!(log.contains("ERROR:  out of memory"), "{log}");
        s.assert_contract();
        assert!(dead_letters(s).is_empty(), "{:?}", dead_letters(s));
    });
}

#[test]
fn a_record_beyond_a_limit_of_the_server_is_a_dead_letter() {
    let arguments = "CREATE FUNCTION many() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF length(NEW.message) > 9000 THEN \
                     EXECUTE 'SELECT concat(' || repeat('1, ', 120) || '1)'; END IF; RETURN NEW; END$$; \
                     CREATE TRIGGER many BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION many()";
    for (what, sql, code) in [
        ("index row", "CREATE INDEX ON logs (message)", "54000"),
        ("row is too big", "ALTER TABLE logs ALTER message SET STORAGE PLAIN", "54000"),
        ("more than 100 arguments", arguments, "54023"),
    ] {
        on_postgres(what, |s| {
            s.set("lanes", 1);
            s.start();
            send(s, 1);
            s.stored();
            s.postgres().execute(sql);
            send(s, 20);
            s.load(Load { clients: 1, records: 2, message_bytes: 10_000, posts_max: 1, ..Load::default() }).finish();
            send(s, 20);
            s.wait("the others are stored", |s| s.store.count() == Ok(41));
            s.wait("dead letters", |s| dead_letters(s) == [code; 2]);
            let reason = &s.store.rows("SELECT reason FROM logweir_dead_letter").unwrap()[0][0];
            assert!(reason.contains(what), "{reason}");
            s.assert_contract();
        });
    }
}

#[test]
fn a_spell_in_which_every_row_is_refused_stops_the_lane_and_dead_letters_nothing() {
    on_postgres("every row is refused", |s| {
        start(s, "BEGIN RAISE EXCEPTION 'no rows today'; END", EACH_ROW);
        send(s, 300);
        let stopped = |server: &Server| server.status()["lanes"][0]["store"]["state"] == "stopped";
        s.server().until("the lane is stopped", PATIENCE, stopped).expect("it keeps running");
        send(s, 200);
        s.postgres().execute("DROP TRIGGER refuse ON logs");
        s.wait("all is stored", |s| s.store.count() == Ok(501));
        s.assert_contract();
        assert!(dead_letters(s).is_empty(), "{:?}", dead_letters(s));
        // One more with each ten seconds that it takes.
        let (log, uptime_s) = (s.server().log_text(), s.server().status()["uptime_s"].as_u64().unwrap());
        assert!(log.matches("the lane is stopped").count() as u64 <= 3 + uptime_s / 10, "{log}");
    });
}

#[test]
fn a_lane_that_was_stopped_gets_ahead_although_each_transaction_takes_long() {
    on_postgres("long transactions", |s| {
        s.set("database.statement_timeout_ms", 5000);
        start(s, "BEGIN RAISE EXCEPTION 'no rows today'; END", EACH_ROW);
        send(s, 400);
        let stopped = |server: &Server| server.status()["lanes"][0]["store"]["state"] == "stopped";
        s.server().until("the lane is stopped", PATIENCE, stopped).expect("it keeps running");
        // Nothing is refused any more. More than a quarter of the time limit is needed, however few the records are.
        s.postgres().execute("DROP TRIGGER refuse ON logs");
        refuse(s, "BEGIN PERFORM pg_sleep(1.4); RETURN NULL; END", "AFTER INSERT ON logs FOR EACH STATEMENT");
        s.wait("all is stored", |s| s.store.count() == Ok(401));
        s.assert_contract();
        assert!(dead_letters(s).is_empty(), "{:?}", dead_letters(s));
    });
}
