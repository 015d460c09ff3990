//! A result that may lack acknowledged records says so: while the tables cannot be made, before the database was there,
//! from a replica that is behind, and from one of two databases. The real program with real databases.

// Clippy allows unwrap in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use logweir_tests::client::{Answer, agent, get};
use logweir_tests::postgres::connect;
use logweir_tests::process::{Server, Settings, free_addr};
use logweir_tests::redis::Redis;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres};
use serde_json::Value;

const RECENT: &str = "/api/v1/query?start=-1h&limit=1000";

fn send(server: &Server, path: &str) -> Answer {
    get(&agent(PATIENCE), &format!("http://{}{path}", server.http)).unwrap()
}

fn ingest(server: &Server, count: usize, ack: &str) {
    let lines: String = (0..count).map(|n| format!("{{\"service\":\"till\",\"msg\":\"sale {n}\"}}\n")).collect();
    let answer = server.post(&format!("/ingest?ack={ack}"), "application/x-ndjson", &lines).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

fn len(answer: &Value) -> usize {
    answer["records"].as_array().map_or(0, Vec::len)
}

/// Waits for a response with 200 that satisfies `holds`, and returns it.
fn until(server: &Server, what: &str, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let answer = send(server, path);
        if answer.status == 200 && holds(&answer.json()) {
            return answer.json();
        }
        assert!(std::time::Instant::now() < deadline, "{what}: {} {}", answer.status, answer.body);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn reason(completeness: &Value) -> &str {
    assert_eq!(completeness["partial"], true, "{completeness}");
    completeness["partial_reason"].as_str().unwrap()
}

/// The value of a response's header.
fn header(server: &Server, path: &str, name: &str) -> Option<String> {
    let answer = agent(PATIENCE).get(format!("http://{}{path}", server.http)).call().unwrap();
    answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

#[test]
fn while_the_tables_cannot_be_made_every_result_says_so() {
    on_postgres("tables of another program", |s| {
        s.store.rows("CREATE TABLE logs (line text)").unwrap();
        s.start();
        // A machine that stalls does not reach its database at once.
        let deadline = std::time::Instant::now() + PATIENCE;
        let answer = loop {
            let answer = send(s.server(), RECENT);
            if answer.json()["error"] != "database_unavailable" || std::time::Instant::now() > deadline {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!((answer.status, &answer.json()["error"]), (503, &"database_unprepared".into()), "nothing is cached");
        assert!(answer.retry_after.is_some());
        ingest(s.server(), 5, "journal");

        let page = until(s.server(), "the cached records", RECENT, |page| len(page) == 5);
        assert_eq!((&page["source"]["database"], &page["source"]["cache"]), (&0.into(), &5.into()));
        let why = reason(&page["source"]);
        assert!(why.contains("does not exist"), "{why}");
        // The processor's own reason is in it, as soon as it is known.
        until(s.server(), "the processor's reason", RECENT, |page| {
            page["source"]["partial_reason"].as_str().is_some_and(|why| why.contains("that logweir did not create"))
        });

        let record = &page["records"][0];
        let context =
            format!("/api/v1/context?id={}&ts={}", record["id"].as_str().unwrap(), record["ts"].as_str().unwrap());
        let context = until(s.server(), "the context", &context, |_| true);
        reason(&context);
        for path in ["/api/v1/facets?fields=service", "/api/v1/fields", "/api/v1/services"] {
            reason(&until(s.server(), path, path, |_| true));
        }
        let loki = until(s.server(), "Loki", "/loki/api/v1/query_range?query={}&start=0", |_| true);
        assert!(loki["warnings"][0].as_str().unwrap().contains("partial result: "), "{loki}");
        for format in ["ndjson", "csv"] {
            let path = format!("{RECENT}&format={format}");
            let lacks = header(s.server(), &path, "x-logweir-partial").expect("a header");
            assert!(lacks.contains("only recent records from the cache"), "{lacks}");
        }
        // Counts of the cache alone would be far too low.
        for path in
            ["/api/v1/hits", "/loki/api/v1/query?query=count_over_time({}[1h])", "/loki/api/v1/index/stats?query={}"]
        {
            let answer = send(s.server(), path);
            assert!(answer.status == 503 && answer.body.contains("database_unprepared"), "{path}: {}", answer.body);
            assert!(answer.retry_after.is_some(), "{path}");
        }

        s.store.rows("DROP TABLE logs").unwrap();
        let page = until(s.server(), "the stored records", RECENT, |page| page["source"]["database"] == 5);
        assert_eq!((len(&page), &page["source"]["partial"]), (5, &false.into()));
        assert_eq!(page["source"].get("partial_reason"), None);
        assert_eq!(header(s.server(), &format!("{RECENT}&format=csv"), "x-logweir-partial"), None);
        assert_eq!(until(s.server(), "hits", "/api/v1/hits", |_| true)["total"], 5);

        // Another change of the tables, after they were right.
        s.store.rows("ALTER TABLE logs RENAME TO logs_of_old").unwrap();
        let page = until(s.server(), "the cached records", RECENT, |_| true);
        assert!(reason(&page["source"]).contains("\"public.logs\" does not exist"), "{page}");
        s.store.rows("CREATE TABLE logs (LIKE logs_of_old); ALTER TABLE logs ALTER severity TYPE text").unwrap();
        let page = until(s.server(), "the cached records", RECENT, |_| true);
        assert!(reason(&page["source"]).contains("severity is text"), "{page}");
    });
}

#[test]
fn what_cannot_be_stored_and_is_no_longer_cached_is_reported() {
    on_postgres("a lock on the table", |s| {
        s.start();
        ingest(s.server(), 5, "committed");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let url = s.postgres().url("postgres");
        let client = runtime.block_on(async {
            let client = connect(&url).await;
            client.batch_execute("BEGIN; LOCK TABLE logweir_lane IN EXCLUSIVE MODE").await.unwrap();
            client
        });
        // More of one service than a query reads from the cache.
        ingest(s.server(), 1_000, "journal");
        // Until the cache has what it keeps of them, more are missing.
        let missing = "800 acknowledged records are not in the database yet";
        let page = until(s.server(), missing, RECENT, |page| {
            page["source"]["partial_reason"].as_str().is_some_and(|why| why.contains(missing))
        });
        reason(&page["source"]);
        reason(&until(s.server(), "hits", "/api/v1/hits?query=sale&step=90s", |_| true));
        drop(client);
        drop(runtime);
        let page =
            until(s.server(), "everything", RECENT, |page| page["source"]["partial"] == false && len(page) == 1_000);
        assert_eq!(page["source"]["cache"], 0);
    });
}

#[test]
fn the_cache_answers_also_if_the_database_was_not_there_since_the_start() {
    let redis = Redis::start();
    for cache in ["memory:".to_owned(), redis.url()] {
        on_postgres("started while the database is away", |s| {
            s.set("cache.url", &cache);
            s.postgres().stop();
            s.start();
            assert_eq!(send(s.server(), RECENT).status, 503, "nothing is cached");
            ingest(s.server(), 5, "journal");
            let page = until(s.server(), "the cached records", RECENT, |page| len(page) == 5);
            assert!(reason(&page["source"]).contains("only recent records from the cache"), "{page}");
            let provisional = |record: &Value| record["id"].as_str().unwrap().starts_with('-');
            assert!(page["records"].as_array().unwrap().iter().all(provisional), "{page}");
            if cache != "memory:" {
                // Redis has them from the run before.
                s.kill_server();
                s.start();
                until(s.server(), "the cached records", RECENT, |page| len(page) == 5);
            }
            s.postgres().restart();
            let page = until(s.server(), "the stored records", RECENT, |page| page["source"]["database"] == 5);
            assert_eq!((len(&page), &page["source"]["partial"]), (5, &false.into()));
            assert!(!page["records"].as_array().unwrap().iter().any(provisional), "{page}");
        });
        redis.command(&["FLUSHALL"]);
    }
}

/// A gateway to `processors` that reads from `read_url`, with a cache of its own, which stays empty.
fn gateway(s: &Scenario, processors: &str, read_url: &str) -> Server {
    let (http, admin) = (free_addr().to_string(), free_addr().to_string());
    let settings: Settings = [
        ("role", "gateway"),
        ("database.url", &*s.settings["database.url"]),
        ("database.read_url", read_url),
        ("data_dir", "/nowhere/never/created"),
        ("http.listen", &http),
        ("admin.listen", &admin),
        ("gateway.processors", processors),
        ("gateway.lookup_ms", "100"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let mut gateway = Server::start(&settings, "", s.dir.join(format!("gateway-{http}.log")));
    gateway.ready().unwrap_or_else(|exit| panic!("{exit:?}: {}", gateway.log_text()));
    gateway
}

#[test]
fn a_replica_that_is_behind_the_processors_is_reported_with_the_time_until_which_it_is_complete() {
    on_postgres("a replica", |s| {
        let replica = s.postgres().standby(free_addr().port(), "replica", &[]).unwrap();
        let read_url = replica.url("postgres");
        s.set("database.read_url", &read_url);
        s.start();
        ingest(s.server(), 10, "committed");
        let whole = |page: &Value, records| len(page) == records && page["source"]["partial"] == false;
        until(s.server(), "the replica's records", RECENT, |page| whole(page, 10) && page["source"]["database"] == 10);
        let processor = s.server().http.to_string();
        let gateway = gateway(s, &processor, &read_url);
        until(&gateway, "the gateway's records", RECENT, |page| whole(page, 10));

        replica.execute("SELECT pg_wal_replay_pause()");
        ingest(s.server(), 5, "committed");
        // The process that stored them has them in its cache, and nothing is missing.
        let page = until(s.server(), "15 records", RECENT, |page| len(page) == 15);
        assert_eq!((&page["source"]["partial"], &page["source"]["cache"]), (&false.into(), &5.into()), "{page}");
        // The gateway knows from the processor that they exist.
        let page = until(&gateway, "a partial page", RECENT, |page| page["source"]["partial"] == true);
        let why = reason(&page["source"]).to_owned();
        assert!(len(&page) == 10 && why.contains("lacks 5 records that are committed"), "{why}");
        let until_when = page["source"]["complete_until"].as_str().expect("a time");
        assert!(until_when < &*logweir_tests::client::now_text(), "{until_when}");
        reason(&until(&gateway, "hits", "/api/v1/hits", |hits| hits["total"] == 10));
        let loki = until(&gateway, "Loki", "/loki/api/v1/query_range?query={}", |_| true);
        assert!(loki["warnings"][0].as_str().unwrap().contains("lacks 5 records"), "{loki}");
        let metric = until(&gateway, "Loki", "/loki/api/v1/query?query=count_over_time({}[1h])", |_| true);
        assert!(metric["warnings"][0].as_str().unwrap().contains("lacks 5 records"), "{metric}");
        assert!(header(&gateway, &format!("{RECENT}&format=ndjson"), "x-logweir-complete-until").is_some());

        // More than a query reads from the cache.
        ingest(s.server(), 1_000, "committed");
        let page = until(s.server(), "a partial page", RECENT, |page| page["source"]["partial"] == true);
        assert!(reason(&page["source"]).contains("lacks"), "{}", page["source"]);
        assert!(
            page["source"]["complete_until"].as_str() < Some(&logweir_tests::client::now_text()),
            "{}",
            page["source"]
        );

        replica.execute("SELECT pg_wal_replay_resume()");
        for server in [&gateway, &*s.server()] {
            let all = until(server, "everything", "/api/v1/hits", |hits| hits["total"] == 1_015);
            assert_eq!(all["partial"], false, "{all}");
            until(server, "a complete page", RECENT, |page| page["source"]["partial"] == false);
        }
    });
}

#[test]
fn a_gateway_names_the_processors_whose_records_are_in_another_database() {
    on_postgres("two processors with a database each", |s| {
        s.set("role", "processor");
        s.start();
        let first = s.server().http;
        let own = s.settings["database.url"].clone();
        s.store.rows("CREATE DATABASE other").unwrap();
        let other = s.postgres().url("other");
        s.set("database.url", &other);
        let mut second = s.launch_beside(&s.dir.join("second"));
        second.ready().unwrap_or_else(|exit| panic!("{exit:?}: {}", second.log_text()));
        s.set("database.url", &own);
        ingest(s.server(), 5, "committed");

        let mut gateway = gateway(s, &format!("{first},{}", second.http), &own);
        // It has just started, and no database knows it.
        let page = until(&gateway, "the first one's records", RECENT, |page| len(page) == 5);
        assert_eq!(page["source"]["partial"], false, "{page}");

        ingest(&second, 3, "committed");
        let named = format!("({})", second.http);
        let names_only_the_second = |completeness: &Value| {
            let why = reason(completeness);
            assert!(why.contains("all records of ") && why.contains(&named), "{why}");
            assert!(!why.contains(&first.to_string()), "{why}");
            assert_eq!(completeness.get("complete_until"), None, "{completeness}");
        };
        let page = until(&gateway, "a partial page", RECENT, |page| page["source"]["partial"] == true);
        assert_eq!(len(&page), 5, "{page}");
        names_only_the_second(&page["source"]);
        let record = &page["records"][0];
        let (id, ts) = (record["id"].as_str().unwrap(), record["ts"].as_str().unwrap());
        let context = format!("/api/v1/context?id={id}&ts={ts}");
        for path in [
            "/api/v1/hits",
            "/api/v1/hits?query=sale&step=90s",
            "/api/v1/facets?fields=service",
            "/api/v1/fields",
            "/api/v1/services",
            &context,
        ] {
            names_only_the_second(&until(&gateway, path, path, |_| true));
        }
        for path in [
            "/loki/api/v1/query_range?query={}",
            "/loki/api/v1/query?query=count_over_time({}[1h])",
            "/loki/api/v1/label/service_name/values",
        ] {
            let loki = until(&gateway, path, path, |_| true);
            assert!(loki["warnings"][0].as_str().is_some_and(|why| why.contains(&named)), "{path}: {loki}");
        }
        for format in ["ndjson", "csv"] {
            let path = format!("{RECENT}&format={format}");
            assert!(header(&gateway, &path, "x-logweir-partial").is_some_and(|why| why.contains(&named)), "{format}");
        }
        let url = format!("http://{}", gateway.http);
        let printed = s.run(&["query", "--url", &url]);
        let said = String::from_utf8_lossy(&printed.stderr);
        assert!(said.contains("this result is incomplete: ") && said.contains(&named), "{said}");

        // Operators learn of it without sending a query.
        let told = gateway.until("told at the start", PATIENCE, |gateway| {
            gateway.metric("logweir_gateway_other_database_processors", "") >= 1.0
                && gateway.log_text().lines().any(|line| line.contains("WARN") && line.contains(&named))
        });
        told.unwrap_or_else(|exit| panic!("{exit:?}: {}", gateway.log_text()));

        // A gateway for each database: the processors whose records it has.
        for (processor, url, records) in [(first, &own, 5), (second.http, &other, 3)] {
            let gateway = self::gateway(s, &processor.to_string(), url);
            let page = until(&gateway, "its records", RECENT, |page| len(page) == records);
            assert_eq!(page["source"]["partial"], false, "{page}");
        }
    });
}
