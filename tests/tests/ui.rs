//! The page, used in a real browser as a person would use it, on a real server.
//!
//! `LOGWEIR_SCREENSHOTS=DIR` keeps a picture of each view, light and dark, on a desktop and on a phone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use logweir_tests::browser::{Browser, Screen};
use logweir_tests::client::agent;
use logweir_tests::scenario::{SEGMENT_BYTES, Scenario, on_postgres, on_sqlite};
use serde_json::{Value, json};

/// The rows of the table that are drawn now.
const ROW: &str = ".row:not(.head)";

/// A text that is markup, quotes and escapes at once.
const NASTY: &str = r#"<img src=x onerror="window.hacked=1"> 'a' "b" \ `c` (d) *e* ~f"#;

fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

fn send(s: &mut Scenario, records: &[Value]) {
    let lines: Vec<_> = records.iter().map(ToString::to_string).collect();
    let answer =
        s.server().post("/ingest?ack=committed", "application/x-ndjson", &lines.join("\n")).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Sixty records within the last 50 minutes: two services, two hosts, each fifth an error, each with an order.
fn shop(s: &mut Scenario) {
    let records: Vec<_> = (0..60)
        .map(|nth| {
            let level = if nth % 5 == 0 { "error" } else { "info" };
            let (service, host) = (["cart", "checkout"][nth % 2], format!("web-{}", nth / 2 % 2));
            let message =
                if nth % 5 == 0 { format!("card declined, try {nth}") } else { format!("order {nth} is paid") };
            json!({ "ts": ago(50 * i64::try_from(nth).expect("small")).to_string(), "level": level, "service": service,
                    "host": host, "msg": message, "order": 4700 + nth, "user": { "tier": "gold" } })
        })
        .collect();
    send(s, &records);
}

fn open(s: &mut Scenario, screen: Screen, path: &str) -> Browser {
    let browser = Browser::open(s.server().http, screen);
    browser.goto(path);
    browser
}

/// A search has ended and `total` records are counted over the whole range.
fn counted(browser: &Browser, total: &str) {
    browser.until(&format!("{total} records counted"), |browser| {
        browser.text(".total").starts_with(&format!("{total} ")) && browser.count(".histogram.busy") == 0
    });
}

fn sound(browser: &Browser) {
    assert_eq!(browser.troubles(), Vec::<String>::new());
}

#[test]
fn the_files_come_with_their_policy_and_are_sent_once() {
    on_sqlite("page files", |s| {
        s.start();
        let base = format!("http://{}", s.server().http);
        let get = |path: &str, headers: &[(&str, &str)]| {
            let mut request = agent(Duration::from_secs(10)).get(format!("{base}{path}"));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.call().unwrap()
        };
        let browser = [("accept", "text/html,application/xhtml+xml,*/*;q=0.8")];
        for path in ["/", "/pipeline", "/alerts", "/assets/main.js", "/assets/vendor/preact.js", "/assets/style.css"] {
            let answer = get(path, &browser);
            assert_eq!(answer.status(), 200, "{path}");
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert!(header("content-security-policy").contains("script-src 'self'"), "{path}");
            assert!(!header("content-security-policy").contains("unsafe"), "{path}");
            assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
            let again = get(path, &[browser[0], ("if-none-match", &header("etag"))]);
            assert_eq!(again.status(), 304, "{path}");
            assert_eq!(again.headers()["etag"], answer.headers()["etag"], "{path}");
        }
        assert_eq!(get("/assets/../Cargo.toml", &[]).status(), 404);
        assert_eq!(get("/assets/no.js", &[]).status(), 404);
        let text = |headers| get("/", headers).body_mut().read_to_string().unwrap();
        assert!(text(&[("accept", "*/*"), ("user-agent", "curl/8")]).contains("curl --data-binary"));
        assert!(text(&[("accept", "application/json")]).contains("You Know, for Search"));
        let browser = open(s, Screen::Desktop, "/");
        browser.see(".empty", "No records yet");
        let sizes = browser.js(
            "const loaded = performance.getEntriesByType('resource').filter(one => /\\.(js|css)$/.test(one.name));
             return [loaded.length, ...['encodedBodySize', 'decodedBodySize'].map(size => loaded.reduce((sum, one) => sum + one[size], 0))]",
        );
        let size = |nth: usize| sizes[nth].as_u64().unwrap();
        assert!(size(0) > 15 && size(1) * 2 < size(2) && size(1) < 80_000, "compressed: {sizes}");
    });
}

#[test]
fn words_are_searched_marked_and_opened() {
    on_sqlite("page search", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.write("[name=query]", "declined");
        browser.keys("\u{E007}"); // Enter
        counted(&browser, "12");
        assert_eq!(browser.path(), "/?query=declined");
        assert!(browser.texts(".row mark").iter().all(|text| text == "declined"));
        assert_eq!(browser.count(".row mark"), 12);
        browser.click(&format!("{ROW} .toggle button"));
        for text in ["web-", "order", "user.tier", "gold"] {
            browser.see(".detail", text);
        }
        browser.click(&format!("{ROW} .toggle button"));
        browser.until("the record is closed", |browser| browser.count(".detail") == 0);
        browser.back();
        counted(&browser, "60");
        sound(&browser);
    });
}

#[test]
fn each_value_can_be_included_and_excluded_whatever_stands_in_it() {
    let story = |s: &mut Scenario| {
        s.start();
        shop(s);
        let at = |seconds| ago(seconds).to_string();
        send(
            s,
            &[
                json!({ "ts": at(1), "level": "warn", "service": "odd", "msg": format!("{NASTY}\nsecond line"), "x y": NASTY, "level2": "a\tb\nc" }),
                json!({ "ts": at(2), "level": "warn", "service": "odd", "msg": "AND", "x y": "OR", "level2": "é 漢" }),
            ],
        );
        let browser = open(s, Screen::Desktop, "/?query=service:odd");
        counted(&browser, "2");
        assert_eq!(browser.js("return window.hacked ?? null"), Value::Null);
        browser.see(".row .message", NASTY);

        // From the record: each field of it finds it, and what is without it is the other one.
        for (field, shown) in [("x y", NASTY), ("level2", "a\tb\nc"), ("x y", "OR"), ("level2", "é 漢")] {
            for (sign, expect_it) in [("Only", true), ("Without", false)] {
                browser.goto("/?query=service:odd");
                counted(&browser, "2");
                for nth in 1..=2 {
                    let _ =
                        browser.js(&format!("document.querySelectorAll('{ROW} .toggle button')[{nth} - 1].click()"));
                }
                browser.until("both are open", |browser| browser.count(".detail") == 2);
                browser.click_on(".field-acts button", &format!("{sign} {field} = {}", shown.trim()));
                counted(&browser, "1");
                browser.click(&format!("{ROW} .toggle button"));
                browser.until("one is open", |browser| browser.count(".detail") == 1);
                let values =
                    browser.js("return [...document.querySelectorAll('.detail dd')].map(one => one.textContent)");
                let has = values.as_array().unwrap().contains(&json!(shown));
                assert_eq!(has, expect_it, "{field} {sign} {shown:?}: {}", browser.path());
            }
        }

        // From a row's cell, by the menu; from the values beside; from the legend.
        browser.goto("/");
        counted(&browser, "62");
        browser.click_on(&format!("{ROW} .value"), "checkout");
        browser.click_on(".menu button", "Only these");
        counted(&browser, "30");
        browser.click_on(".facet[aria-label=host] .facet-value", "web-1");
        browser.until("the host, too", |browser| browser.path().contains("host%3Aweb-1"));
        counted(&browser, "15");
        browser.click_on(".facet[aria-label=severity] button", "Without severity = ERROR");
        browser.until("no errors", |browser| browser.path().contains("-severity%3Aerror"));
        browser.until("fewer", |browser| browser.count(ROW) < 15 && browser.count(".histogram.busy") == 0);
        assert!(browser.texts(&format!("{ROW} .severity")).iter().all(|severity| severity == "INFO"));
        browser.click(".legend-item");
        browser.click_on(".menu button", "Only these");
        browser.until("the legend's", |browser| browser.path().contains("severity%3Ainfo"));

        // A word of a message.
        browser.goto("/");
        counted(&browser, "62");
        let _ = browser.js(
            "const cell = [...document.querySelectorAll('.row .message bdi')].find(one => one.textContent.includes('declined'));
             const text = cell.firstChild, at = text.data.indexOf('declined'), range = document.createRange();
             range.setStart(text, at); range.setEnd(text, at + 8);
             getSelection().removeAllRanges(); getSelection().addRange(range);
             cell.dispatchEvent(new MouseEvent('mouseup', { bubbles: true, clientX: 700, clientY: 400 }));",
        );
        browser.click_on(".menu button", "Messages without it");
        counted(&browser, "50");
        sound(&browser);
    };
    on_sqlite("page values", story);
    on_postgres("page values", story);
}

#[test]
fn a_time_is_chosen_relative_absolute_and_in_a_zone() {
    on_sqlite("page time", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?zone=UTC");
        counted(&browser, "60");
        browser.click(".range");
        browser.click_on(".quick button", "Last 15 minutes");
        counted(&browser, "18"); // one each 50 seconds
        assert!(browser.path().contains("start=-15m"));
        assert_eq!(browser.text(".range-label"), "Last 15 minutes");

        browser.click(".range");
        browser.write("[aria-label='How many']", "5");
        browser.click_on(".own button", "Apply");
        counted(&browser, "6");

        let clock = |seconds| ago(seconds).strftime("%Y-%m-%dT%H:%M:%S").to_string();
        browser.click(".range");
        browser.set("[name=from]", &clock(1000));
        browser.set("[name=to]", &clock(2000));
        browser.click_on(".own button", "Apply from, to");
        browser.see(".popover [role=alert]", "must come before");
        browser.set("[name=from]", &clock(2000));
        browser.set("[name=to]", &clock(1000));
        browser.click_on(".own button", "Apply from, to");
        counted(&browser, "20");
        let utc = browser.text(&format!("{ROW} .time"));

        browser.click(".range");
        browser.write("[aria-label='Time zone']", "Asia/Kolkata");
        browser.until("five hours and a half later", |browser| browser.text(&format!("{ROW} .time")) != utc);
        let of_day = |text: &str| {
            let mut parts = text.split([':', '.']).map(|part| part.parse::<i64>().unwrap());
            parts.next().unwrap() * 60 + parts.next().unwrap()
        };
        let there = browser.text(&format!("{ROW} .time"));
        assert_eq!((of_day(&there) - of_day(&utc)).rem_euclid(24 * 60), 5 * 60 + 30, "{utc} {there}");
        assert!(browser.path().contains("zone=Asia%2FKolkata"));
        counted(&browser, "20"); // the same records
        sound(&browser);
    });
}

#[test]
fn dragging_over_the_bars_narrows_the_time() {
    on_postgres("page histogram", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.see(".legend", "ERROR\n12");
        browser.drag(".plot", 0.5, 0.75);
        browser.until("a range that stands still", |browser| browser.path().contains("start=20"));
        browser.until("fewer records", |browser| {
            let total = browser.text(".total");
            total
                .split(' ')
                .next()
                .and_then(|total| total.parse::<u32>().ok())
                .is_some_and(|total| (12..=24).contains(&total))
        });
        browser.click(".histogram [aria-label^='Zoom out']");
        browser.until("more again", |browser| !browser.text(".total").starts_with("1") || browser.count(ROW) > 24);
        browser.back();
        browser.back();
        counted(&browser, "60");

        // The same by keys: the newest three bars that are to the right.
        let _ = browser.js("document.querySelector('.plot').focus()");
        browser.keys("\u{E012}\u{E012}\u{E008}\u{E012}\u{E012}\u{E008}\u{E007}");
        browser.until("three bars", |browser| browser.path().contains("start=20"));
        let given = browser.path();
        let time = |name: &str| -> Timestamp {
            let text = given.split(['?', '&']).find_map(|part| part.strip_prefix(name)).unwrap();
            text.replace("%3A", ":").parse().unwrap()
        };
        assert_eq!(time("end=").duration_since(time("start=")), SignedDuration::from_mins(3));

        browser.goto("/?by=service");
        counted(&browser, "60");
        browser.see(".legend", "checkout\n30");
        sound(&browser);
    });
}

#[test]
fn clocks_that_are_changed_have_hours_twice_and_not_at_all() {
    on_sqlite("page clocks", |s| {
        s.start();
        let at = |ts: &str, message: &str| json!({ "ts": ts, "service": "night", "msg": message });
        send(
            s,
            &[
                at("2025-10-26T00:30:00Z", "half past two"),
                at("2025-10-26T01:30:00Z", "half past two again"),
                at("2025-03-30T01:30:00Z", "half past three"),
            ],
        );
        let browser = open(s, Screen::Desktop, "/?zone=Europe/Berlin");
        browser.see(".empty", "Nothing found here");
        let choose = |from: &str, to: &str| {
            browser.click(".range");
            browser.set("[name=from]", from);
            browser.set("[name=to]", to);
            browser.click_on(".own button", "Apply from, to");
        };
        choose("2025-10-26T02:00:00", "2025-10-26T03:00:00");
        counted(&browser, "2");
        assert_eq!(browser.texts(&format!("{ROW} .time")), ["02:30:00.000"; 2]);
        assert_eq!(browser.texts(&format!("{ROW} .message")), ["half past two again", "half past two"]);
        browser.click(&format!("{ROW} .toggle button"));
        browser.see(".detail", "2025-10-26 02:30:00.000000 +01:00");

        // From an hour that there was not to one that there was.
        choose("2025-03-30T02:15:00", "2025-03-30T03:45:00");
        counted(&browser, "1");
        assert!(browser.path().contains("start=2025-03-30T01%3A15"), "{}", browser.path());
        browser.see(&format!("{ROW} .time"), "03:30:00.000");
        sound(&browser);
    });
}

/// Answers that come in another order than they were asked for, and a way back through what was looked at.
#[test]
fn the_newest_question_is_the_one_that_is_answered() {
    on_sqlite("page races", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        // The first of two is held back until the second is answered.
        let _ = browser.js(
            "const real = window.fetch; window.held = [];
             window.fetch = (url, init) => String(url).includes('query=service%3Acart')
                 ? new Promise((resolve, reject) => held.push(() => real(url, { ...init, signal: undefined }).then(resolve, reject)))
                 : real(url, init);",
        );
        browser.write("[name=query]", "service:cart");
        browser.keys("\u{E007}");
        browser.until("it was asked", |browser| browser.js("return held.length >= 2") == json!(true));
        browser.write("[name=query]", "declined");
        browser.keys("\u{E007}");
        counted(&browser, "12");
        let _ = browser.js_later(
            "const done = arguments[arguments.length - 1];
             Promise.allSettled(held.map(one => one())).then(() => setTimeout(done, 100))",
        );
        assert!(browser.text(".total").starts_with("12 "), "{}", browser.text(".total"));
        assert!(browser.texts(&format!("{ROW} .message")).iter().all(|message| message.contains("declined")));

        // Back and forth: what stands in the field, in the table and in the address is the same.
        browser.goto("/");
        counted(&browser, "60");
        for query in ["service:cart", "declined service:cart"] {
            browser.write("[name=query]", query);
            browser.keys("\u{E007}");
            browser.until("asked", |browser| browser.path().contains(&query.replace(' ', "+").replace(':', "%3A")));
        }
        counted(&browser, "6");
        browser.back();
        counted(&browser, "30");
        assert_eq!(browser.js("return document.querySelector('[name=query]').value"), json!("service:cart"));
        browser.back();
        counted(&browser, "60");
        assert_eq!(browser.js("return document.querySelector('[name=query]').value"), json!(""));
        let _ = browser.js("history.forward()");
        counted(&browser, "30");
        sound(&browser);
    });
}

#[test]
fn a_copied_link_stands_still_and_a_bar_is_looked_into() {
    on_sqlite("page copied link", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=declined&zone=UTC");
        counted(&browser, "12");
        let _ = browser.js("navigator.clipboard.writeText = async text => { window.copied = text }");
        browser.keys("y");
        browser.see(".word", "Link copied");
        let link = browser.js("return new URL(copied).pathname + new URL(copied).search");
        let link = link.as_str().unwrap().to_owned();
        assert!(link.contains("start=20") && link.contains("end=20") && link.contains("query=declined"), "{link}");
        let elsewhere = open(s, Screen::Desktop, &link);
        counted(&elsewhere, "12");
        send(s, &[json!({ "service": "cart", "msg": "declined later" })]);
        elsewhere.click_on(".bar button", "Search");
        counted(&elsewhere, "12");
        browser.click_on(".bar button", "Search");
        counted(&browser, "13");

        // The newest bar, by a double click.
        let _ = browser.js(
            "const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect();
             plot.dispatchEvent(new MouseEvent('dblclick', { bubbles: true, clientX: box.right - 2, clientY: box.top + 20 }));",
        );
        browser.until("a minute", |browser| browser.path().contains("start=20"));
        browser.until("few", |browser| browser.count(ROW) < 12 && browser.count(".histogram.busy") == 0);
        sound(&browser);
        sound(&elsewhere);
    });
}

#[test]
fn the_description_can_be_tried() {
    on_sqlite("page description", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/api/v1/docs");
        let answer = |operation: &str, fields: &[(&str, &str)], expect: &str| {
            browser.until(operation, |browser| browser.texts("summary").iter().any(|one| one.trim() == operation));
            let _ = browser.js(&format!(
                "const one = [...document.querySelectorAll('details')].find(one => one.querySelector('summary').textContent === {operation:?});
                 document.querySelectorAll('details').forEach(other => {{ other.open = other === one; other.id = other === one ? 'tried' : ''; }});"
            ));
            for (name, value) in fields {
                browser.write(&format!("#tried [name='{name}']"), value);
            }
            browser.click_on("#tried button", "Send");
            browser.see("#tried pre", expect);
        };
        answer("GET /api/v1/query", &[("query", "declined"), ("limit", "3")], "card declined, try 0");
        answer("GET /api/v1/alerts", &[], "\"alerts\": []");
        answer("GET /api/v1/pipeline", &[], "\"phase\": \"accepting\"");
        answer("GET /loki/api/v1/label/{name}/values", &[("name", "service_name")], "checkout");
        answer("GET /api/v1/dead-letters", &[], "\"dead_letters\": []");
        answer("POST /api/v1/dead-letters/replay", &[("all", "true")], "\"replayed\": 0");
        answer("POST /api/v1/dead-letters/replay", &[("(body)", "{\"msg\":\"mended\"}")], "goes with its id");
        answer("POST /api/v1/dead-letters/purge", &[("older_than", "7d")], "\"purged\": 0");
        answer("GET /api/v1/tail", &[("query", "service:live")], "200 OK");
        send(s, &[json!({ "service": "live", "msg": "as it comes" })]);
        browser.see("#tried pre", "as it comes");
        browser.click_on("#tried button", "Stop");
        browser.until("nobody listens", |_| s.server().metric("logweir_tail_clients", "") == 0.0);
        sound(&browser);
    });
}

#[test]
fn thousands_of_records_are_rows_of_which_few_are_drawn() {
    on_sqlite("page rows", |s| {
        s.start();
        let records: Vec<_> = (0..5000)
            .map(|nth| json!({ "ts": ago(nth / 4).to_string(), "service": "many", "level": "info", "msg": format!("number {nth}") }))
            .collect();
        send(s, &records);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "5,000");
        let mut most = 0;
        browser.until("the oldest one", |browser| {
            let _ = browser.js("const table = document.querySelector('.table'); table.scrollTop = table.scrollHeight");
            most = most.max(browser.count(ROW));
            browser.text(".bottom").contains("No older ones")
        });
        assert!(most < 100, "{most} rows are drawn");
        browser.see(".foot", "5,000 records loaded");
        assert_eq!(browser.js("return document.querySelector('.grid').getAttribute('aria-rowcount')"), json!("5001"));
        let _ = browser.js("const table = document.querySelector('.table'); table.scrollTop = table.scrollHeight");
        browser.see(&format!("{ROW} .message"), "number 4999");
        // An open record moves those below it, and no row lies on another.
        let _ = browser.js("document.querySelector('.table').scrollTop = 0");
        browser.see(&format!("{ROW} .message"), "number 3");
        browser.click(&format!("{ROW} .toggle button"));
        browser.until("it is open", |browser| browser.count(".opened") == 1);
        browser.until("nothing overlaps", |browser| {
            browser.js("const boxes = [...document.querySelectorAll('.row:not(.head), .opened')].map(one => one.getBoundingClientRect()).sort((a, b) => a.top - b.top);
                        return boxes.every((box, nth) => nth === 0 || box.top >= boxes[nth - 1].bottom - 0.5)") == json!(true)
        });
        sound(&browser);
    });
}

#[test]
fn an_address_holds_everything_that_is_seen() {
    on_sqlite("page link", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.write("[name=query]", "service:cart severity>=info");
        browser.keys("\u{E007}");
        counted(&browser, "30");
        browser.click_on(".facet[aria-label='Other fields'] .facet-value", "order");
        browser.see(".facet[aria-label=order]", "47");
        browser.click_on(".facet[aria-label=order] button", "Show as a column: order");
        browser.see(".row.head", "order");
        browser.drag(".plot", 0.3, 0.9);
        browser
            .until("the range", |browser| browser.path().contains("end=20") && browser.count(".histogram.busy") == 0);
        browser.click(".range");
        browser.click_on(".own button", "UTC");
        browser.until("the zone", |browser| browser.path().contains("zone=UTC"));
        browser.keys("\u{E00C}");
        let address = browser.path();
        let shown = |browser: &Browser| {
            [".total", ".row.head", ".range-label", ".legend", ROW].map(|css| browser.texts(css).join("|"))
        };
        let here = shown(&browser);

        let elsewhere = open(s, Screen::Desktop, &address);
        elsewhere.until("the same", |elsewhere| shown(elsewhere) == here);
        elsewhere.see(".facet[aria-label=order]", "47");
        assert_eq!(elsewhere.path(), address);

        // The columns can be taken back.
        elsewhere.click_on(".row.head button", "Remove the column order");
        elsewhere.until("no column", |elsewhere| !elsewhere.path().contains("columns"));
        sound(&browser);
        sound(&elsewhere);
    });
}

#[test]
fn context_shows_the_neighbours_and_has_an_address() {
    on_sqlite("page context", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=declined service:cart host:web-0");
        browser.until("rows", |browser| browser.count(ROW) == 3);
        browser.click(&format!("{ROW}:nth-of-type(2) .toggle button"));
        browser.click_on(".detail-acts button", "Context");
        browser.see(".context .here", "card declined, try 20");
        let lines = browser.texts(".context li .message");
        // The same service and host: each fourth record, the oldest first.
        let expect = |nth: usize| {
            if nth.is_multiple_of(5) { format!("card declined, try {nth}") } else { format!("order {nth} is paid") }
        };
        assert_eq!(lines, (0..15).rev().map(|nth| expect(nth * 4)).take(15).collect::<Vec<_>>());
        let address = browser.path();
        assert!(address.contains("record="));
        browser.keys("\u{E00C}");
        browser.until("it is closed", |browser| browser.count("dialog") == 0);
        let elsewhere = open(s, Screen::Desktop, &address);
        elsewhere.see(".context .here", "card declined, try 20");
        sound(&browser);
    });
}

#[test]
fn the_tail_is_live_pauses_and_goes_on_after_a_kill() {
    on_sqlite("page tail", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.click(".live-button");
        browser.see(".live-state", "Live");
        let one = |nth: u32| json!({ "level": "info", "service": "live", "msg": format!("live {nth}") });
        send(s, &[one(1), one(2)]);
        browser.see(&format!("{ROW} .message"), "live 2");
        assert_eq!(browser.text(".received"), "2");
        assert_eq!(browser.text(".dropped"), "0");

        browser.click_on(".live-bar button", "Pause");
        send(s, &[one(3)]);
        browser.see(".held", "1 new record waiting");
        assert!(!browser.texts(&format!("{ROW} .message")).contains(&"live 3".to_owned()));
        browser.click_on(".live-bar button", "Resume");
        browser.see(&format!("{ROW} .message"), "live 3");

        // The server is killed; what comes while the page is away, comes after it is back.
        s.server().kill();
        browser.see(".live-state", "Connection lost");
        s.start();
        send(s, &[one(4)]);
        browser.see(&format!("{ROW} .message"), "live 4");
        send(s, &[one(5)]);
        browser.see(&format!("{ROW} .message"), "live 5");
        assert_eq!(browser.texts(&format!("{ROW} .message")), ["live 5", "live 4", "live 3", "live 2", "live 1"]);
        assert!(browser.path().contains("live=1"));

        browser.click_on(".live-bar button", "Stop");
        counted(&browser, "65");
        sound(&browser);
    });
}

/// A stream that was cut off, and a server that has no longer, or never had, what came meanwhile.
#[test]
fn a_tail_shows_where_records_are_missing() {
    on_sqlite("page gap", |s| {
        s.set("lanes", 1);
        s.start();
        let browser = open(s, Screen::Desktop, "/?live=1&query=service:live");
        browser.see(".live-state", "Live");
        let one = |nth: u32| json!({ "level": "info", "service": "live", "msg": format!("live {nth}") });
        send(s, &[one(1)]);
        browser.see(&format!("{ROW} .message"), "live 1");

        // Where the page does not look, so much comes that the journal lets go of its first segments.
        let here = s.settings["http.listen"].clone();
        s.stop();
        s.set("http.listen", logweir_tests::process::free_addr());
        s.start();
        let body = format!("{}\n", "x".repeat(64 << 10)).repeat(64);
        for _ in 0..SEGMENT_BYTES * 5 / (4 << 20) + 1 {
            assert_eq!(s.server().post("/ingest?ack=committed", "text/plain", &body).unwrap().status, 200);
        }
        s.stop();
        s.set("http.listen", &here);
        s.start();
        browser.see(".row.gap", "records may be missing here");
        browser.see(".live-bar", "1 gap");
        send(s, &[one(2)]);
        browser.see(&format!("{ROW} .message"), "live 2");

        // Another volume at the same address: how many are missing, nobody knows.
        s.stop();
        s.set("data_dir", s.dir.join("another").display());
        s.start();
        browser.see(".live-bar", "2 gaps");
        browser.see(".row.gap", "Records may be missing here");
        send(s, &[one(3)]);
        browser.see(&format!("{ROW} .message"), "live 3");
        let shown = browser.texts(&format!("{ROW}:not(.gap) .message"));
        assert_eq!(shown, ["live 3", "live 2", "live 1"]);
        sound(&browser);
    });
}

#[test]
fn a_tail_begins_anew_and_says_why_it_is_refused() {
    on_sqlite("page tail anew", |s| {
        s.set("tail.clients_max", 1);
        s.start();
        let browser = open(s, Screen::Desktop, "/?live=1");
        browser.see(".live-state", "Live");
        send(s, &[json!({ "service": "live", "msg": "the first" })]);
        browser.see(&format!("{ROW} .message"), "the first");
        browser.keys("p");
        browser.see(".live-state", "Paused");

        let other = open(s, Screen::Phone, "/?live=1");
        other.see(".live-bar", "as many live tails as tail.clients_max allows");
        browser.keys("l");
        other.see(".live-state", "Live");
        assert!(!other.text(".live-bar").contains("clients_max"));
        other.click(".live-button");
        other.until("no tail", |other| other.count(".live-bar") == 0);

        // Neither the pause nor the numbers of the one before.
        browser.keys("l");
        browser.see(".live-state", "Live");
        assert_eq!((browser.text(".received").as_str(), browser.count(".held")), ("0", 0));
        sound(&browser);
        sound(&other);
    });
}

#[test]
fn what_is_seen_can_be_saved() {
    on_sqlite("page export", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=declined");
        counted(&browser, "12");
        for (format, lines) in [("ndjson", 12), ("csv", 13)] {
            browser.click("[aria-label^=Export]");
            browser.click(&format!("dialog [value={format}]"));
            browser.click_on("dialog button", "Save the file");
            browser.until("a file", |browser| browser.downloads().iter().any(|path| has_extension(path, format)));
            let file = browser.downloads().into_iter().find(|path| has_extension(path, format)).unwrap();
            let text = std::fs::read_to_string(file).unwrap();
            assert_eq!(text.lines().count(), lines, "{text}");
            assert_eq!(text.matches("card declined").count(), 12);
        }
        browser.click("[aria-label^=Export]");
        let line = browser.text("dialog .code code");
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 12, "{line}");
        sound(&browser);
    });
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

#[test]
fn an_empty_store_says_how_to_fill_it_and_is_seen_to_fill() {
    on_sqlite("page empty", |s| {
        s.start();
        let browser = open(s, Screen::Desktop, "/");
        browser.see(".empty", "No records yet");
        let line = browser.text(".empty .code code");
        let output = Command::new("sh").args(["-c", &line]).output().expect("sh and curl");
        assert!(output.status.success(), "{line}: {output:?}");
        browser.see(&format!("{ROW} .message"), "it works");

        browser.goto("/?query=nothing-like-this");
        browser.see(".empty", "Nothing found here");
        browser.see(".empty", "hello");
        browser.click_on(".empty button", "Without the filter");
        browser.see(&format!("{ROW} .message"), "it works");
        sound(&browser);
    });
}

#[test]
fn a_server_that_is_away_is_told_and_found_again() {
    on_sqlite("page away", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        s.server().kill();
        browser.click_on(".bar button", "Search");
        browser.see(".trouble", "does not answer");
        assert!(browser.count(ROW) > 10, "what was there before is still shown");
        s.start();
        browser.until("the trouble is over", |browser| browser.count(".trouble") == 0);
        counted(&browser, "60");
    });
}

#[test]
fn the_newest_records_are_shown_while_the_database_is_away() {
    on_postgres("page partial", |s| {
        s.set("database.connect_timeout_ms", 1_000);
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        assert_eq!(browser.count(".table-box .note"), 0);
        s.postgres().stop_immediately();
        let answer = s.server().post("/ingest?service=cart", "text/plain", "said meanwhile").expect("an answer");
        assert_eq!(answer.status, 200);
        browser.until("only what the cache has", |browser| {
            browser.click_on(".bar button", "Search");
            browser.text(".table-box .note").contains("The database does not answer")
        });
        browser.see(".legend", "Not counted while the database is away");
        browser.picture("partial-desktop-light");
        browser.see(&format!("{ROW} .message"), "said meanwhile");
        browser.see(&format!("{ROW} .message"), "order 1 is paid");
        // Nobody has to ask again.
        s.postgres().restart();
        browser.until("the database's answer", |browser| browser.count(".table-box .note") == 0);
        counted(&browser, "61");
        sound(&browser);
    });
}

#[test]
fn a_mistake_in_the_query_is_shown_where_it_is() {
    on_sqlite("page mistakes", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=service:cart (order");
        browser.see(".query-problem", "Column 14");
        assert_eq!(browser.text(".query-problem mark"), "(");
        browser.write("[name=query]", "service:cart");
        browser.keys("\u{E007}");
        counted(&browser, "30");
        assert_eq!(browser.count(".query-problem"), 0);
        sound(&browser);
    });
}

#[test]
fn a_token_is_asked_for_and_used_for_everything() {
    on_sqlite("page token", |s| {
        s.set("auth.query_tokens", "a-token-to-read-with");
        s.set("auth.ingest_tokens", "a-token-to-send-with");
        s.start();
        let ingest = |s: &mut Scenario, text: &str| {
            let url = format!("http://{}/ingest?ack=committed", s.server().http);
            let request =
                agent(Duration::from_secs(30)).post(url).header("authorization", "Bearer a-token-to-send-with");
            assert_eq!(request.send(text).unwrap().status(), 200);
        };
        ingest(s, "the first");
        let browser = open(s, Screen::Desktop, "/");
        for (token, right) in [("a-token-that-is-wrong", false), ("a-token-to-read-with", true)] {
            browser.see("dialog", "auth.query_tokens");
            browser.write("[name=token]", token);
            browser.click_on("dialog button", "Use it");
            if right {
                browser.see(&format!("{ROW} .message"), "the first");
            }
        }
        browser.click(".live-button");
        browser.see(".live-state", "Live");
        ingest(s, "the second");
        browser.see(&format!("{ROW} .message"), "the second");
        assert!(!browser.path().contains("token"));
        // The tab remembers it.
        browser.goto("/pipeline");
        browser.see(".sums", "Accepted");
        assert_eq!(browser.count("dialog"), 0);
    });
}

#[test]
fn it_can_be_used_without_a_mouse() {
    on_sqlite("page keys", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.keys("?");
        browser.see("dialog", "Live tail");
        browser.keys("\u{E00C}");
        browser.until("closed", |browser| browser.count("dialog") == 0);
        browser.keys("/");
        browser.keys("service:cart\u{E007}");
        counted(&browser, "30");
        browser.keys("\u{E00C}"); // leaves the field
        browser.keys("jj");
        browser.until("the second is chosen", |browser| {
            browser.text(".row.selected .message") == browser.texts(&format!("{ROW} .message"))[1]
        });
        browser.keys("\u{E007}");
        browser.until("it is open", |browser| browser.count(".detail") == 1);
        browser.keys("c");
        browser.see(".context .here", "is paid");
        browser.keys("\u{E00C}");
        browser.keys("t");
        browser.until("the times", |browser| browser.count(".popover") == 1);
        browser.keys("\u{E00C}");
        browser.keys("l");
        browser.see(".live-state", "Live");
        browser.keys("p");
        browser.see(".live-state", "Paused");
        browser.keys("l");
        counted(&browser, "30");
        browser.keys("2");
        browser.see(".pipeline", "Parser");
        browser.keys("1");
        counted(&browser, "30");
        // The table itself takes the focus, and arrows.
        let _ = browser.js("document.querySelector('.grid').focus()");
        browser.keys("\u{E010}"); // End
        browser.until("the last one", |browser| browser.text(".row.selected .message").contains("58"));
        sound(&browser);
    });
}

#[test]
fn a_phone_has_room_for_it() {
    on_sqlite("page phone", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Phone, "/");
        counted(&browser, "60");
        let fits =
            |browser: &Browser| browser.js("return document.documentElement.scrollWidth <= innerWidth") == json!(true);
        assert!(fits(&browser), "nothing is wider than the screen");
        browser.click("[aria-label^='Values and fields']");
        browser.click_on(".facet[aria-label=service] .facet-value", "cart");
        counted(&browser, "30");
        browser.click(".side-head button");
        browser.click(&format!("{ROW} .toggle button"));
        browser.see(".detail", "user.tier");
        assert!(fits(&browser));
        browser.click(".range");
        browser.until("the times", |browser| browser.count(".popover") == 1);
        assert!(fits(&browser));
        for path in ["/pipeline", "/alerts"] {
            browser.goto(path);
            browser.until("the view", |browser| !browser.text("main").contains("Looking"));
            assert!(fits(&browser), "{path}");
        }
        sound(&browser);
    });
}

#[test]
fn the_pipeline_shows_what_the_status_says() {
    on_postgres("page pipeline", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/pipeline");
        browser.see(".sums", "60");
        browser.see(".sums", "adds up");
        for stage in ["Admission", "Parser", "Batcher", "Flusher", "Cache writer"] {
            browser.see(".stage h3", stage);
        }
        let lanes = s.server().status()["lanes"].as_array().unwrap().len();
        assert_eq!(browser.count("table caption"), 1);
        assert_eq!(browser.count(".processor tbody tr"), lanes);
        shop(s);
        browser.see(".sums", "120");

        // A database that is down: what waits in the journal is shown, with its age.
        s.postgres().stop_immediately();
        let answer = s.server().post("/ingest?ack=journal", "text/plain", "one more").expect("an answer");
        assert_eq!(answer.status, 200);
        browser.see(".numbers", "1 record");
        browser.until("it grows older", |browser| {
            browser.text(".age").strip_suffix(" s").and_then(|age| age.parse::<u32>().ok()).is_some_and(|age| age >= 3)
        });
        browser.see(".processor tbody", "failing");
        // What is to be replayed is a bar, as long as there is something.
        browser.see(".replay", "1 record to go");
        s.postgres().restart();
        browser.until("replayed", |browser| browser.count(".replay") == 0 && browser.text(".sums").contains("121\n"));
        sound(&browser);
    });
}

#[test]
fn dead_letters_are_shown_tried_again_and_deleted() {
    on_postgres("page dead letters", |s| {
        s.start();
        shop(s);
        s.store.rows("ALTER TABLE logs ADD CONSTRAINT no_poison CHECK (message NOT LIKE 'poison%')").unwrap();
        let poison = |nth: u32| json!({ "service": "cart", "msg": format!("poison <b>{nth}</b>") });
        send(s, &[poison(1), poison(2)]);
        let browser = open(s, Screen::Desktop, "/pipeline");
        browser.see(".letters", "poison <b>2</b>");
        assert_eq!(browser.count(".letters tbody tr"), 2);
        browser.see(".letters .reason", "23514"); // check_violation
        browser.click(".letters tbody button");
        browser.see(".word", "0 records stored, 1 refused again");
        s.store.rows("ALTER TABLE logs DROP CONSTRAINT no_poison").unwrap();
        browser.click(".letters tbody button");
        browser.until("one is left", |browser| browser.count(".letters tbody tr") == 1);
        browser.click_on(".letters button", "Delete all");
        browser.click_on("dialog button", "Keep them");
        browser.click_on(".letters button", "Try all again");
        browser.see(".letters", "None: the database took every record");
        assert_eq!(s.store.count(), Ok(62));

        s.store.rows("ALTER TABLE logs ADD CONSTRAINT no_poison CHECK (message NOT LIKE 'poison%') NOT VALID").unwrap();
        send(s, &[poison(3)]);
        browser.see(".letters", "poison <b>3</b>");
        browser.click_on(".letters button", "Delete all");
        browser.click_on("dialog button", "Delete");
        browser.see(".letters", "None: the database took every record");
        assert_eq!(s.store.count(), Ok(62));
        sound(&browser);
    });
}

#[test]
fn alerts_are_shown_with_what_they_look_at() {
    on_sqlite("page alerts", |s| {
        let file = s.dir.join("alerts.toml");
        std::fs::write(&file, "[alerts.declined]\nquery = 'service:cart severity>=error'\nabove = 1\nwindow = '2s'\nevery = '500ms'\ngrace = '500ms'\n").unwrap();
        s.set("config", file.display());
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/alerts");
        browser.see(".alert-card", "declined");
        browser.see(".alert-card .chip", "inactive");
        browser.until("it fires", |browser| {
            send(s, &vec![json!({ "level": "error", "service": "cart", "msg": "card declined" }); 5]);
            browser.text(".alert-card .chip") == "firing"
        });
        browser.click(".alert-card a");
        browser.until("its query", |browser| browser.path().contains("service%3Acart"));
        browser.see(&format!("{ROW} .message"), "card declined");
        sound(&browser);
    });
}

#[test]
fn what_a_tail_could_not_send_is_counted() {
    on_sqlite("page dropped", |s| {
        s.set("tail.records_per_s", 5);
        s.start();
        let browser = open(s, Screen::Desktop, "/?live=1");
        browser.see(".live-state", "Live");
        let records: Vec<_> =
            (0..200).map(|nth| json!({ "service": "fast", "msg": format!("number {nth}") })).collect();
        send(s, &records);
        let shown = |browser: &Browser, css: &str| browser.text(css).replace(',', "").parse::<u32>().unwrap();
        browser.until("every record is accounted for", |browser| {
            shown(browser, ".received") + shown(browser, ".dropped") == 200
        });
        assert!(shown(&browser, ".dropped") > 0);
        sound(&browser);
    });
}

#[test]
fn light_and_dark_are_kept() {
    on_sqlite("page theme", |s| {
        s.start();
        let browser = open(s, Screen::Desktop, "/pipeline");
        browser.see(".sums", "Accepted");
        let ground = |browser: &Browser| browser.js("return getComputedStyle(document.body).backgroundColor");
        browser.scheme("light");
        let light = ground(&browser);
        browser.scheme("dark");
        let dark = ground(&browser);
        assert_ne!(light, dark);
        browser.click("[aria-label^=Theme]"); // light, whatever the system says
        browser.until("light", |browser| ground(browser) == light);
        browser.goto("/pipeline");
        browser.until("still light", |browser| ground(browser) == light);
        sound(&browser);
    });
}

/// Each view as it is looked at: its address, and what is done there first.
type View = (&'static str, &'static str, fn(&Browser));

const VIEWS: [View; 14] = [
    ("logs", "/", |browser| counted(browser, "60")),
    ("record", "/?query=declined&columns=order", |browser| {
        counted(browser, "12");
        browser.click(&format!("{ROW} .toggle button"));
        browser.see(".detail", "user.tier");
    }),
    ("menu", "/", |browser| {
        counted(browser, "60");
        browser.click_on(&format!("{ROW} .value"), "cart");
        browser.see(".menu", "Only these");
    }),
    ("times", "/", |browser| {
        counted(browser, "60");
        browser.click(".range");
        browser.see(".popover", "Last 30 days");
    }),
    ("mistake", "/?query=service:cart (order", |browser| browser.see(".query-problem", "Column 14")),
    ("nothing", "/?query=nothing-like-this", |browser| browser.see(".empty", "Nothing found here")),
    ("live", "/?live=1", |browser| browser.see(".live-state", "Live")),
    ("pipeline", "/pipeline", |browser| {
        browser.see(".sums", "adds up");
        browser.until("rates", |browser| browser.text(".sums").contains("/s"));
    }),
    ("alerts", "/alerts", |browser| browser.see(".alert-card.firing", "silent")),
    ("values", "/?facets=order", |browser| {
        counted(browser, "60");
        if browser.count(".side") == 0 {
            browser.click("[aria-label^='Values and fields']");
        }
        browser.see(".facet[aria-label=order]", "47");
    }),
    ("context", "/?query=declined", |browser| {
        counted(browser, "12");
        browser.click(&format!("{ROW} .toggle button"));
        browser.click_on(".detail-acts button", "Context");
        browser.see(".context .here", "card declined");
    }),
    ("export", "/?query=declined", |browser| {
        counted(browser, "12");
        browser.click("[aria-label^=Export]");
        browser.see("dialog .code", "curl");
    }),
    ("description", "/api/v1/docs", |browser| {
        browser.click_on("summary", "GET /api/v1/query");
        browser.click_on("details[open] button", "Send");
        browser.see("details[open] pre", "200 OK");
    }),
    ("keys", "/pipeline", |browser| {
        browser.see(".sums", "adds up");
        browser.click("[aria-label^=Keys]");
        browser.see("dialog", "Live tail");
    }),
];

/// axe-core, as `tests/install-servers` has fetched it from npm.
const AXE: &str = "/usr/local/lib/logweir-tests/axe-core/package/axe.min.js";

#[test]
fn everybody_can_use_each_view_in_light_and_dark() {
    let axe = std::fs::read_to_string(AXE).expect("axe-core is there: tests/install-servers fetches it");
    on_sqlite("page accessibility", |s| {
        let file = s.dir.join("alerts.toml");
        let rule = "query = 'service:cart'\nbelow = 5\nwindow = '2s'\nevery = '500ms'\ngrace = '500ms'\n";
        std::fs::write(&file, format!("[alerts.silent]\n{rule}")).unwrap();
        s.set("config", file.display());
        s.start();
        shop(s);
        let mut findings = Vec::new();
        for screen in [Screen::Desktop, Screen::Phone] {
            let browser = open(s, screen, "/");
            for scheme in ["light", "dark"] {
                browser.scheme(scheme);
                for (name, path, prepare) in VIEWS {
                    browser.goto(path);
                    prepare(&browser);
                    let name = format!("{name}-{screen:?}-{scheme}").to_lowercase();
                    browser.picture(&name);
                    let _ = browser.js(&axe);
                    let found = browser.js_later(
                        "const done = arguments[arguments.length - 1];
                         axe.run().then(({ violations }) => done(violations.filter(one => ['serious', 'critical'].includes(one.impact))
                             .map(one => `${one.id}: ${one.help}: ${one.nodes.map(node => node.html.slice(0, 160)).slice(0, 3).join(' | ')}`)),
                             error => done([String(error)]))",
                    );
                    findings.extend(found.as_array().unwrap().iter().map(|finding| format!("{name}: {finding}")));
                    sound(&browser);
                }
            }
        }
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    });
}
