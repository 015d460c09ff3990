//! The web UI in a real browser, against a real server.
//!
//! `LOGWEIR_SCREENSHOTS=DIR` saves a screenshot of each view, light and dark, on a desktop and on a phone.

use std::path::Path;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use logweir_tests::browser::{Browser, Screen};
use logweir_tests::client::agent;
use logweir_tests::scenario::{PATIENCE, SEGMENT_BYTES, Scenario, on_postgres, on_sqlite};
use serde_json::{Value, json};

/// Selector of the rendered rows of the table.
const ROW: &str = ".row:not(.head)";

/// Text with markup, quotes, and escapes.
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

/// Sends sixty records from the last 50 minutes: two services, two hosts, every fifth an error, each with an order.
fn shop(s: &mut Scenario) {
    let records: Vec<_> = (0..60)
        .map(|nth| {
            let level = if nth % 5 == 0 { "error" } else { "info" };
            let (service, host) = (["cart", "checkout"][nth % 2], format!("web-{}", nth / 2 % 2));
            let message = if nth % 5 == 0 { format!("card declined, try {nth}") } else { format!("order {nth} paid") };
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

/// Waits until a search has finished with `total` records over the whole range.
fn counted(browser: &Browser, total: &str) {
    browser.until(&format!("{total} records counted"), |browser| {
        browser.text(".total").starts_with(&format!("{total} ")) && browser.count(".histogram.busy") == 0
    });
}

fn no_errors(browser: &Browser) {
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn assets_carry_the_security_policy_and_are_cached() {
    on_sqlite("ui files", |s| {
        s.start();
        let base = format!("http://{}", s.server().http);
        let get = |path: &str, headers: &[(&str, &str)]| {
            let mut request = agent(PATIENCE).get(format!("{base}{path}"));
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
        browser.see(".empty-state", "No records yet");
        let sizes = browser.js(
            "const loaded = performance.getEntriesByType('resource').filter(one => /\\.(js|css)$/.test(one.name));
             return [loaded.length, ...['encodedBodySize', 'decodedBodySize'].map(size => loaded.reduce((sum, one) => sum + one[size], 0))]",
        );
        let size = |nth: usize| sizes[nth].as_u64().unwrap();
        assert!(size(0) > 15 && size(1) * 2 < size(2) && size(1) < 80_000, "compressed: {sizes}");
    });
}

#[test]
fn matches_are_highlighted_and_records_expand() {
    on_sqlite("ui search", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.fill("[name=query]", "declined");
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
        browser.until("the record is collapsed", |browser| browser.count(".detail") == 0);
        browser.back();
        counted(&browser, "60");
        no_errors(&browser);
    });
}

#[test]
fn every_value_can_be_filtered_for_and_excluded() {
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

        // From the detail: each field matches its record, and its exclusion matches the other one.
        for (field, shown) in [("x y", NASTY), ("level2", "a\tb\nc"), ("x y", "OR"), ("level2", "é 漢")] {
            for (sign, expect_it) in [("Filter for", true), ("Exclude", false)] {
                browser.goto("/?query=service:odd");
                counted(&browser, "2");
                for nth in 1..=2 {
                    let _ =
                        browser.js(&format!("document.querySelectorAll('{ROW} .toggle button')[{nth} - 1].click()"));
                }
                browser.until("both are expanded", |browser| browser.count(".detail") == 2);
                browser.click_on(".field-actions button", &format!("{sign} {field} = {}", shown.trim()));
                counted(&browser, "1");
                browser.click(&format!("{ROW} .toggle button"));
                browser.until("one is expanded", |browser| browser.count(".detail") == 1);
                let values =
                    browser.js("return [...document.querySelectorAll('.detail dd')].map(one => one.textContent)");
                let has = values.as_array().unwrap().contains(&json!(shown));
                assert_eq!(has, expect_it, "{field} {sign} {shown:?}: {}", browser.path());
            }
        }

        // From the menu of a cell, from a facet, and from the legend.
        browser.goto("/");
        counted(&browser, "62");
        browser.click_on(&format!("{ROW} .value"), "checkout");
        browser.click_on(".menu button", "Filter for value");
        counted(&browser, "30");
        browser.click_on(".facet[aria-label=host] .facet-value", "web-1");
        browser.until("the host, too", |browser| browser.path().contains("host%3Aweb-1"));
        counted(&browser, "15");
        browser.click_on(".facet[aria-label=severity] button", "Exclude severity = ERROR");
        browser.until("no errors", |browser| browser.path().contains("-severity%3Aerror"));
        browser.until("fewer", |browser| browser.count(ROW) < 15 && browser.count(".histogram.busy") == 0);
        assert!(browser.texts(&format!("{ROW} .severity")).iter().all(|severity| severity == "INFO"));
        browser.click(".legend-item");
        browser.click_on(".menu button", "Filter for value");
        browser.until("the severity from the legend", |browser| browser.path().contains("severity%3Ainfo"));

        // From selected text of a message.
        browser.goto("/");
        counted(&browser, "62");
        let _ = browser.js(
            "const cell = [...document.querySelectorAll('.row .message bdi')].find(one => one.textContent.includes('declined'));
             const text = cell.firstChild, at = text.data.indexOf('declined'), range = document.createRange();
             range.setStart(text, at); range.setEnd(text, at + 8);
             getSelection().removeAllRanges(); getSelection().addRange(range);
             cell.dispatchEvent(new MouseEvent('mouseup', { bubbles: true, clientX: 700, clientY: 400 }));",
        );
        browser.click_on(".menu button", "Exclude text");
        counted(&browser, "50");
        no_errors(&browser);
    };
    on_sqlite("ui values", story);
    on_postgres("ui values", story);
}

#[test]
fn relative_and_absolute_ranges_and_time_zones() {
    on_sqlite("ui time", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?zone=UTC");
        counted(&browser, "60");
        browser.click(".range");
        browser.click_on(".presets button", "Last 15 minutes");
        counted(&browser, "18"); // one each 50 seconds
        assert!(browser.path().contains("start=-15m"));
        assert_eq!(browser.text(".range-label"), "Last 15 minutes");

        browser.click(".range");
        browser.fill("[aria-label='Amount']", "5");
        browser.click_on(".custom button", "Apply");
        counted(&browser, "6");

        let clock = |seconds| ago(seconds).strftime("%Y-%m-%dT%H:%M:%S").to_string();
        browser.click(".range");
        browser.set("[name=from]", &clock(1000));
        browser.set("[name=to]", &clock(2000));
        browser.click_on(".custom button", "Apply absolute range");
        browser.see(".popover [role=alert]", "must be before");
        browser.set("[name=from]", &clock(2000));
        browser.set("[name=to]", &clock(1000));
        browser.click_on(".custom button", "Apply absolute range");
        counted(&browser, "20");
        let utc = browser.text(&format!("{ROW} .time"));

        browser.click(".range");
        browser.fill("[aria-label='Time zone']", "Asia/Kolkata");
        browser.until("five hours and a half later", |browser| browser.text(&format!("{ROW} .time")) != utc);
        let of_day = |text: &str| {
            let mut parts = text.split([':', '.']).map(|part| part.parse::<i64>().unwrap());
            parts.next().unwrap() * 60 + parts.next().unwrap()
        };
        let there = browser.text(&format!("{ROW} .time"));
        assert_eq!((of_day(&there) - of_day(&utc)).rem_euclid(24 * 60), 5 * 60 + 30, "{utc} {there}");
        assert!(browser.path().contains("zone=Asia%2FKolkata"));
        counted(&browser, "20"); // the same records
        no_errors(&browser);
    });
}

#[test]
fn dragging_over_the_histogram_selects_a_range() {
    on_postgres("ui histogram", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.see(".legend", "ERROR\n12");
        browser.drag(".plot", 0.5, 0.75);
        browser.until("an absolute range", |browser| browser.path().contains("start=20"));
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

        // The keyboard selects the three rightmost bars.
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
        no_errors(&browser);
    });
}

#[test]
fn clock_changes_repeat_and_skip_hours() {
    on_sqlite("ui clocks", |s| {
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
        browser.see(".empty-state", "in this time range");
        let choose = |from: &str, to: &str| {
            browser.click(".range");
            browser.set("[name=from]", from);
            browser.set("[name=to]", to);
            browser.click_on(".custom button", "Apply absolute range");
        };
        choose("2025-10-26T02:00:00", "2025-10-26T03:00:00");
        counted(&browser, "2");
        assert_eq!(browser.texts(&format!("{ROW} .time")), ["02:30:00.000"; 2]);
        assert_eq!(browser.texts(&format!("{ROW} .message")), ["half past two again", "half past two"]);
        browser.click(&format!("{ROW} .toggle button"));
        browser.see(".detail", "2025-10-26 02:30:00.000000 +01:00");

        // From a skipped local time to an existing one.
        choose("2025-03-30T02:15:00", "2025-03-30T03:45:00");
        counted(&browser, "1");
        assert!(browser.path().contains("start=2025-03-30T01%3A15"), "{}", browser.path());
        browser.see(&format!("{ROW} .time"), "03:30:00.000");
        no_errors(&browser);
    });
}

/// Responses that arrive out of order, and navigation through the history.
#[test]
fn a_stale_response_does_not_replace_a_newer_one() {
    on_sqlite("ui races", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        // The first response is held back until the second has arrived.
        let _ = browser.js(
            "const real = window.fetch; window.held = [];
             window.fetch = (url, init) => String(url).includes('query=service%3Acart')
                 ? new Promise((resolve, reject) => held.push(() => real(url, { ...init, signal: undefined }).then(resolve, reject)))
                 : real(url, init);",
        );
        browser.fill("[name=query]", "service:cart");
        browser.keys("\u{E007}");
        browser.until("both requests are held", |browser| browser.js("return held.length >= 2") == json!(true));
        browser.fill("[name=query]", "declined");
        browser.keys("\u{E007}");
        counted(&browser, "12");
        let _ = browser.js_async(
            "const done = arguments[arguments.length - 1];
             Promise.allSettled(held.map(one => one())).then(() => setTimeout(done, 100))",
        );
        assert!(browser.text(".total").starts_with("12 "), "{}", browser.text(".total"));
        assert!(browser.texts(&format!("{ROW} .message")).iter().all(|message| message.contains("declined")));

        // History: field, table, and URL agree.
        browser.goto("/");
        counted(&browser, "60");
        for query in ["service:cart", "declined service:cart"] {
            browser.fill("[name=query]", query);
            browser.keys("\u{E007}");
            browser.until("the query in the URL", |browser| {
                browser.path().contains(&query.replace(' ', "+").replace(':', "%3A"))
            });
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
        no_errors(&browser);
    });
}

#[test]
fn a_copied_link_has_an_absolute_range_and_a_bar_can_be_zoomed() {
    on_sqlite("ui copied link", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=declined&zone=UTC");
        counted(&browser, "12");
        let _ = browser.js("navigator.clipboard.writeText = async text => { window.copied = text }");
        browser.keys("y");
        browser.see(".toast", "Link copied");
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

        // A double click zooms into the latest bar.
        let _ = browser.js(
            "const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect();
             plot.dispatchEvent(new MouseEvent('dblclick', { bubbles: true, clientX: box.right - 2, clientY: box.top + 20 }));",
        );
        browser.until("a minute", |browser| browser.path().contains("start=20"));
        browser.until("few", |browser| browser.count(ROW) < 12 && browser.count(".histogram.busy") == 0);
        no_errors(&browser);
        no_errors(&elsewhere);
    });
}

#[test]
fn the_api_documentation_sends_requests() {
    on_sqlite("ui api docs", |s| {
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
                browser.fill(&format!("#tried [name='{name}']"), value);
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
        answer(
            "POST /api/v1/dead-letters/replay",
            &[("(body)", "{\"msg\":\"fixed\"}")],
            "an edited record requires its id",
        );
        answer("POST /api/v1/dead-letters/purge", &[("older_than", "7d")], "\"purged\": 0");
        answer("GET /api/v1/tail", &[("query", "service:live")], "200 OK");
        send(s, &[json!({ "service": "live", "msg": "as it comes" })]);
        browser.see("#tried pre", "as it comes");
        browser.click_on("#tried button", "Stop");
        browser.until("no client", |_| s.server().metric("logweir_tail_clients", "") == 0.0);
        no_errors(&browser);
    });
}

#[test]
fn only_visible_rows_are_rendered() {
    on_sqlite("ui rows", |s| {
        s.start();
        let records: Vec<_> = (0..5000)
            .map(|nth| json!({ "ts": ago(nth / 4).to_string(), "service": "many", "level": "info", "msg": format!("number {nth}") }))
            .collect();
        send(s, &records);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "5,000");
        let mut most = 0;
        browser.until("the oldest record", |browser| {
            let _ = browser.js("const table = document.querySelector('.table'); table.scrollTop = table.scrollHeight");
            most = most.max(browser.count(ROW));
            browser.text(".bottom").contains("No older records")
        });
        assert!(most < 100, "{most} rows are rendered");
        browser.see(".foot", "5,000 records loaded");
        assert_eq!(browser.js("return document.querySelector('.grid').getAttribute('aria-rowcount')"), json!("5001"));
        let _ = browser.js("const table = document.querySelector('.table'); table.scrollTop = table.scrollHeight");
        browser.see(&format!("{ROW} .message"), "number 4999");
        // An expanded record moves the rows below it; no rows overlap.
        let _ = browser.js("document.querySelector('.table').scrollTop = 0");
        browser.see(&format!("{ROW} .message"), "number 3");
        browser.click(&format!("{ROW} .toggle button"));
        browser.until("it is expanded", |browser| browser.count(".opened") == 1);
        browser.until("nothing overlaps", |browser| {
            browser.js("const boxes = [...document.querySelectorAll('.row:not(.head), .opened')].map(one => one.getBoundingClientRect()).sort((a, b) => a.top - b.top);
                        return boxes.every((box, nth) => nth === 0 || box.top >= boxes[nth - 1].bottom - 0.5)") == json!(true)
        });
        no_errors(&browser);
    });
}

#[test]
fn the_url_reproduces_the_view() {
    on_sqlite("ui link", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.fill("[name=query]", "service:cart severity>=info");
        browser.keys("\u{E007}");
        counted(&browser, "30");
        browser.click_on(".facet[aria-label='Other fields'] .facet-value", "order");
        browser.see(".facet[aria-label=order]", "47");
        browser.click_on(".facet[aria-label=order] button", "Show order as a column");
        browser.see(".row.head", "order");
        browser.drag(".plot", 0.3, 0.9);
        browser
            .until("the range", |browser| browser.path().contains("end=20") && browser.count(".histogram.busy") == 0);
        browser.click(".range");
        browser.click_on(".custom button", "UTC");
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

        // Columns can be removed.
        elsewhere.click_on(".row.head button", "Remove column order");
        elsewhere.until("no column", |elsewhere| !elsewhere.path().contains("columns"));
        no_errors(&browser);
        no_errors(&elsewhere);
    });
}

#[test]
fn context_shows_the_neighbors_and_has_a_url() {
    on_sqlite("ui context", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=declined service:cart host:web-0");
        browser.until("rows", |browser| browser.count(ROW) == 3);
        browser.click(&format!("{ROW}:nth-of-type(2) .toggle button"));
        browser.click_on(".detail-actions button", "Context");
        browser.see(".context .here", "card declined, try 20");
        let lines = browser.texts(".context li .message");
        // The same service and host: every fourth record, oldest first.
        let expect = |nth: usize| {
            if nth.is_multiple_of(5) { format!("card declined, try {nth}") } else { format!("order {nth} paid") }
        };
        assert_eq!(lines, (0..15).rev().map(|nth| expect(nth * 4)).take(15).collect::<Vec<_>>());
        let address = browser.path();
        assert!(address.contains("record="));
        browser.keys("\u{E00C}");
        browser.until("it is closed", |browser| browser.count("dialog") == 0);
        let elsewhere = open(s, Screen::Desktop, &address);
        elsewhere.see(".context .here", "card declined, try 20");
        no_errors(&browser);
    });
}

#[test]
fn the_live_tail_pauses_and_resumes_after_a_kill() {
    on_sqlite("ui tail", |s| {
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

        // Records sent while the browser is disconnected arrive after it reconnects.
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
        no_errors(&browser);
    });
}

/// An interrupted stream, and a server that no longer has, or never had, the missed records.
#[test]
fn the_live_tail_shows_gaps() {
    on_sqlite("ui gap", |s| {
        s.set("lanes", 1);
        s.start();
        let browser = open(s, Screen::Desktop, "/?live=1&query=service:live");
        browser.see(".live-state", "Live");
        let one = |nth: u32| json!({ "level": "info", "service": "live", "msg": format!("live {nth}") });
        send(s, &[one(1)]);
        browser.see(&format!("{ROW} .message"), "live 1");

        // On another port, enough records arrive for the journal to release its first segments.
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

        // Another volume at the same address: the number of missing records is unknown.
        s.stop();
        s.set("data_dir", s.dir.join("another").display());
        s.start();
        browser.see(".live-bar", "2 gaps");
        browser.see(".row.gap", "Records may be missing here");
        send(s, &[one(3)]);
        browser.see(&format!("{ROW} .message"), "live 3");
        let shown = browser.texts(&format!("{ROW}:not(.gap) .message"));
        assert_eq!(shown, ["live 3", "live 2", "live 1"]);
        no_errors(&browser);
    });
}

#[test]
fn a_restarted_tail_is_reset_and_a_rejected_tail_shows_the_reason() {
    on_sqlite("ui tail reset", |s| {
        s.set("tail.clients_max", 1);
        s.start();
        let browser = open(s, Screen::Desktop, "/?live=1");
        browser.see(".live-state", "Live");
        send(s, &[json!({ "service": "live", "msg": "the first" })]);
        browser.see(&format!("{ROW} .message"), "the first");
        browser.keys("p");
        browser.see(".live-state", "Paused");

        let other = open(s, Screen::Phone, "/?live=1");
        other.see(".live-bar", "tail.clients_max");
        browser.keys("l");
        other.see(".live-state", "Live");
        assert!(!other.text(".live-bar").contains("clients_max"));
        other.click(".live-button");
        other.until("no tail", |other| other.count(".live-bar") == 0);

        // Neither the pause nor the counts of the previous tail remain.
        browser.keys("l");
        browser.see(".live-state", "Live");
        assert_eq!((browser.text(".received").as_str(), browser.count(".held")), ("0", 0));
        no_errors(&browser);
        no_errors(&other);
    });
}

#[test]
fn results_can_be_exported() {
    on_sqlite("ui export", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=declined");
        counted(&browser, "12");
        for (format, lines) in [("ndjson", 12), ("csv", 13)] {
            browser.click("[aria-label^=Export]");
            browser.click(&format!("dialog [value={format}]"));
            browser.click_on("dialog button", "Download");
            let downloaded = |browser: &Browser| {
                let file = browser.downloads().into_iter().find(|path| has_extension(path, format));
                file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
            };
            // The browser creates the file before it writes to it.
            browser.until(&format!("{lines} lines"), |browser| downloaded(browser).lines().count() == lines);
            let text = downloaded(&browser);
            assert_eq!(text.matches("card declined").count(), 12);
        }
        browser.click("[aria-label^=Export]");
        let line = browser.text("dialog .code code");
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 12, "{line}");
        no_errors(&browser);
    });
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

#[test]
fn an_empty_store_shows_the_command_that_sends_the_first_record() {
    on_sqlite("ui empty", |s| {
        s.start();
        let browser = open(s, Screen::Desktop, "/");
        browser.see(".empty-state", "No records yet");
        let line = browser.text(".empty-state .code code");
        let output = Command::new("sh").args(["-c", &line]).output().expect("sh and curl");
        assert!(output.status.success(), "{line}: {output:?}");
        browser.see(&format!("{ROW} .message"), "it works");

        browser.goto("/?query=nothing-like-this");
        browser.see(".empty-state", "No matching records");
        browser.see(".empty-state", "hello");
        browser.click_on(".empty-state button", "Clear query");
        browser.see(&format!("{ROW} .message"), "it works");
        no_errors(&browser);
    });
}

/// Records without a time, as the quick start of the README sends them.
#[test]
fn records_without_a_time_are_shown_right_after_they_are_committed() {
    on_sqlite("ui first records", |s| {
        s.start();
        let body = "{\"level\":\"warn\",\"service\":\"checkout\",\"msg\":\"card declined\",\"order\":4711}\n\
                    {\"service\":\"web\",\"msg\":\"GET /cart 200\"}\n\
                    any other line is kept as it is\n";
        let answer = s.server().post("/ingest?ack=committed", "application/x-www-form-urlencoded", body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "3");
        for message in ["card declined", "GET /cart 200", "any other line is kept as it is"] {
            browser.see(&format!("{ROW} .message"), message);
        }
        no_errors(&browser);
    });
}

#[test]
fn an_empty_range_leads_to_the_records_outside_of_it() {
    on_sqlite("ui empty range", |s| {
        s.start();
        let record = |ts: &str, msg: &str| json!({ "ts": ts, "service": "archive", "msg": msg });
        send(s, &[record("2015-05-17T10:05:03Z", "the earliest"), record("2015-05-17T10:05:04.123456Z", "the latest")]);
        let browser = open(s, Screen::Desktop, "/?zone=UTC");
        browser.see(".empty-state", "No records in this time range");
        browser.see(
            ".empty-state",
            "All records are outside this range: 2 records from 1 service (archive)\n2015-05-17 10:05:03 to 2015-05-17 10:05:04",
        );
        // Shorter ranges would be as empty.
        assert_eq!(browser.texts(".empty-state button"), ["Show all records"]);
        browser.click_on(".empty-state button", "Show all records");
        counted(&browser, "2");

        browser.goto("/?zone=UTC&query=latest");
        browser.see(".empty-state", "No matching records in this time range");
        browser.click_on(".empty-state button", "Search all records");
        counted(&browser, "1");
        assert!(browser.path().contains("query=latest"), "{}", browser.path());

        // With records in the range, earlier ones are one click away.
        send(s, &[json!({ "service": "archive", "msg": "today" })]);
        browser.goto("/?zone=UTC");
        counted(&browser, "1");
        browser.see(".bottom", "No older records in this range.");
        browser.click_on(".bottom button", "Search earlier");
        counted(&browser, "3");
        browser.click_on(".bottom button", "Search earlier");
        browser.see(".toast", "No earlier records");
        no_errors(&browser);
    });
}

#[test]
fn an_unreachable_server_is_reported_and_recovers() {
    on_sqlite("ui unreachable", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        s.server().kill();
        browser.click_on(".bar button", "Search");
        browser.see(".error-banner", "is unreachable");
        assert!(browser.count(ROW) > 10, "the previous result is still shown");
        s.start();
        browser.until("the banner disappears", |browser| browser.count(".error-banner") == 0);
        counted(&browser, "60");
    });
}

#[test]
fn recent_records_are_shown_while_the_database_is_down() {
    on_postgres("ui partial", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        assert_eq!(browser.count(".table-box .note"), 0);
        s.postgres().stop_immediately();
        let answer = s.server().post("/ingest?service=cart", "text/plain", "sent meanwhile").expect("an answer");
        assert_eq!(answer.status, 200);
        browser.until("only cached records", |browser| {
            browser.click_on(".bar button", "Search");
            browser.text(".table-box .note").contains("only recent records from the cache")
        });
        browser.see(".legend", "Counts are unavailable while the database is down");
        browser.screenshot("partial-desktop-light");
        browser.see(&format!("{ROW} .message"), "sent meanwhile");
        browser.see(&format!("{ROW} .message"), "order 1 paid");
        // The search is retried automatically.
        s.postgres().restart();
        browser.until("a complete result", |browser| browser.count(".table-box .note") == 0);
        counted(&browser, "61");
        no_errors(&browser);
    });
}

#[test]
fn a_query_error_is_shown_at_its_column() {
    on_sqlite("ui query errors", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/?query=service:cart (order");
        browser.see(".query-problem", "Column 14");
        assert_eq!(browser.text(".query-problem mark"), "(");
        browser.fill("[name=query]", "service:cart");
        browser.keys("\u{E007}");
        counted(&browser, "30");
        assert_eq!(browser.count(".query-problem"), 0);
        no_errors(&browser);
    });
}

#[test]
fn an_access_token_is_requested_and_used_everywhere() {
    on_sqlite("ui token", |s| {
        s.set("auth.query_tokens", "a-token-to-read-with");
        s.set("auth.ingest_tokens", "a-token-to-send-with");
        s.start();
        let ingest = |s: &mut Scenario, text: &str| {
            let url = format!("http://{}/ingest?ack=committed", s.server().http);
            let request = agent(PATIENCE).post(url).header("authorization", "Bearer a-token-to-send-with");
            assert_eq!(request.send(text).unwrap().status(), 200);
        };
        ingest(s, "the first");
        let browser = open(s, Screen::Desktop, "/");
        for (token, right) in [("a-token-that-is-wrong", false), ("a-token-to-read-with", true)] {
            browser.see("dialog", "auth.query_tokens");
            browser.fill("[name=token]", token);
            browser.click_on("dialog button", "Continue");
            if right {
                browser.see(&format!("{ROW} .message"), "the first");
            }
        }
        browser.click(".live-button");
        browser.see(".live-state", "Live");
        ingest(s, "the second");
        browser.see(&format!("{ROW} .message"), "the second");
        assert!(!browser.path().contains("token"));
        // The token is kept for the tab.
        browser.goto("/pipeline");
        browser.see(".totals", "Accepted");
        assert_eq!(browser.count("dialog"), 0);
    });
}

#[test]
fn the_keyboard_reaches_everything() {
    on_sqlite("ui keys", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/");
        counted(&browser, "60");
        browser.keys("?");
        browser.see("dialog", "live tail");
        browser.keys("\u{E00C}");
        browser.until("closed", |browser| browser.count("dialog") == 0);
        browser.keys("/");
        browser.keys("service:cart\u{E007}");
        counted(&browser, "30");
        browser.keys("\u{E00C}"); // leaves the field
        browser.keys("jj");
        browser.until("the second is selected", |browser| {
            browser.text(".row.selected .message") == browser.texts(&format!("{ROW} .message"))[1]
        });
        browser.keys("\u{E007}");
        browser.until("it is expanded", |browser| browser.count(".detail") == 1);
        browser.keys("c");
        browser.see(".context .here", "paid");
        browser.keys("\u{E00C}");
        browser.keys("t");
        browser.until("the time range picker", |browser| browser.count(".popover") == 1);
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
        // The table is focusable and supports arrow keys.
        let _ = browser.js("document.querySelector('.grid').focus()");
        browser.keys("\u{E010}"); // End
        browser.until("the last one", |browser| browser.text(".row.selected .message").contains("58"));
        no_errors(&browser);
    });
}

#[test]
fn a_phone_needs_no_horizontal_scrolling() {
    on_sqlite("ui phone", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Phone, "/");
        counted(&browser, "60");
        let fits =
            |browser: &Browser| browser.js("return document.documentElement.scrollWidth <= innerWidth") == json!(true);
        assert!(fits(&browser), "nothing is wider than the screen");
        browser.click("[aria-label^='Filters']");
        browser.click_on(".facet[aria-label=service] .facet-value", "cart");
        counted(&browser, "30");
        browser.click(".side-head button");
        browser.click(&format!("{ROW} .toggle button"));
        browser.see(".detail", "user.tier");
        assert!(fits(&browser));
        browser.click(".range");
        browser.until("the time range picker", |browser| browser.count(".popover") == 1);
        assert!(fits(&browser));
        for path in ["/pipeline", "/alerts"] {
            browser.goto(path);
            browser.until("the view", |browser| !browser.text("main").contains("Loading"));
            assert!(fits(&browser), "{path}");
        }
        no_errors(&browser);
    });
}

#[test]
fn the_pipeline_view_shows_the_status() {
    on_postgres("ui pipeline", |s| {
        s.start();
        shop(s);
        let browser = open(s, Screen::Desktop, "/pipeline");
        browser.see(".totals", "60");
        browser.see(".totals", "balanced");
        for stage in ["Admission", "Parser", "Batcher", "Flusher", "Cache writer"] {
            browser.see(".stage h3", stage);
        }
        let lanes = s.server().status()["lanes"].as_array().unwrap().len();
        assert_eq!(browser.count("table caption"), 1);
        assert_eq!(browser.count(".processor tbody tr"), lanes);
        shop(s);
        browser.see(".totals", "120");

        // While the database is down, the backlog is shown with its age.
        s.postgres().stop_immediately();
        let answer = s.server().post("/ingest?ack=journal", "text/plain", "one more").expect("an answer");
        assert_eq!(answer.status, 200);
        browser.see(".numbers", "1 record");
        browser.until("it grows older", |browser| {
            browser.text(".age").strip_suffix(" s").and_then(|age| age.parse::<u32>().ok()).is_some_and(|age| age >= 3)
        });
        browser.see(".processor tbody", "failing");
        // Replay progress is shown while there is a backlog.
        browser.see(".replay", "1 record remaining");
        s.postgres().restart();
        browser.until("replayed", |browser| browser.count(".replay") == 0 && browser.text(".totals").contains("121\n"));
        no_errors(&browser);
    });
}

#[test]
fn dead_letters_are_listed_retried_and_deleted() {
    on_postgres("ui dead letters", |s| {
        s.start();
        shop(s);
        s.store.rows("ALTER TABLE logs ADD CONSTRAINT no_poison CHECK (message NOT LIKE 'poison%')").unwrap();
        let poison = |nth: u32| json!({ "service": "cart", "msg": format!("poison <b>{nth}</b>") });
        send(s, &[poison(1), poison(2)]);
        let browser = open(s, Screen::Desktop, "/pipeline");
        browser.see(".dead-letters", "poison <b>2</b>");
        assert_eq!(browser.count(".dead-letters tbody tr"), 2);
        browser.see(".dead-letters .reason", "23514"); // check_violation
        browser.click(".dead-letters tbody button");
        browser.see(".toast", "0 records stored, 1 rejected again");
        s.store.rows("ALTER TABLE logs DROP CONSTRAINT no_poison").unwrap();
        browser.click(".dead-letters tbody button");
        browser.until("one is left", |browser| browser.count(".dead-letters tbody tr") == 1);
        browser.click_on(".dead-letters button", "Delete all");
        browser.click_on("dialog button", "Cancel");
        browser.click_on(".dead-letters button", "Replay all");
        browser.see(".dead-letters", "No dead letters. The database accepted every record");
        assert_eq!(s.store.count(), Ok(62));

        s.store.rows("ALTER TABLE logs ADD CONSTRAINT no_poison CHECK (message NOT LIKE 'poison%') NOT VALID").unwrap();
        send(s, &[poison(3)]);
        browser.see(".dead-letters", "poison <b>3</b>");
        browser.click_on(".dead-letters button", "Delete all");
        browser.click_on("dialog button", "Delete");
        browser.see(".dead-letters", "No dead letters. The database accepted every record");
        assert_eq!(s.store.count(), Ok(62));
        no_errors(&browser);
    });
}

#[test]
fn alerts_link_to_their_records() {
    on_sqlite("ui alerts", |s| {
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
        no_errors(&browser);
    });
}

#[test]
fn records_dropped_by_the_tail_are_counted() {
    on_sqlite("ui dropped", |s| {
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
        no_errors(&browser);
    });
}

#[test]
fn the_theme_is_remembered() {
    on_sqlite("ui theme", |s| {
        s.start();
        let browser = open(s, Screen::Desktop, "/pipeline");
        browser.see(".totals", "Accepted");
        let ground = |browser: &Browser| browser.js("return getComputedStyle(document.body).backgroundColor");
        browser.color_scheme("light");
        let light = ground(&browser);
        browser.color_scheme("dark");
        let dark = ground(&browser);
        assert_ne!(light, dark);
        browser.click("[aria-label^=Theme]"); // light, regardless of the system
        browser.until("light", |browser| ground(browser) == light);
        browser.goto("/pipeline");
        browser.until("still light", |browser| ground(browser) == light);
        no_errors(&browser);
    });
}

/// A view: name, path, and preparation.
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
        browser.see(".menu", "Filter for value");
    }),
    ("time-range", "/", |browser| {
        counted(browser, "60");
        browser.click(".range");
        browser.see(".popover", "Last 30 days");
    }),
    ("query-error", "/?query=service:cart (order", |browser| browser.see(".query-problem", "Column 14")),
    ("empty", "/?query=nothing-like-this", |browser| browser.see(".empty-state", "No matching records")),
    ("live", "/?live=1", |browser| browser.see(".live-state", "Live")),
    ("pipeline", "/pipeline", |browser| {
        browser.see(".totals", "balanced");
        browser.until("rates", |browser| browser.text(".totals").contains("/s"));
    }),
    ("alerts", "/alerts", |browser| browser.see(".alert-card.firing", "silent")),
    ("facets", "/?facets=order", |browser| {
        counted(browser, "60");
        if browser.count(".side") == 0 {
            browser.click("[aria-label^='Filters']");
        }
        browser.see(".facet[aria-label=order]", "47");
    }),
    ("context", "/?query=declined", |browser| {
        counted(browser, "12");
        browser.click(&format!("{ROW} .toggle button"));
        browser.click_on(".detail-actions button", "Context");
        browser.see(".context .here", "card declined");
    }),
    ("export", "/?query=declined", |browser| {
        counted(browser, "12");
        browser.click("[aria-label^=Export]");
        browser.see("dialog .code", "curl");
    }),
    ("api-docs", "/api/v1/docs", |browser| {
        browser.click_on("summary", "GET /api/v1/query");
        browser.click_on("details[open] button", "Send");
        browser.see("details[open] pre", "200 OK");
    }),
    ("shortcuts", "/pipeline", |browser| {
        browser.see(".totals", "balanced");
        browser.click("[aria-label^='Keyboard shortcuts']");
        browser.see("dialog", "live tail");
    }),
];

/// axe-core, installed by `tests/install-servers` from npm.
const AXE: &str = "/usr/local/lib/logweir-tests/axe-core/package/axe.min.js";

#[test]
fn every_view_is_accessible_in_light_and_dark() {
    let axe = std::fs::read_to_string(AXE).expect("axe-core should be installed by tests/install-servers");
    on_sqlite("ui accessibility", |s| {
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
                browser.color_scheme(scheme);
                for (name, path, prepare) in VIEWS {
                    browser.goto(path);
                    prepare(&browser);
                    let name = format!("{name}-{screen:?}-{scheme}").to_lowercase();
                    browser.screenshot(&name);
                    let _ = browser.js(&axe);
                    let found = browser.js_async(
                        "const done = arguments[arguments.length - 1];
                         axe.run().then(({ violations }) => done(violations.filter(one => ['serious', 'critical'].includes(one.impact))
                             .map(one => `${one.id}: ${one.help}: ${one.nodes.map(node => node.html.slice(0, 160)).slice(0, 3).join(' | ')}`)),
                             error => done([String(error)]))",
                    );
                    findings.extend(found.as_array().unwrap().iter().map(|finding| format!("{name}: {finding}")));
                    no_errors(&browser);
                }
            }
        }
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    });
}
