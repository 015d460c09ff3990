//! Roles: a gateway with real processors that start, stop, hang and are killed.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use logweir_tests::browser::{Browser, Screen};
use logweir_tests::client::Load;
use logweir_tests::process::{Server, Settings, binary, free_addr};
use logweir_tests::redis::Authority;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_sqlite};
use logweir_tests::tail::Tail;
use serde_json::Value;

/// A gateway for `processors` that reads from the same store as the scenario's server.
fn gateway(s: &Scenario, processors: &str, more: &[(&str, &str)]) -> Server {
    gateway_of(binary(), s, processors, more)
}

fn gateway_of(binary: &Path, s: &Scenario, processors: &str, more: &[(&str, &str)]) -> Server {
    let mut settings = Settings::new();
    for key in ["database.url", "cache.url"] {
        settings.extend(s.settings.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    let (http, admin) = (free_addr().to_string(), free_addr().to_string());
    let own = [
        ("role", "gateway"),
        ("data_dir", "/nowhere/never/created"),
        ("http.listen", &http),
        ("admin.listen", &admin),
        ("gateway.processors", processors),
        ("gateway.lookup_ms", "100"),
        ("gateway.timeout_ms", "20000"),
    ];
    settings.extend(own.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let mut gateway = Server::start_binary(binary, &settings, "", s.dir.join(format!("gateway-{}.log", http)));
    gateway.ready().unwrap_or_else(|exit| panic!("{exit:?}: {}", gateway.log_text()));
    gateway
}

/// The entry of `address` in `/api/v1/pipeline`.
fn processor(gateway: &Server, address: SocketAddr) -> Value {
    let pipeline = gateway.data("/api/v1/pipeline").map_or(Value::Null, |answer| answer.json());
    let all = pipeline["processors"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|one| one["address"] == address.to_string()).unwrap_or(Value::Null)
}

/// Polls until the entry of `address` on the gateway satisfies `condition`.
fn until(gateway: &mut Server, address: SocketAddr, what: &str, condition: impl Fn(&Value) -> bool) {
    let entry = gateway.until(what, PATIENCE, |gateway| condition(&processor(gateway, address)));
    entry.unwrap_or_else(|exit| panic!("{exit:?}: {}", gateway.log_text()));
}

fn is_healthy(one: &Value) -> bool {
    one["ok"] == true && one["status"]["phase"] == "accepting" && one["breaker"]["state"] == "closed"
}

#[test]
fn a_gateway_lists_each_processor_and_why_one_is_unreachable() {
    on_postgres("processors behind a gateway", |s| {
        s.set("role", "processor");
        s.start();
        let mut second = s.launch_beside(&s.dir.join("second"));
        second.ready().expect("a second processor");
        let (first, other) = (s.server().http, second.http);
        let mut gateway = gateway(s, &format!("{first},{other}"), &[]);

        let load = s.load(Load { ack: "committed", ..Load::default() });
        s.acknowledged(200);
        load.stop();
        let writer = s.server().status()["writer"].clone();
        until(&mut gateway, first, "listed with its committed records", |one| {
            is_healthy(one)
                && one["status"]["lanes"][0]["committed"].as_u64() > Some(0)
                && one["status"]["writer"] == writer
        });
        until(&mut gateway, other, "listed", is_healthy);

        second.kill();
        until(&mut gateway, other, "reported as unreachable", |one| {
            one["ok"] == false && one["error"].as_str().is_some_and(|error| error.starts_with("unavailable: "))
        });
        until(&mut gateway, other, "circuit breaker open", |one| {
            one["breaker"]["state"] == "open"
                && one["error"].as_str().is_some_and(|error| error.starts_with("circuit breaker open"))
        });
        assert!(is_healthy(&processor(&gateway, first)), "the other processor is unaffected");
        assert!(gateway.metric("logweir_gateway_requests_total", "breaker_open") > 0.0);

        s.kill_server();
        let mut settings = s.settings.clone();
        settings.insert("http.listen".into(), other.to_string());
        settings.insert("admin.listen".into(), free_addr().to_string());
        let mut again = Server::start(&settings, "", s.dir.join("again.log"));
        again.ready().expect("a processor at the address of the second");
        until(&mut gateway, other, "reachable again", is_healthy);
        until(&mut gateway, first, "unreachable", |one| one["ok"] == false);
    });
}

#[test]
fn a_hanging_processor_affects_only_its_own_entry() {
    on_sqlite("a frozen processor", |s| {
        s.set("role", "processor");
        s.start();
        let first = s.server().http;
        let mut second = s.launch_beside(&s.dir.join("second"));
        second.ready().expect("a second processor");
        let mut gateway = gateway(s, &format!("{first},{}", second.http), &[("gateway.timeout_ms", "2000")]);
        until(&mut gateway, second.http, "listed", is_healthy);
        second.freeze();
        until(&mut gateway, second.http, "reported as timed out", |one| {
            one["error"].as_str().is_some_and(|error| error.contains("gateway.timeout_ms (2000 ms)"))
        });
        until(&mut gateway, first, "unaffected", is_healthy);
        second.signal(libc::SIGCONT);
        until(&mut gateway, second.http, "reachable again", is_healthy);
    });
}

/// The binary in its own mount namespace, where `/etc/hosts` is `hosts`; `None` if this user cannot create one.
fn with_hosts(dir: &Path, hosts: &Path) -> Option<PathBuf> {
    let unshare = ["-m", "-rm"].into_iter().find(|flags| {
        let tried = Command::new("unshare").args([flags, "true"]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })?;
    let script = format!(
        "#!/bin/sh\nexec unshare {unshare} sh -c 'mount --bind {} /etc/hosts && exec {} \"$@\"' sh \"$@\"\n",
        hosts.display(),
        binary().display()
    );
    let path = dir.join("logweir-with-hosts");
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("an executable one");
    Some(path)
}

#[test]
fn a_name_stands_for_its_current_addresses() {
    on_sqlite("a headless name", |s| {
        let hosts = s.dir.join("hosts");
        fs::write(&hosts, "127.0.0.2 processors\n").expect("hosts");
        let Some(binary) = with_hosts(&s.dir, &hosts) else {
            eprintln!("SKIPPED: this user cannot create a mount namespace, so names cannot be changed");
            return;
        };
        s.set("role", "processor");
        let port = free_addr().port();
        let at = |last: u8| SocketAddr::from(([127, 0, 0, last], port));
        s.set("http.listen", at(2));
        s.start();
        let mut settings = s.settings.clone();
        settings.insert("data_dir".into(), s.dir.join("second").display().to_string());
        settings.insert("http.listen".into(), at(3).to_string());
        settings.insert("admin.listen".into(), free_addr().to_string());
        let mut second = Server::start(&settings, "", s.dir.join("second.log"));
        second.ready().expect("a second processor");

        let mut gateway = gateway_of(&binary, s, &format!("processors:{port}"), &[]);
        until(&mut gateway, at(2), "found", is_healthy);
        assert_eq!(processor(&gateway, at(3)), Value::Null);
        fs::write(&hosts, "127.0.0.2 processors\n127.0.0.3 processors\n").expect("hosts");
        until(&mut gateway, at(3), "found after it was added", is_healthy);
        fs::write(&hosts, "127.0.0.3 processors\n").expect("hosts");
        until(&mut gateway, at(2), "removed", Value::is_null);
        fs::write(&hosts, "127.0.0.9 unrelated\n").expect("hosts");
        gateway
            .until("a failed lookup", PATIENCE, |gateway| {
                gateway.metric("logweir_gateway_lookup_errors_total", "") > 0.0
            })
            .expect("it goes on");
        assert!(is_healthy(&processor(&gateway, at(3))), "an unavailable name server removes no processor");
    });
}

#[test]
fn each_role_serves_its_paths_and_a_gateway_stores_nothing() {
    on_sqlite("roles", |s| {
        s.set("role", "processor");
        s.start();
        let rejected = s.server().data("/api/v1/query").expect("an answer");
        assert_eq!(
            (rejected.status, rejected.json()["error"].as_str()),
            (404, Some("wrong_role")),
            "{}",
            rejected.body
        );
        assert_eq!(s.server().status()["role"], "processor");

        let address = s.server().http.to_string();
        let mut gateway = gateway(s, &address, &[]);
        assert_eq!(gateway.status()["role"], "gateway");
        for (path, kind) in [("/ingest", "text/plain"), ("/loki/api/v1/push", "application/json")] {
            let rejected = gateway.post(path, kind, "line\n").expect("an answer");
            assert_eq!(rejected.status, 404, "{}", rejected.body);
            assert!(rejected.body.contains("send records to a processor"), "{}", rejected.body);
        }
        for path in ["/ready", "/api/v1/pipeline"] {
            assert_eq!(gateway.data(path).map(|answer| answer.status), Some(200), "{path}");
        }
        assert!(!Path::new("/nowhere").exists());
        gateway.signal(libc::SIGTERM);
        assert_eq!(gateway.wait(PATIENCE).code(), Some(0), "{}", gateway.log_text());
    });
}

#[test]
fn processors_and_gateway_share_their_tokens_for_queries() {
    const TOKEN: &str = "0123456789abcdef";
    on_sqlite("a gateway's token", |s| {
        s.set("role", "processor");
        s.set("auth.query_tokens", TOKEN);
        s.start();
        let address = s.server().http;
        let mut without_token = gateway(s, &address.to_string(), &[]);
        until(&mut without_token, address, "rejected, but reachable", |one| {
            let names_the_key = one["error"].as_str().is_some_and(|error| error.contains("auth.query_tokens"));
            names_the_key && one["breaker"]["state"] == "closed"
        });

        let with_token = gateway(s, &address.to_string(), &[("auth.query_tokens", TOKEN)]);
        let url = format!("http://{}/api/v1/pipeline", with_token.http);
        let agent = logweir_tests::client::agent(PATIENCE);
        assert_eq!(agent.get(&url).call().expect("an answer").status(), 401, "the gateway requires a token itself");
        let mut answer = agent.get(&url).header("Authorization", format!("Bearer {TOKEN}")).call().expect("an answer");
        let pipeline = answer.body_mut().read_to_string().expect("a body");
        assert!(pipeline.contains("\"ok\":true") && !pipeline.contains(TOKEN), "{pipeline}");
    });
}

/// Posts one record to `server`.
fn post(server: &Server, message: &str) {
    let answer = server.post("/ingest", "text/plain", &format!("{message}\n")).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

fn messages(tail: &mut Tail, count: usize) -> Vec<String> {
    tail.until("records of all processors", |seen| seen.iter().filter(|event| event.name == "record").count() >= count);
    let mut messages = tail.messages();
    messages.sort_unstable();
    messages
}

#[test]
fn a_tail_has_the_records_of_all_processors_and_resumes() {
    on_sqlite("a merged tail", |s| {
        s.set("role", "processor");
        s.start();
        let first = s.server().http;
        let second_dir = s.dir.join("second");
        let mut second = s.launch_beside(&second_dir);
        second.ready().expect("a second processor");
        let processors = format!("{first},{}", second.http);
        let mut gateway = gateway(s, &processors, &[]);
        let address = second.http;
        until(&mut gateway, first, "found", is_healthy);
        until(&mut gateway, address, "found", is_healthy);

        let mut tail = Tail::open(gateway.http, "query=wanted", None);
        let mut subscribed = |server: &Server| server.metric("logweir_tail_clients", "") > 0.0;
        s.server().until("subscribed", PATIENCE, &mut subscribed).expect("it goes on");
        second.until("subscribed", PATIENCE, &mut subscribed).expect("it goes on");
        post(s.server(), "wanted a");
        post(s.server(), "not so");
        post(&second, "wanted b");
        assert_eq!(messages(&mut tail, 2), ["wanted a", "wanted b"]);

        // A killed and restarted processor resumes where it was, in the same stream.
        post(&second, "wanted c");
        messages(&mut tail, 3);
        second.kill();
        let mut settings = s.settings.clone();
        settings.insert("data_dir".into(), second_dir.display().to_string());
        settings.insert("http.listen".into(), address.to_string());
        settings.insert("admin.listen".into(), free_addr().to_string());
        let mut second = Server::start(&settings, "", s.dir.join("again.log"));
        second.ready().expect("the second again");
        post(&second, "wanted d");
        assert_eq!(messages(&mut tail, 4), ["wanted a", "wanted b", "wanted c", "wanted d"]);

        // The stream itself resumes on another gateway.
        let token = tail.token().expect("a token");
        gateway.kill();
        post(s.server(), "wanted e");
        post(&second, "wanted f");
        let gateway = self::gateway(s, &processors, &[]);
        let mut tail = Tail::open(gateway.http, "query=wanted", Some(&token));
        assert_eq!(messages(&mut tail, 2), ["wanted e", "wanted f"]);
        assert!(tail.seen.iter().all(|event| event.name != "gap"), "{:?}", tail.seen);

        let rejected = gateway.data("/api/v1/tail?query=(").expect("an answer");
        assert_eq!((rejected.status, rejected.json()["column"].as_u64()), (400, Some(2)), "{}", rejected.body);
    });
}

#[test]
fn a_gateway_answers_queries_about_what_processors_store() {
    on_postgres("queries through a gateway", |s| {
        s.set("role", "processor");
        s.start();
        let address = s.server().http.to_string();
        let stored = s.server().post("/ingest?ack=committed&service=till", "text/plain", "low on paper\n");
        assert_eq!(stored.expect("an answer").status, 200);
        let gateway = gateway(s, &address, &[]);
        let found = gateway.data("/api/v1/query?query=service:till").expect("an answer");
        assert_eq!(found.json()["records"][0]["message"], "low on paper", "{}", found.body);
        let found = gateway.data("/loki/api/v1/label/service_name/values").expect("an answer");
        assert_eq!(found.json()["data"], serde_json::json!(["till"]), "{}", found.body);
    });
}

#[test]
fn a_gateway_says_what_its_database_is() {
    on_postgres("the database of a gateway", |s| {
        s.set("role", "processor");
        s.start();
        let told = |server: &Server| (server.status()["store"].clone(), server.status()["store_version"].clone());
        let known = |server: &Server| told(server).1.is_string();
        s.server().until("what stores", PATIENCE, known).unwrap();
        let address = s.server().http.to_string();
        let mut gateway = gateway(s, &address, &[]);
        gateway.until("what it reads", PATIENCE, known).unwrap();
        assert_eq!(told(&gateway), told(s.server()));
    });
}

#[test]
fn the_web_ui_of_a_gateway_shows_all_processors() {
    on_postgres("the web UI of a gateway", |s| {
        let file = s.dir.join("alerts.toml");
        fs::write(&file, "[alerts.declined]\nquery = 'service:till'\nabove = 100\n").expect("a configuration");
        s.set("config", file.display());
        s.set("role", "processor");
        s.start();
        let first = s.server().http;
        let mut second = s.launch_beside(&s.dir.join("second"));
        second.ready().expect("a second processor");
        let other = second.http;
        let mut gateway = gateway(s, &format!("{first},{other}"), &[]);
        until(&mut gateway, first, "found", is_healthy);
        until(&mut gateway, other, "found", is_healthy);
        for server in [s.server(), &second] {
            let stored = server.post("/ingest?ack=committed&service=till", "text/plain", "low on paper\n");
            assert_eq!(stored.expect("an answer").status, 200);
        }

        let browser = Browser::open(gateway.http, Screen::Desktop);
        browser.goto("/");
        browser.until("both records", |browser| browser.text(".total").starts_with("2 "));
        browser.see(".row .message", "low on paper");
        browser.click(".live-button");
        browser.see(".live-state", "Live");
        let mut subscribed = |server: &Server| server.metric("logweir_tail_clients", "") > 0.0;
        s.server().until("subscribed", PATIENCE, &mut subscribed).expect("it goes on");
        second.until("subscribed", PATIENCE, &mut subscribed).expect("it goes on");
        post(s.server(), "sent to the first");
        browser.see(".row .message", "sent to the first");
        post(&second, "sent to the second");
        browser.see(".row .message", "sent to the second");

        browser.keys("2");
        browser.until("a card of each", |browser| browser.count(".processor .stages") == 2);
        for address in [first, other] {
            browser.see(".processor header", &address.to_string());
        }
        browser.until("both are balanced", |browser| {
            browser
                .texts(".totals")
                .iter()
                .all(|totals| totals.contains("balanced") && totals.starts_with("Accepted\n2"))
        });
        browser.keys("3");
        browser.until("an alert of each", |browser| browser.count(".alert-card") == 2);
        for address in [first, other] {
            browser.see(".alert-card header", &address.to_string());
        }

        // A killed processor shows an error; the other one is unaffected.
        browser.keys("2");
        second.kill();
        browser.until("the error of the killed processor", |browser| {
            // It is retried until its circuit breaker opens.
            browser
                .texts(".processor .problem")
                .iter()
                .any(|why| why.contains("unavailable") || why.contains("circuit breaker open"))
        });
        assert_eq!(browser.count(".processor"), 2);
        browser.until("one is left", |browser| browser.count(".processor .stages") == 1);
        browser.screenshot("gateway-desktop-light");
        assert_eq!(browser.errors(), Vec::<String>::new());
    });
}

#[test]
fn a_gateway_and_its_processors_use_mutual_tls() {
    on_sqlite("mTLS to the processors", |s| {
        let (servers, clients) = (Authority::new(), Authority::new());
        let file = |name: &str| s.dir.join(name).display().to_string();
        let files = ["ca.crt", "clients.crt", "tls.crt", "tls.key", "own.crt", "own.key"].map(file);
        let [ca, client_ca, cert, key, client_cert, client_key] = files.each_ref().map(String::as_str);
        let write = |path: &str, text: &str| fs::write(path, text).expect("the file is written");
        let (server_identity, own) = (servers.issue(&["localhost"]), clients.issue(&["gateway"]));
        for (path, text) in
            [(cert, &server_identity.0), (key, &server_identity.1), (client_cert, &own.0), (client_key, &own.1)]
        {
            write(path, text);
        }
        write(ca, &servers.pem());
        write(client_ca, &clients.pem());
        for (name, path) in [("tls_cert_file", cert), ("tls_key_file", key), ("tls_client_ca_file", client_ca)] {
            s.set(&format!("http.{name}"), path);
        }
        s.set("role", "processor");
        s.start();
        let address = s.server().http;
        let named = format!("localhost:{}", address.port());

        let trust = ("gateway.tls_ca_file", ca);
        let identity = [trust, ("gateway.tls_cert_file", client_cert), ("gateway.tls_key_file", client_key)];
        let mut with_certificate = gateway(s, &named, &identity);
        until(&mut with_certificate, address, "queried over TLS", is_healthy);
        let rejected = |one: &Value| one["ok"] == false && one["error"].as_str().is_some_and(|error| !error.is_empty());
        let mut without_certificate = gateway(s, &named, &[trust]);
        until(&mut without_certificate, address, "rejected without a client certificate", rejected);
        let mut other_name = gateway(s, &address.to_string(), &identity);
        until(&mut other_name, address, "a certificate for another name is rejected", |one| {
            one["error"].as_str().is_some_and(|error| error.contains("not valid for name"))
        });
        let mut plain = gateway(s, &named, &[]);
        until(&mut plain, address, "plain HTTP is rejected", rejected);
    });
}
