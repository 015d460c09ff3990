//! Alerts of the real program: they fire, notify and resolve; late records are counted and stored.

#![allow(clippy::unwrap_used)] // clippy exempts test functions but not their helpers

use std::time::{Duration, Instant};

use logweir_tests::clock::Clock;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_sqlite};
use logweir_tests::webhook::Webhook;
use serde_json::Value;

/// Windows short enough for a test, and longer than a machine stalls: one without records resolves an alert.
const SHORT: &str = "window = '6s'\nevery = '500ms'\ngrace = '500ms'\n";

fn alerts(s: &mut Scenario, text: &str) {
    let file = s.dir.join("alerts.toml");
    std::fs::write(&file, text).unwrap();
    s.set("config", file.display());
}

fn send(s: &mut Scenario, line: &str) {
    assert_eq!(s.server().post("/ingest", "application/x-ndjson", line).unwrap().status, 200);
}

fn alert(s: &mut Scenario, name: &str) -> Value {
    let answer = s.server().data("/api/v1/alerts").unwrap().json();
    let alerts = answer["alerts"].as_array().unwrap();
    alerts.iter().find(|alert| alert["name"] == name).unwrap().clone()
}

/// Sends `lines` repeatedly until `done` returns a value. Each request has all of them, several times: however long it
/// takes, a window has as many as a rule asks for, in their proportion.
fn send_until<T>(s: &mut Scenario, lines: &[&str], mut done: impl FnMut(&mut Scenario) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done(s) {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out: {}", s.server().log_text());
        send(s, &format!("{}\n", lines.join("\n")).repeat(4));
        std::thread::sleep(Duration::from_millis(20));
    }
}

const GOOD: &str = r#"{"level":"info","service":"cart","msg":"sold"}"#;
const BAD: &str = r#"{"level":"error","service":"cart","msg":"card declined"}"#;
const OTHER: &str = r#"{"level":"error","service":"mail","msg":"no such user"}"#;

#[test]
fn an_alert_fires_notifies_and_resolves_and_delivery_is_retried() {
    let story = |s: &mut Scenario| {
        let hook = Webhook::start(vec![503, 500]);
        let rule = "query = 'service:cart severity>=error'\nabove = 3\n";
        alerts(s, &format!("[alerts.declined]\n{rule}{SHORT}"));
        s.set("alerting.webhook_url", hook.url());
        s.start();
        assert_eq!(alert(s, "declined")["state"], "inactive");
        // Rejected twice: retried until it is accepted.
        for status in [503, 500, 200] {
            let (answered, notice) = send_until(s, &[BAD, OTHER], |_| hook.try_next());
            assert_eq!((answered, &notice["state"], &notice["alert"]), (status, &"firing".into(), &"declined".into()));
            assert!(notice["value"].as_f64().unwrap() > 3.0, "{notice}");
            assert!(notice["text"].as_str().unwrap().starts_with("FIRING declined: count is "), "{notice}");
        }
        assert_eq!(alert(s, "declined")["state"], "firing");
        assert_eq!(s.server().metric("logweir_alert_state", "declined"), 2.0);
        // Nothing is sent any more: it resolves.
        let (_, notice) = hook.next();
        assert_eq!(notice["state"], "resolved");
        let status = alert(s, "declined");
        assert_eq!((&status["state"], &status["last_error"]), (&"inactive".into(), &Value::Null));
        assert!(status["last_notified"].is_string());
        assert_eq!(s.server().metric("logweir_alert_notifications_total", "failed"), 2.0);
    };
    on_sqlite("alert", story);
    on_postgres("alert", story);
}

#[test]
fn a_ratio_counts_only_its_base_and_fires_after_a_kill_too() {
    on_sqlite("alert ratio", |s| {
        let hook = Webhook::start(vec![]);
        let rule = "query = 'severity>=error'\nof = 'service:cart'\nmeasure = 'ratio'\nabove = '0.4'\nfor = '500ms'\n";
        alerts(s, &format!("[alerts.share]\n{rule}{SHORT}webhook = '{}'\n", hook.url()));
        s.start();
        // A quarter of the cart's records; those of other services do not count.
        send_until(s, &[GOOD, BAD, GOOD, GOOD, OTHER, OTHER], |s| {
            let value = alert(s, "share")["value"].as_f64()?;
            (value > 0.0).then_some(())
        });
        assert_eq!(alert(s, "share")["state"], "inactive");
        assert!(hook.try_next().is_none());
        s.server().kill();
        s.start();
        let (_, notice) = send_until(s, &[GOOD, BAD], |_| hook.try_next());
        assert_eq!((&notice["state"], &notice["measure"]), (&"firing".into(), &"ratio".into()));
        let value = notice["value"].as_f64().unwrap();
        assert!(value > 0.4 && value <= 1.0, "{notice}");
    });
}

/// Counts are not persisted: a restart begins with empty windows and every alert inactive.
#[test]
fn after_a_restart_a_firing_is_notified_again_and_a_resolution_during_it_is_not() {
    on_sqlite("alert restart", |s| {
        let hook = Webhook::start(vec![]);
        let rule = "query = 'service:cart severity>=error'\nabove = 3\n";
        alerts(s, &format!("[alerts.declined]\n{rule}{SHORT}webhook = '{}'\n", hook.url()));
        s.start();
        let (_, notice) = send_until(s, &[BAD], |_| hook.try_next());
        assert_eq!(notice["state"], "firing");
        s.server().kill();
        hook.drain(); // it may have resolved, and fired again, before the kill
        s.start();
        let started = jiff::Timestamp::now();
        assert_eq!(alert(s, "declined")["state"], "inactive");
        assert_eq!(alert(s, "declined")["last_notified"], Value::Null);
        // Two windows later it was evaluated more than once, without a notification.
        let deadline = Instant::now() + PATIENCE;
        let evaluated = |s: &mut Scenario| alert(s, "declined")["last_evaluated"].as_str().map(ToOwned::to_owned);
        let two_windows = jiff::SignedDuration::from_secs(12);
        while evaluated(s).is_none_or(|at| at.parse::<jiff::Timestamp>().unwrap() < started + two_windows) {
            assert!(Instant::now() < deadline, "the alert is not evaluated");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!((alert(s, "declined")["state"].as_str(), hook.try_next()), (Some("inactive"), None));
        let (_, notice) = send_until(s, &[BAD], |_| hook.try_next());
        assert_eq!(notice["state"], "firing", "notified again");
    });
}

#[test]
fn a_late_record_is_counted_and_stored() {
    on_sqlite("alert late", |s| {
        alerts(s, &format!("[alerts.all]\nquery = ''\nabove = 1000000\n{SHORT}"));
        s.start();
        // Once a window has closed, a record of an hour ago is late.
        s.wait("a window has closed", |s| {
            let url = format!("http://{}/api/v1/alerts", s.settings["http.listen"]);
            let text = logweir_tests::client::agent(PATIENCE).get(&url).call().unwrap().body_mut().read_to_string();
            text.unwrap().contains("\"last_evaluated\":\"")
        });
        let hour_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
        send(s, &format!(r#"{{"ts":"{hour_ago}","msg":"late"}}"#));
        let deadline = Instant::now() + PATIENCE;
        while s.server().metric("logweir_alert_late_records_total", "all") < 1.0 {
            assert!(Instant::now() < deadline, "the late record is not counted");
        }
        s.wait("the late record is stored", |s| {
            s.store.rows("SELECT message FROM logs") == Ok(vec![vec!["late".to_owned()]])
        });
    });
}

#[test]
fn a_clock_that_goes_ahead_and_back_does_not_silence_an_alert() {
    let clock = match Clock::new() {
        Ok(clock) => clock,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    on_sqlite("clock and alerts", |s| {
        alerts(s, &format!("[alerts.bad]\nquery = 'severity>=error'\nabove = 0\n{SHORT}"));
        s.environment.extend(clock.whole_environment());
        s.start();
        let fires = |s: &mut Scenario| (alert(s, "bad")["state"] == "firing").then_some(());
        let is_calm = |s: &mut Scenario| (alert(s, "bad")["state"] == "inactive").then_some(());
        send_until(s, &[BAD], fires);
        // Received with the time of tomorrow: `early` for the windows.
        clock.set("+1d");
        let tomorrow = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string()[..10].to_owned();
        let mut sent_tomorrow = 0;
        send_until(s, &[BAD], |s| {
            let parsed = s.server().post("/ingest?debug=1", "application/json", BAD).unwrap().body;
            sent_tomorrow += u32::from(parsed.contains(&tomorrow));
            (sent_tomorrow > 20).then_some(())
        });
        clock.set("+0s");
        send_until(s, &[GOOD], is_calm);
        send_until(s, &[BAD], fires);
    });
}
