//! The metrics, as Prometheus' own checker sees them, after a little of everything has happened.

use std::io::Write as _;
use std::process::{Command, Stdio};

use logweir_tests::client::Load;
use logweir_tests::process::{Server, Settings, free_addr};
use logweir_tests::scenario::{PATIENCE, on_postgres};

/// What `promtool check metrics` says of a server's metrics: nothing, if all is well.
fn check(server: &Server) -> String {
    let metrics = server.admin("/metrics").expect("an answer").body;
    assert!(metrics.contains("logweir_build_info"), "{metrics}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: tests/install-servers brings it");
    promtool.stdin.take().expect("its input").write_all(metrics.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    if output.status.success() { told } else { format!("{}: {told}", output.status) }
}

#[test]
fn promtool_has_nothing_to_say() {
    on_postgres("promtool", |s| {
        s.start();
        let load = s.load(Load { ack: "committed", ..Load::default() });
        s.acknowledged(200);
        load.stop();
        let server = s.server();
        for path in ["/api/v1/query?query=error", "/api/v1/hits", "/api/v1/status", "/nowhere", "/loki/api/v1/labels"] {
            assert!(server.data(path).is_some(), "{path}");
        }
        let refused = server.post("/ingest?format=nonsense", "text/plain", "x\n").expect("an answer");
        assert_eq!(refused.status, 400);
        let lines = server.post("/ingest", "text/plain", &format!("{}\n", "x".repeat(300_000))).expect("an answer");
        assert_eq!(lines.json()["rejected"], 1, "{}", lines.body);
        assert_eq!(check(server), "");

        let mut settings = Settings::new();
        let listen = [free_addr().to_string(), free_addr().to_string()];
        for (key, value) in [
            ("role", "gateway"),
            ("database.url", &*s.settings["database.url"]),
            ("gateway.processors", &*s.settings["http.listen"]),
            ("http.listen", &listen[0]),
            ("admin.listen", &listen[1]),
        ] {
            settings.insert(key.to_owned(), value.to_owned());
        }
        let mut gateway = Server::start(&settings, "", s.dir.join("gateway.log"));
        gateway.ready().expect("a gateway");
        let asked = |gateway: &Server| gateway.metric("logweir_gateway_requests_total", "ok") > 0.0;
        let ask = |gateway: &Server| gateway.data("/api/v1/pipeline").is_some() && asked(gateway);
        gateway.until("asked for its processors", PATIENCE, ask).expect("it goes on");
        assert_eq!(check(&gateway), "");
    });
}
