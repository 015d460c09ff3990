//! What the database refuses ends by itself: a batch that is too much for it, a row that a trigger does not accept or
//! that ends the connection, and a spell in which everything is refused. In the end each acknowledged record is in the
//! table or among the dead letters, once.

#![allow(missing_docs)]

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
        let log = s.server().log_text();
        assert!(log.matches("the lane is stopped").count() <= 3, "{log}");
    });
}

#[test]
fn a_lane_that_was_stopped_gets_ahead_although_each_transaction_takes_long() {
    on_postgres("long transactions", |s| {
        s.set("database.statement_timeout_ms", 1000);
        start(s, "BEGIN RAISE EXCEPTION 'no rows today'; END", EACH_ROW);
        send(s, 400);
        let stopped = |server: &Server| server.status()["lanes"][0]["store"]["state"] == "stopped";
        s.server().until("the lane is stopped", PATIENCE, stopped).expect("it keeps running");
        // Nothing is refused any more. More than a quarter of the time limit is needed, however few the records are.
        s.postgres().execute("DROP TRIGGER refuse ON logs");
        refuse(s, "BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END", "AFTER INSERT ON logs FOR EACH STATEMENT");
        s.wait("all is stored", |s| s.store.count() == Ok(401));
        s.assert_contract();
        assert!(dead_letters(s).is_empty(), "{:?}", dead_letters(s));
    });
}
