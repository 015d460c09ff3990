//! Requests of Grafana's Loki data source on a real server, and the dashboard for its PostgreSQL data source.

use logweir_tests::client::agent;
use logweir_tests::process::Server;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_sqlite};
use serde_json::{Value, json};

/// 2026-11-20T10:00:00Z in seconds: all records of these tests are in the following ten minutes.
const BASE: i64 = 1_795_168_800;
const RANGE: [(&str, &str); 2] = [("start", "1795168800000000000"), ("end", "1795169400000000000")];

/// 20 records of `cart`, one every 30 seconds, of which every fifth is an error; six of `shop`, a minute apart; one
/// without a service.
fn fill(server: &Server) {
    let mut body = String::new();
    for nth in 0..20 {
        let (level, status) = if nth % 5 == 0 { ("error", 502) } else { ("info", 200) };
        let message = format!("GET /cart/{nth} \"took\" <{nth}> ms");
        let line = json!({ "ts": (BASE + nth * 30) * 1000, "level": level, "service": "cart", "host": "pod-1",
            "msg": message, "status": status, "k8s.pod.name": "cart-0" });
        body += &format!("{line}\n");
    }
    for nth in 0..6 {
        let line = json!({ "ts": (BASE + nth * 60) * 1000, "level": "warn", "service": "shop", "host": "pod-2",
            "msg": "stock is low", "order": { "item": nth } });
        body += &format!("{line}\n");
    }
    body += &format!("{}\n", json!({ "ts": (BASE + 1) * 1000, "msg": "without a service" }));
    let answer = server.post("/ingest?ack=committed", "application/x-ndjson", &body).expect("an answer");
    assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(27)), "{}", answer.body);
}

/// The `data` of a successful response.
fn fetch(server: &Server, path: &str, parameters: &[(&str, &str)]) -> Value {
    let (status, body) = request(server, path, parameters);
    let answer: Value = serde_json::from_str(&body).unwrap_or_default();
    assert!(status == 200 && answer["status"] == "success", "{path} {parameters:?}: {status} {body}");
    answer["data"].clone()
}

fn request(server: &Server, path: &str, parameters: &[(&str, &str)]) -> (u16, String) {
    let request = agent(PATIENCE).get(format!("http://{}/loki/api/v1/{path}", server.http));
    let request = request.query_pairs(RANGE).query_pairs(parameters.iter().copied());
    let mut answer = request.header("X-Loki-Response-Encoding-Flags", "categorize-labels").call().expect("an answer");
    (answer.status().as_u16(), answer.body_mut().read_to_string().expect("a body"))
}

/// Number of records that match a query.
fn found(server: &Server, query: &str) -> usize {
    let data = fetch(server, "query_range", &[("query", query), ("limit", "1000")]);
    assert_eq!(data["resultType"], "streams");
    data["result"].as_array().expect("streams").iter().map(|s| s["values"].as_array().map_or(0, Vec::len)).sum()
}

fn on_both(name: &str, test: fn(&Server)) {
    let run = |s: &mut Scenario| {
        s.start();
        fill(s.server());
        test(s.server());
    };
    on_sqlite(name, run);
    on_postgres(name, run);
}

#[test]
fn records_are_found_by_labels_lines_and_attributes() {
    on_both("LogQL", |server| {
        for (query, count) in [
            ("{}", 27),
            (r#"{service_name="cart"}"#, 20),
            (r#"{service_name=~".+"}"#, 27),
            (r#"{service_name="unknown_service"}"#, 1),
            (r#"{service_name=~"cart|shop", level!="info"}"#, 10),
            (r#"{detected_level="unknown"}"#, 1),
            (r#"{level=~"warn|error"} |= "stock""#, 6),
            ("{service=\"cart\"} |~ `/cart/1\\d `", 10),
            ("{service_name=\"cart\"} != `\"took\"`", 0),
            ("{service_name=\"cart\"} |= \"<7>\" or \"<8>\"", 2),
            ("{} | json | status >= 500", 4),
            ("{} | logfmt | status = 200 and host = \"pod-1\"", 16),
            ("{k8s_pod_name=\"cart-0\"} | status = 502", 4),
            ("{} | order_item >= 4", 2),
            ("{} | order_item = \"\" | __error__ = \"\"", 21),
        ] {
            assert_eq!(found(server, query), count, "{query}");
        }
    });
}

#[test]
fn a_stream_has_labels_and_each_entry_its_metadata() {
    on_both("streams", |server| {
        let query = [("query", r#"{service_name="cart", level="error"}"#), ("limit", "2")];
        let data = fetch(server, "query_range", &query);
        assert_eq!(data["encodingFlags"], json!(["categorize-labels"]));
        let entry = |nth: i64| {
            json!([
                ((BASE + nth * 30) * 1_000_000_000).to_string(),
                format!("GET /cart/{nth} \"took\" <{nth}> ms"),
                { "structuredMetadata": { "status": "502", "k8s_pod_name": "cart-0" } }
            ])
        };
        let stream = json!({ "service_name": "cart", "host": "pod-1", "level": "error" });
        assert_eq!(data["result"], json!([{ "stream": stream, "values": [entry(15), entry(10)] }]));
        let forward = fetch(server, "query_range", &[query[0], query[1], ("direction", "FORWARD")]);
        assert_eq!(forward["result"], json!([{ "stream": stream, "values": [entry(0), entry(5)] }]));

        // A client that does not distinguish metadata from labels gets everything as labels.
        let url = format!("http://{}/loki/api/v1/query_range", server.http);
        let form = [RANGE[0], RANGE[1], ("query", r#"{service_name="shop"} | order_item = 3"#)];
        let mut answer = agent(PATIENCE).post(url).send_form(form).expect("an answer");
        let answer: Value = serde_json::from_str(&answer.body_mut().read_to_string().expect("a body")).expect("JSON");
        let stream = json!({ "service_name": "shop", "host": "pod-2", "level": "warn", "order_item": "3" });
        let values = json!([[((BASE + 180) * 1_000_000_000).to_string(), "stock is low"]]);
        assert_eq!(answer["data"]["result"], json!([{ "stream": stream, "values": values }]), "{answer}");
    });
}

#[test]
fn counts_over_windows_are_those_of_the_records() {
    on_both("counts", |server| {
        let series = |query: &str, step: &str| {
            let data = fetch(server, "query_range", &[("query", query), ("step", step)]);
            assert_eq!(data["resultType"], "matrix", "{query}");
            data["result"].clone()
        };
        // The volume above the records, as queried by Grafana.
        let volume = r#"sum by (level, detected_level) (count_over_time({service_name="cart"} | drop __error__[1m]))"#;
        let volume = series(volume, "60s");
        let error = volume.as_array().expect("series").iter().find(|one| one["metric"]["level"] == "error");
        let error = error.unwrap_or_else(|| panic!("no errors in {volume}"));
        assert_eq!(error["metric"], json!({ "level": "error", "detected_level": "error" }));
        // At 0, 150, 300 and 450 seconds: each in the minute that ends after it.
        let at = |at: i64| (BASE + at) as f64;
        assert_eq!(error["values"], json!([[at(60), "1"], [at(180), "1"], [at(360), "1"], [at(480), "1"]]));

        // Windows of two minutes every minute, with a filter that requires reading the records.
        let filtered = series(r#"sum(count_over_time({service_name="cart"} |= "/cart/1" [2m]))"#, "1m");
        let counts: Vec<&str> =
            filtered[0]["values"].as_array().expect("values").iter().filter_map(|v| v[1].as_str()).collect();
        assert_eq!(counts, ["1", "1", "2", "4", "4", "4", "4"], "{filtered}");
        let rate = series(r#"sum by (service_name) (rate({service_name=~".+"}[5m]))"#, "5m");
        let last = |service: &str| {
            let one = rate.as_array().into_iter().flatten().find(|one| one["metric"]["service_name"] == service);
            one.and_then(|one| one["values"].as_array()?.last()?[1].as_str()?.parse::<f64>().ok())
        };
        assert_eq!((last("cart"), last("shop")), (Some(10.0 / 300.0), Some(1.0 / 300.0)), "{rate}");

        let at = [("query", r#"sum(count_over_time({service_name="cart"}[10m]))"#), ("time", "1795169400")];
        let vector = fetch(server, "query", &at);
        assert_eq!(vector["result"], json!([{ "metric": {}, "value": [1_795_169_400.0, "20"] }]), "{vector}");
    });
}

#[test]
fn other_requests_of_the_data_source_are_answered() {
    on_both("labels", |server| {
        // Its health check must not be answered with 400.
        let health = fetch(server, "query", &[("query", "vector(1)+vector(1)"), ("time", "4000000000")]);
        assert_eq!(health["result"][0]["value"], json!([4_000_000_000.0, "2"]));
        assert_eq!(server.data("/ready").map(|answer| answer.status), Some(200));

        assert_eq!(fetch(server, "labels", &[]), json!(["host", "level", "service_name"]));
        assert_eq!(fetch(server, "label/service_name/values", &[]), json!(["cart", "shop", "unknown_service"]));
        let warned = [("query", r#"{level="warn"}"#)];
        assert_eq!(fetch(server, "label/service_name/values", &warned), json!(["shop"]));
        assert_eq!(fetch(server, "label/host/values", &warned), json!(["pod-2"]));
        assert_eq!(fetch(server, "label/k8s_pod_name/values", &[]), json!(["cart-0"]));
        assert_eq!(fetch(server, "series", &[("match[]", r#"{level="error"}"#)]), json!([{ "service_name": "cart" }]));
        let (status, stats) = request(server, "index/stats", &[("query", r#"{service_name="cart"}"#)]);
        let stats: Value = serde_json::from_str(&stats).unwrap_or_default();
        assert_eq!((status, &stats["entries"], &stats["streams"]), (200, &json!(20), &json!(1)));
        let volume = fetch(server, "index/volume", &[("query", "{}"), ("targetLabels", "level")]);
        let volumes: Vec<(&str, &str)> = (volume["result"].as_array().into_iter().flatten())
            .filter_map(|one| Some((one["metric"]["level"].as_str()?, one["value"][1].as_str()?)))
            .collect();
        assert_eq!(volumes, [("error", "4"), ("info", "16"), ("unknown", "1"), ("warn", "6")]);
        let rows = fetch(server, "index/volume_range", &[("query", r#"{level="warn"}"#), ("step", "300")]);
        assert_eq!(rows["result"][0]["metric"], json!({ "service_name": "shop" }), "{rows}");
    });
}

#[test]
fn unsupported_logql_is_rejected_instead_of_misinterpreted() {
    on_sqlite("unsupported LogQL", |s| {
        s.start();
        fill(s.server());
        let server = s.server();
        for (path, query, status, part) in [
            ("query_range", r#"{a="b"} | line_format "x""#, 400, "col 11: unsupported LogQL: `line_format`"),
            ("query_range", "topk(3, rate({}[1m]))", 400, "unsupported LogQL: `topk`"),
            ("query_range", r#"{a="b""#, 400, "parse error at line 1, col"),
            ("query", "{}", 400, "use query_range for records"),
            ("query_range", "sum(rate({}[1ms]))", 400, "exceed the limit of 11000"),
            ("tail", "{}", 400, "expected a WebSocket upgrade"),
            ("tail", "rate({}[1m])", 400, "expected a selector"),
            ("patterns", "{}", 404, "unsupported Loki endpoint"),
        ] {
            let (status_code, body) = request(server, path, &[("query", query)]);
            assert!(status_code == status && body.contains(part), "{path} {query}: {status_code} {body}");
        }
        let (status_code, body) = request(server, "query_range", &[("query", "{}"), ("limit", "5001")]);
        assert!(status_code == 400 && body.contains("from 1 to 5000"), "{body}");
    });
}

#[test]
fn a_live_tail_has_stored_records_and_then_new_ones() {
    on_both("a websocket", |server| {
        let query = "query=%7Bservice_name%3D%22shop%22%7D&limit=2&start=1795168800000000000&end=1795169400000000000";
        let address = std::net::TcpStream::connect(server.http).expect("a connection");
        address.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let url = format!("ws://{}/loki/api/v1/tail?{query}", server.http);
        let (mut socket, _) = tungstenite::client(url, address).expect("a websocket");
        let mut lines = Vec::new();
        let mut until = |count: usize| {
            while lines.len() < count {
                let message = socket.read().expect("a frame before the timeout");
                let frame: Value = match message {
                    tungstenite::Message::Text(text) => serde_json::from_str(&text).expect("JSON"),
                    _ => continue,
                };
                for stream in frame["streams"].as_array().expect("streams") {
                    assert_eq!(stream["stream"]["service_name"], "shop");
                    let values = stream["values"].as_array().expect("values");
                    lines.extend(values.iter().map(|value| value[1].as_str().expect("a line").to_owned()));
                }
            }
            lines.clone()
        };
        assert_eq!(until(2), ["stock is low"; 2]);
        for (service, message) in [("shop", "one"), ("cart", "two"), ("shop", "three")] {
            let answer = server.post(&format!("/ingest?service={service}"), "text/plain", &format!("{message}\n"));
            assert_eq!(answer.map(|answer| answer.status), Some(200));
        }
        assert_eq!(until(4)[2..], ["one", "three"]);
    });
}

/// Expands the macros and variables in the SQL of a panel, as Grafana does.
fn expanded(sql: &str) -> String {
    let column_of = |sql: &str, name: &str| {
        let rest = sql.split_once(name)?.1.strip_prefix('(')?;
        Some(rest.split_once(')')?.0.to_owned())
    };
    let mut sql = sql.to_owned();
    while let Some(column) = column_of(&sql, "$__timeFilter") {
        let range = format!("{column} BETWEEN '2026-11-20T10:00:00Z' AND '2026-11-20T10:10:00Z'");
        sql = sql.replace(&format!("$__timeFilter({column})"), &range);
    }
    while let Some(arguments) = column_of(&sql, "$__timeGroupAlias") {
        let column = arguments.split(',').next().unwrap_or_default();
        let group = format!("floor(extract(epoch from {column}) / 60) * 60 AS \"time\"");
        sql = sql.replace(&format!("$__timeGroupAlias({arguments})"), &group);
    }
    let variables =
        [("${service:sqlstring}", "'cart','shop'"), ("${search:sqlstring}", "'STOCK'"), ("$severity", "13")];
    let sql = variables.iter().fold(sql, |sql, (name, value)| sql.replace(name, value));
    assert!(!sql.contains('$'), "unexpanded variable: {sql}");
    sql
}

#[test]
fn every_panel_of_the_dashboard_shows_the_stored_records() {
    on_postgres("the dashboard", |s| {
        s.start();
        fill(s.server());
        let dashboard = include_str!("../../deploy/grafana/dashboards/logweir.json");
        let dashboard: Value = serde_json::from_str(dashboard).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let rows = |title: &str| {
            let panel = panels.iter().find(|panel| panel["title"] == title).unwrap_or_else(|| panic!("no {title}"));
            let sql = expanded(panel["targets"][0]["rawSql"].as_str().expect("SQL"));
            let rows = s.store.rows(&sql).unwrap_or_else(|error| panic!("{title}: {error}: {sql}"));
            rows.into_iter().map(|row| format!("{row:?}")).collect::<Vec<_>>()
        };
        for (title, count, part) in [
            ("Records", 1, "26"),
            ("Errors", 1, "4"),
            ("Error ratio", 1, "0.1538"),
            ("Dead letters", 1, "0"),
            ("Records by severity", 20, "WARN"),
            ("Errors by service", 4, "cart"),
            ("Services", 2, "shop"),
            ("Latest records", 6, "stock is low"),
        ] {
            let rows = rows(title);
            assert!(rows.len() == count && rows.iter().any(|row| row.contains(part)), "{title}: {rows:#?}");
        }
        assert!(rows("Journals and lanes").iter().any(|row| row.contains("27")), "{:?}", rows("Journals and lanes"));
        let titles: Vec<&str> = panels.iter().filter_map(|panel| panel["title"].as_str()).collect();
        assert_eq!(titles.len(), 9, "each panel is queried above: {titles:?}");
        let services = dashboard["templating"]["list"][1]["query"].as_str().expect("SQL");
        assert_eq!(s.store.rows(&expanded(services)).map(|rows| rows.len()), Ok(3));
    });
}
