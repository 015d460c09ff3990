//! The real image and Compose stack in a Docker engine: `make compose` finds or starts an engine, builds the image and
//! runs this test. It takes the stack through its life: started, used, probed for privileges, killed under load,
//! stopped, removed and started again, scaled.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use logweir_tests::browser::{Browser, Screen};
use serde_json::Value;

/// Time limit, generous enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A separate project, so that a developer's stack from the same file keeps its volumes.
const PROJECT: &str = "logweir-test";

/// All profiles.
const EVERYTHING: [&str; 6] = ["--profile", "demo", "--profile", "scale", "--profile", "monitoring"];

/// The gateway's published address.
const GATEWAY: &str = "127.0.0.1:8080";

#[test]
fn the_compose_stack_works() {
    let Some(stack) = Stack::found() else {
        eprintln!("SKIPPED: needs a Docker engine and minutes; `make compose` runs it");
        return;
    };
    stack.remove();
    stack.compose(&["--profile", "demo", "up", "--wait", "--wait-timeout", "300"]);
    stack.step("the web UI shows new records", Stack::page);
    stack.step("containers are restricted", Stack::privileges);
    stack.step("each network allows only its purpose", Stack::networks);
    stack.compose(&["stop", "producer"]);
    stack.step("SIGKILL of processor, database and Redis under load", Stack::killed);
    stack.step("a stop under load drains", Stack::stopped);
    stack.step("down and up keep the volumes", Stack::down_and_up);
    stack.step("three processors", Stack::scaled);
    stack.step("Prometheus scrapes all of them", Stack::monitored);
}

/// The stack of `deploy/compose`, and the command that is `docker`.
struct Stack {
    docker: Vec<String>,
    folder: PathBuf,
}

impl Stack {
    fn found() -> Option<Self> {
        let docker = std::env::var("LOGWEIR_DOCKER").ok()?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/compose").canonicalize().expect("deploy");
        let made = Command::new(folder.join("make-secrets")).stdout(Stdio::null()).status().expect("make-secrets");
        assert!(made.success());
        Some(Self { docker: docker.split_whitespace().map(str::to_owned).collect(), folder })
    }

    /// Removes the stack, including leftovers of `run`.
    fn remove(&self) {
        let down = ["down", "--volumes", "--remove-orphans", "--timeout=5"];
        let _ = self.try_docker(&self.composed(&[&EVERYTHING[..], &down].concat()));
    }

    fn step(&self, what: &str, step: impl Fn(&Self)) {
        let began = Instant::now();
        step(self);
        eprintln!("ok  {what} ({:.0} s)", began.elapsed().as_secs_f64());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.docker[0]);
        command.args(&self.docker[1..]).args(arguments).stdin(Stdio::null());
        command
    }

    fn try_docker(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("docker starts")
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments);
        let output_text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {}: {}: {output_text}", arguments.join(" "), output.status);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn compose(&self, arguments: &[&str]) -> String {
        self.docker(&self.composed(arguments))
    }

    fn composed<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let folder = self.folder.to_str().expect("a path in UTF-8");
        [&["compose", "--project-name", PROJECT, "--project-directory", folder], arguments].concat()
    }

    fn container(&self, service: &str) -> String {
        self.compose(&["ps", "--all", "--quiet", service])
    }

    /// Returns the output of `docker inspect` for a service's container.
    fn inspect(&self, service: &str) -> Value {
        let output_text = self.docker(&["inspect", &self.container(service)]);
        serde_json::from_str::<Value>(&output_text).expect("JSON")[0].take()
    }

    fn secret(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join("secrets").join(name)).expect("make-secrets has created the secret")
    }

    fn sql(&self, statement: &str) -> Result<String, String> {
        let psql = ["exec", "-T", "database", "psql", "--username=postgres", "--dbname=logs", "-Atc", statement];
        let output = self.try_docker(&self.composed(&psql));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Returns the number of rows; `None` while the database is unavailable.
    fn rows(&self) -> Option<u64> {
        self.sql("SELECT count(*) FROM logs").ok()?.parse().ok()
    }

    fn rows_reach(&self, rows: u64) {
        until(&format!("{rows} rows"), || self.rows().is_some_and(|stored| stored >= rows));
    }

    /// The journal and the database agree, record by record.
    fn verify(&self) {
        self.compose(&["exec", "-T", "processor", "/logweir", "verify"]);
    }

    /// Sends `records` with `logweir produce` from a producer container, until each is acknowledged.
    fn load(&self, records: u64) -> Child {
        let records = records.to_string();
        let (url, rate) = ("http://processors:8080/ingest", "1000");
        let produce = [
            "produce",
            "--demo",
            "--url",
            url,
            "--records",
            &records,
            "--rate",
            rate,
            "--retry-for",
            "10m",
            "-o",
            "json",
        ];
        let run = [&["run", "--rm", "--no-deps", "-T", "producer"], &produce[..]].concat();
        self.command(&self.composed(&run)).stdout(Stdio::piped()).spawn().expect("docker starts")
    }

    /// Asserts that each record of the load was acknowledged and stored once, in addition to the `before` existing
    /// rows.
    fn is_stored_once(&self, load: Child, records: u64, before: u64) {
        let output = load.wait_with_output().expect("the load ends");
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&value["sent"], &value["accepted"]), (&records.into(), &records.into()), "{value}");
        self.rows_reach(before + records);
        assert_eq!(self.rows(), Some(before + records), "{value}");
        self.verify();
    }

    /// Returns the image of a service's container.
    fn image(&self, service: &str) -> String {
        self.inspect(service)["Config"]["Image"].as_str().expect("an image").to_owned()
    }

    /// Opens the web UI with the token.
    fn browser(&self) -> Browser {
        let browser = Browser::open(GATEWAY, Screen::Desktop);
        browser.goto("/");
        browser.see("dialog", "auth.query_tokens");
        browser.fill("[name=token]", &self.secret("query-token"));
        browser.click_on("dialog button", "Continue");
        browser
    }

    fn page(&self) {
        let browser = self.browser();
        browser.until("records", |browser| browser.count(".row:not(.head)") > 5);
        browser.click(".live-button");
        browser.see(".live-state", "Live");
        let first = |browser: &Browser| browser.text(".row:not(.head)");
        let shown = first(&browser);
        browser.until("a new record", |browser| first(browser) != shown);
        browser.screenshot("compose-live");
        browser.goto("/pipeline");
        browser.see(".totals", "Accepted");
        browser.screenshot("compose-pipeline");
        assert_eq!(browser.errors(), Vec::<String>::new());
    }

    fn privileges(&self) {
        let output_text = self.compose(&["ps", "--format", "{{.Service}}"]);
        let services: Vec<&str> = output_text.lines().collect();
        assert_eq!(services.len(), 5, "{services:?}");
        let secrets =
            ["ingest-token", "query-token", "admin-token", "owner-password", "superuser-password", "redis-password"];
        for service in services {
            let value = self.inspect(service);
            let host = &value["HostConfig"];
            let ports = host["PortBindings"].to_string();
            let published =
                if service == "gateway" { r#"{"8080/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}]}"# } else { "{}" };
            assert_eq!(ports, published, "{service}");
            assert_eq!(
                (&host["Privileged"], &host["SecurityOpt"][0]),
                (&false.into(), &"no-new-privileges:true".into()),
                "{service}"
            );
            assert!(
                host["Memory"].as_u64() > Some(0) && host["NanoCpus"].as_u64() > Some(0),
                "{service} has no limits"
            );
            for secret in secrets {
                // `produce` reads its token only from the environment.
                let may = service == "producer" && secret == "ingest-token";
                assert!(
                    may || !value.to_string().contains(&self.secret(secret)),
                    "`docker inspect` of {service} shows {secret}"
                );
            }
            if value["Config"]["Image"] != "logweir:0.1.0" {
                continue;
            }
            assert_eq!(value["Config"]["User"], "65532:65532", "{service}");
            assert_eq!((&host["ReadonlyRootfs"], &host["CapDrop"][0]), (&true.into(), &"ALL".into()), "{service}");
            for shell in ["sh", "/bin/sh", "/bin/bash", "/bin/busybox"] {
                let output = self.try_docker(&["exec", &self.container(service), shell, "-c", ":"]);
                let output_text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
                assert!(
                    !output.status.success() && output_text.contains("no such file")
                        || output_text.contains("not found"),
                    "{output_text}"
                );
            }
        }
    }

    /// Returns whether the server at `host` is reachable from `network` (a Docker network, or `container:ID`).
    fn reaches(&self, network: &str, server: &str, host: &str) -> bool {
        let database = self.image("database");
        let redis = self.image("redis");
        let url = format!("http://{host}:8080/ingest");
        // Each server has its own way to respond to unauthenticated clients.
        let (image, command, answer): (_, &[&str], _) = match server {
            "database" => (&*database, &["pg_isready", "--timeout=3", "--host", host], "accepting connections"),
            "redis" => (&redis, &["timeout", "3", "redis-cli", "-h", host, "ping"], "NOAUTH"),
            _ => (
                "logweir:0.1.0",
                &["/logweir", "produce", "--demo", "--records=1", "--retry-for=2s", "--url", &url],
                "401",
            ),
        };
        let run = [&["run", "--rm", "--network", network, "--entrypoint", command[0], image], &command[1..]].concat();
        let output = self.try_docker(&run);
        let output_text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        output_text.contains(answer)
    }

    fn networks(&self) {
        let inside = |service: &str| format!("container:{}", self.container(service));
        let address = |service: &str, network: &str| {
            let value = self.inspect(service);
            value["NetworkSettings"]["Networks"][format!("{PROJECT}_{network}")]["IPAddress"]
                .as_str()
                .expect("one")
                .to_owned()
        };
        for server in ["database", "redis"] {
            let address = address(server, "data");
            for host in [server, &address] {
                assert!(
                    !self.reaches(&inside("producer"), server, host),
                    "the producer must not reach {server} as {host}"
                );
                assert!(
                    !self.reaches(&format!("{PROJECT}_frontend"), server, host),
                    "{server} must not be reachable from frontend as {host}"
                );
                assert!(
                    self.reaches(&inside("processor"), server, host),
                    "the processor must reach {server} as {host}"
                );
                assert!(self.reaches(&inside("gateway"), server, host), "the gateway must reach {server} as {host}");
            }
        }
        let processor = address("processor", "backend");
        for host in ["processors", &processor] {
            assert!(self.reaches(&inside("producer"), "processor", host), "the producer must reach {host}");
            assert!(
                !self.reaches(&format!("{PROJECT}_frontend"), "processor", host),
                "{host} must not be reachable from frontend"
            );
            assert!(
                !self.reaches(&format!("{PROJECT}_data"), "processor", host),
                "{host} must not be reachable from data"
            );
        }
        // Only the gateway can reach other networks.
        for (service, leads_out) in
            [("producer", false), ("processor", false), ("database", false), ("redis", false), ("gateway", true)]
        {
            let image = self.image("database");
            let run = ["run", "--rm", "--network", &inside(service), "--entrypoint", "cat", &image, "/proc/net/route"];
            let routes = self.docker(&run);
            let default = routes.lines().any(|route| route.split_whitespace().nth(1) == Some("00000000"));
            assert_eq!(default, leads_out, "{service}: {routes}");
        }
    }

    /// Kills the first process of a service's container, as the kernel would; the engine restarts it.
    fn kill(&self, service: &str) {
        let process = |value: &Value| value["State"]["Pid"].as_u64().expect("a number");
        let before = self.inspect(service);
        // Not `docker kill`, which counts as a manual stop, after which the engine does not restart the container.
        let kill = format!("kill -9 {}", process(&before));
        let image = self.image("database");
        let host = ["run", "--rm", "--user=0", "--pid=host", "--network=none", "--entrypoint=sh", &image];
        self.docker(&[&host[..], &["-c", &kill]].concat());
        until(&format!("{service} again"), || {
            let now = self.inspect(service);
            assert_eq!(now["Id"], before["Id"], "the same container");
            let again = now["RestartCount"].as_u64() > before["RestartCount"].as_u64();
            again && ![0, process(&before)].contains(&process(&now)) && now["State"]["Health"]["Status"] == "healthy"
        });
    }

    fn killed(&self) {
        self.drained();
        let (before, records) = (self.rows().expect("a database"), 20_000);
        let load = self.load(records);
        for (share, service) in (1..).zip(["processor", "database", "processor", "redis", "processor"]) {
            self.rows_reach(before + share * records / 8);
            self.kill(service);
        }
        self.is_stored_once(load, records, before);
    }

    /// Waits until the database has all records after the end of the load.
    fn drained(&self) {
        let mut last = None;
        until("the database has all", || {
            let status = self.compose(&["exec", "-T", "processor", "/logweir", "verify", "-o", "json"]);
            let value: Value = serde_json::from_str(&status).expect("JSON");
            let backlog: u64 = lanes(&value).iter().filter_map(|lane| lane["backlog"].as_u64()).sum();
            let rows = self.rows();
            let drained = backlog == 0 && rows.is_some() && last == rows;
            last = rows;
            drained
        });
    }

    fn stopped(&self) {
        let (before, records) = (self.rows().expect("a database"), 10_000);
        let load = self.load(records);
        self.rows_reach(before + records / 4);
        self.compose(&["stop", "processor"]);
        assert_eq!(self.inspect("processor")["State"]["ExitCode"], 0);
        let log = self.compose(&["logs", "--no-log-prefix", "--tail=20", "processor"]);
        let last = log.lines().rfind(|line| line.contains("logweir stopped:")).unwrap_or_else(|| panic!("{log}"));
        assert!(last.contains("left_in_journal=0"), "{last}");
        self.compose(&["start", "processor"]);
        self.is_stored_once(load, records, before);
    }

    fn down_and_up(&self) {
        let before = self.rows().expect("a database");
        self.compose(&["--profile", "demo", "down"]);
        assert_eq!(self.compose(&["ps", "--all", "--quiet"]), "");
        self.compose(&["--profile", "demo", "up", "--wait", "--wait-timeout", "300"]);
        assert!(self.rows() >= Some(before));
        self.rows_reach(before + 1000);
        self.verify();
    }

    fn scaled(&self) {
        self.compose(&["--profile", "demo", "--profile", "scale", "up", "--wait", "--wait-timeout", "300"]);
        let browser = self.browser();
        browser.goto("/pipeline");
        browser.until("three accepting processors", |browser| browser.text("body").matches("accepting").count() == 3);
        browser.screenshot("compose-scale");
    }

    fn monitored(&self) {
        self.compose(&["--profile", "monitoring", "up", "--wait", "--wait-timeout", "300", "prometheus"]);
        let up = "http://127.0.0.1:9090/api/v1/query?query=count(up%20==%201)";
        until("four healthy targets", || {
            let output_text = self.compose(&["exec", "-T", "prometheus", "wget", "-q", "-O", "-", up]);
            let value: Value = serde_json::from_str(&output_text).unwrap_or_default();
            value["data"]["result"][0]["value"][1] == "4"
        });
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for more in [&["ps", "--all"][..], &["logs", "--tail=15"]] {
                let output = self.try_docker(&self.composed(&[&EVERYTHING[..], more].concat()));
                eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        self.remove();
    }
}

fn lanes(value: &Value) -> Vec<&Value> {
    value["lanes"].as_array().into_iter().flatten().collect()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out after {PATIENCE:?} waiting for {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
