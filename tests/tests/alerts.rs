//! Alerts through the real program: they fire, are told, and are over; late records count and are stored.

#![allow(clippy::unwrap_used)] // clippy knows test functions as tests, not the helpers between them

use std::time::{Duration, Instant};

use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_sqlite};
use logweir_tests::webhook::Webhook;
use serde_json::Value;

/// Windows short enough for a test.
const SHORT: &str = "window = '2s'\nevery = '500ms'\ngrace = '500ms'\n";

fn alerts(s: &mut Scenario, text: &str) {
    let file = s.dir.join("alerts.toml");
    std::fs::write(&file, text).unwrap();
    s.set("config", file.display());
}

fn send(s: &mut Scenario, line: &str) {
    assert_eq!(s.server().post("/ingest", "application/json", line).unwrap().status, 200);
}

fn alert(s: &mut Scenario, name: &str) -> Value {
    let answer = s.server().data("/api/v1/alerts").unwrap().json();
    let alerts = answer["alerts"].as_array().unwrap();
    alerts.iter().find(|alert| alert["name"] == name).unwrap().clone()
}

/// Sends `lines` again and again until `enough` has come.
fn send_until<T>(s: &mut Scenario, lines: &[&str], mut enough: impl FnMut(&mut Scenario) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = enough(s) {
            return done;
        }
        assert!(Instant::now() < deadline, "it does not come: {}", s.server().log_text());
        for line in lines {
            send(s, line);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

const GOOD: &str = r#"{"level":"info","service":"cart","msg":"sold"}"#;
const BAD: &str = r#"{"level":"error","service":"cart","msg":"card declined"}"#;
const OTHER: &str = r#"{"level":"error","service":"mail","msg":"no such user"}"#;

#[test]
fn an_alert_fires_is_told_and_is_over_and_a_receiver_that_was_down_is_told_too() {
    let story = |s: &mut Scenario| {
        let hook = Webhook::start(vec![503, 500]);
        let rule = "query = 'service:cart severity>=error'\nabove = 3\n";
        alerts(s, &format!("[alerts.declined]\n{rule}{SHORT}"));
        s.set("alerting.webhook_url", hook.url());
        s.start();
        assert_eq!(alert(s, "declined")["state"], "inactive");
        // Twice refused: told again until it is taken.
        for status in [503, 500, 200] {
            let (answered, notice) = send_until(s, &[BAD, OTHER], |_| hook.try_next());
            assert_eq!((answered, &notice["state"], &notice["alert"]), (status, &"firing".into(), &"declined".into()));
            assert!(notice["value"].as_f64().unwrap() > 3.0, "{notice}");
            assert!(notice["text"].as_str().unwrap().starts_with("FIRING declined: count is "), "{notice}");
        }
        assert_eq!(alert(s, "declined")["state"], "firing");
        assert_eq!(s.server().metric("logweir_alert_state", "declined"), 2.0);
        // Now nothing is sent: it is over.
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
fn a_ratio_is_of_what_it_says_and_fires_after_a_kill_too() {
    on_sqlite("alert ratio", |s| {
        let hook = Webhook::start(vec![]);
        let rule = "query = 'severity>=error'\nof = 'service:cart'\nmeasure = 'ratio'\nabove = '0.4'\nfor = '500ms'\n";
        alerts(s, &format!("[alerts.share]\n{rule}{SHORT}webhook = '{}'\n", hook.url()));
        s.start();
        // A quarter of the cart's; what others do does not count.
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

/// What was counted is not kept: a restart begins with empty windows, and with every alert inactive.
#[test]
fn what_fires_at_a_restart_is_told_anew_and_what_is_over_by_then_is_not_told() {
    on_sqlite("alert restart", |s| {
        let hook = Webhook::start(vec![]);
        let rule = "query = 'service:cart severity>=error'\nabove = 3\n";
        alerts(s, &format!("[alerts.declined]\n{rule}{SHORT}webhook = '{}'\n", hook.url()));
        s.start();
        let (_, notice) = send_until(s, &[BAD], |_| hook.try_next());
        assert_eq!(notice["state"], "firing");
        s.server().kill();
        while hook.try_next().is_some() {} // it may have been over, and fired again, before the kill
        s.start();
        let started = jiff::Timestamp::now();
        assert_eq!(alert(s, "declined")["state"], "inactive");
        assert_eq!(alert(s, "declined")["last_notified"], Value::Null);
        // Two windows later it has been looked at more than once, and nothing was told.
        let deadline = Instant::now() + PATIENCE;
        let looked = |s: &mut Scenario| alert(s, "declined")["last_evaluated"].as_str().map(ToOwned::to_owned);
        let two_windows = jiff::SignedDuration::from_secs(4);
        while looked(s).is_none_or(|at| at.parse::<jiff::Timestamp>().unwrap() < started + two_windows) {
            assert!(Instant::now() < deadline, "nobody looks");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!((alert(s, "declined")["state"].as_str(), hook.try_next()), (Some("inactive"), None));
        let (_, notice) = send_until(s, &[BAD], |_| hook.try_next());
        assert_eq!(notice["state"], "firing", "told anew");
    });
}

#[test]
fn who_is_late_is_counted_and_stored_all_the_same() {
    on_sqlite("alert late", |s| {
        alerts(s, &format!("[alerts.all]\nquery = ''\nabove = 1000000\n{SHORT}"));
        s.start();
        // Once a window has closed, what happened an hour ago is late.
        s.wait("a window has closed", |s| {
            let url = format!("http://{}/api/v1/alerts", s.settings["http.listen"]);
            let text = logweir_tests::client::agent(PATIENCE).get(&url).call().unwrap().body_mut().read_to_string();
            text.unwrap().contains("\"last_evaluated\":\"")
        });
        let hour_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
        send(s, &format!(r#"{{"ts":"{hour_ago}","msg":"late"}}"#));
        let deadline = Instant::now() + PATIENCE;
        while s.server().metric("logweir_alert_late_records_total", "all") < 1.0 {
            assert!(Instant::now() < deadline, "nobody counts it");
        }
        s.wait("it is stored", |s| s.store.rows("SELECT message FROM logs") == Ok(vec![vec!["late".to_owned()]]));
    });
}
