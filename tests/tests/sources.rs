//! Syslog and tailed files: real sockets, files and senders against the real program, which is killed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use logweir_tests::process::{Server, Settings, free_addr, run};
use logweir_tests::scenario::{PATIENCE, Scenario, on_sqlite};
use rand::Rng;
use rustls::pki_types::{PrivateKeyDer, ServerName};

/// Every stored message and how often it is stored.
fn messages(s: &Scenario) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for row in s.store.rows("SELECT message FROM logs").unwrap_or_default() {
        *found.entry(row.into_iter().next().unwrap_or_default()).or_default() += 1;
    }
    found
}

fn wait_for_messages(s: &Scenario, count: usize) {
    s.wait(&format!("{count} distinct messages, found {}", messages(s).len()), |s| messages(s).len() >= count);
}

/// The syslog messages without their headers, which precede `marker`.
fn after(marker: &str, messages: &BTreeMap<String, usize>) -> BTreeSet<String> {
    messages.keys().filter_map(|message| message.find(marker).map(|at| message[at..].to_owned())).collect()
}

fn connect(addr: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(addr) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{addr}: {error}"),
        }
    }
}

fn listen(s: &mut Scenario, key: &str) -> SocketAddr {
    let addr = free_addr();
    s.set(key, addr);
    addr
}

#[test]
fn both_framings_of_tcp_are_distinguished_and_lines_within_a_frame_stay_together() {
    on_sqlite("syslog tcp", |s| {
        let addr = listen(s, "syslog.tcp_listen");
        s.set("syslog.message_bytes_max", 1024);
        s.start();
        let mut sender = connect(addr);
        let frame = "<13>Nov 21 08:00:00 h app: MARK one\n\tand more of it";
        let long = format!("<13>{}", "x".repeat(2000));
        let text = format!(
            "{} {frame}<13>Nov 21 08:00:00 h app: MARK two\n{} {long}{long}\n<13>Nov 21 08:00:00 h app: MARK three\n",
            frame.len(),
            long.len()
        );
        // Split anywhere; the last line lacks its line feed when the connection ends.
        for piece in text.as_bytes().chunks(7) {
            sender.write_all(piece).expect("the listener reads");
        }
        sender.write_all(b"<13>Nov 21 08:00:00 h app: MARK four").expect("the listener reads");
        drop(sender);
        wait_for_messages(s, 4);
        let expect = ["MARK one\n\tand more of it", "MARK two", "MARK three", "MARK four"];
        assert_eq!(after("MARK", &messages(s)), expect.map(str::to_owned).into());
        let peers = s.store.rows("SELECT attributes ->> '$.\"network.peer.address\"' FROM logs").expect("the table");
        assert!(peers.iter().all(|peer| peer == &["127.0.0.1"]), "{peers:?}");
        let server = s.server();
        server
            .until("two long messages counted", PATIENCE, |server| {
                server.metric("logweir_discarded_records_total", "component=\"syslog_tcp\"") == 2.0
            })
            .expect("it runs");
        let closing = s.stop();
        assert_eq!((closing.accepted, closing.committed), (4, 4));
    });
}

#[test]
fn what_was_read_from_a_connection_is_stored_at_sigterm() {
    on_sqlite("syslog sigterm", |s| {
        let addr = listen(s, "syslog.tcp_listen");
        s.start();
        let mut sender = connect(addr);
        let lines: String = (0..20_000).map(|n| format!("<13>MARK {n}\n")).collect();
        sender.write_all(lines.as_bytes()).expect("the listener reads");
        // The last line was read: everything in memory must be stored.
        sender.shutdown(std::net::Shutdown::Write).expect("an open socket");
        let ended = std::io::copy(&mut sender, &mut std::io::sink());
        assert!(ended.is_ok(), "{ended:?}");
        let closing = s.stop();
        assert_eq!((closing.accepted, closing.committed, closing.backlog), (20_000, 20_000, 0));
    });
}

#[test]
fn idle_connections_and_those_above_the_limit_are_closed() {
    on_sqlite("syslog connections", |s| {
        let addr = listen(s, "syslog.tcp_listen");
        s.set("syslog.connections_max", 2);
        s.set("syslog.idle_timeout_ms", 8000);
        s.start();
        let open: Vec<TcpStream> = (0..3).map(|_| connect(addr)).collect();
        s.wait("the third connection closed at once, the others when idle", |_| {
            open.iter().all(|mut stream| std::io::copy(&mut stream, &mut std::io::sink()).is_ok())
        });
        let rejected = s.server().metric("logweir_rejected_requests_total", "syslog_connections_max");
        assert_eq!(rejected, 1.0);
        // The places become free a moment after the connections are closed.
        s.wait("accepted again", |s| {
            let _ = connect(addr).write_all(b"<13>MARK accepted again\n");
            !messages(s).is_empty()
        });
    });
}

#[test]
fn datagrams_are_stored_or_counted() {
    on_sqlite("syslog udp", |s| {
        let addr = listen(s, "syslog.udp_listen");
        s.set("syslog.udp_buffer_bytes", "64KiB");
        s.start();
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        sender.send_to(b"<13>MARK with\nanother line\n", addr).expect("loopback");
        wait_for_messages(s, 1);
        assert_eq!(after("MARK", &messages(s)), ["MARK with\nanother line".to_owned()].into());
        // Nobody reads meanwhile, so that the buffer is full, however fast the machine is.
        s.server().freeze();
        for n in 0..5000 {
            let text = format!("<13>MARK {n} {}", "x".repeat(300));
            sender.send_to(text.as_bytes(), addr).expect("loopback");
        }
        s.server().signal(libc::SIGCONT);
        // Another one arrives once the burst is processed: the counts are complete then.
        let mut last = 0.0;
        s.wait("a datagram after the burst", |s| {
            sender.send_to(b"<13>LAST", addr).expect("loopback");
            last += 1.0;
            !after("LAST", &messages(s)).is_empty()
        });
        let dropped =
            |s: &mut Scenario| s.server().metric("logweir_discarded_records_total", "component=\"syslog_udp\"");
        let deadline = Instant::now() + PATIENCE;
        let (stored, dropped) = loop {
            let counts = (after("MARK", &messages(s)).len() as f64, dropped(s));
            if counts.1 > 0.0 && counts.0 + counts.1 >= 5001.0 {
                break counts;
            }
            assert!(Instant::now() < deadline, "stored and dropped: {counts:?}");
        };
        assert!(stored > 20.0, "{stored} stored, {dropped} dropped");
        assert!(stored + dropped <= 5001.0 + last, "{stored} stored, {dropped} dropped, of {last} after the burst");
    });
}

/// PEM files: a CA, and certificates issued by it for the listener and for a sender.
struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    fn make(dir: &Path) -> Self {
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut ca = rcgen::CertificateParams::new(vec![]).expect("no names");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).expect("a certificate").pem()).expect("a file");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        for name in ["server", "sender"] {
            let key = rcgen::KeyPair::generate().expect("a key");
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let certificate = rcgen::CertificateParams::new(names).expect("names").signed_by(&key, &issuer);
            fs::write(dir.join(format!("{name}.pem")), certificate.expect("a certificate").pem()).expect("a file");
            fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
        }
        Self { dir: dir.to_owned() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// Connects as a sender, with or without a certificate.
    fn connect(&self, addr: SocketAddr, certified: bool) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        use rustls::pki_types::pem::PemObject;
        let certificates = |name: &str| {
            let read = rustls::pki_types::CertificateDer::pem_file_iter(self.path(name)).and_then(Iterator::collect);
            read.unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let mut roots = rustls::RootCertStore::empty();
        let ca: Vec<_> = certificates("ca.pem");
        ca.into_iter().for_each(|certificate| roots.add(certificate).expect("the CA of this test"));
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual versions")
            .with_root_certificates(roots);
        let config = if certified {
            let key = PrivateKeyDer::from_pem_file(self.path("sender.key")).expect("the key of this test");
            builder.with_client_auth_cert(certificates("sender.pem"), key).expect("a certificate and its key")
        } else {
            builder.with_no_client_auth()
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let client = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
        rustls::StreamOwned::new(client, connect(addr))
    }
}

#[test]
fn tls_accepts_frames_and_requires_a_certificate_if_a_ca_is_configured() {
    on_sqlite("syslog tls", |s| {
        let certificates = Certificates::make(&s.dir);
        let addr = listen(s, "syslog.tls_listen");
        s.set("syslog.tls_cert_file", certificates.path("server.pem"));
        s.set("syslog.tls_key_file", certificates.path("server.key"));
        s.start();
        let mut sender = certificates.connect(addr, false);
        sender.write_all(b"14 <13>MARK first14 <13>MARK\nfirst").expect("TLS");
        sender.flush().expect("TLS");
        wait_for_messages(s, 2);

        s.set("syslog.client_ca_file", certificates.path("ca.pem"));
        s.start();
        let mut uncertified = certificates.connect(addr, false);
        let _ = uncertified.write_all(b"17 <13>MARK uncertified").and_then(|()| uncertified.flush());
        s.wait("the sender without a certificate rejected", |_| {
            std::io::copy(&mut uncertified, &mut std::io::sink()).is_err()
        });
        let mut sender = certificates.connect(addr, true);
        sender.write_all(b"18 <13>MARK certified").expect("TLS");
        sender.flush().expect("TLS");
        wait_for_messages(s, 3);
        let expect = ["MARK first", "MARK\nfirst", "MARK certified"];
        assert_eq!(after("MARK", &messages(s)), expect.map(str::to_owned).into());
        let failed = |server: &Server| server.metric("logweir_network_errors_total", "kind=\"handshake\"") == 1.0;
        s.server().until("the failed handshake is counted", PATIENCE, failed).expect("it runs");
        // The configuration is checked before anything is started.
        s.set("syslog.tls_key_file", certificates.path("sender.key"));
        let output = s.run(&["validate"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &*String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains("syslog.tls_listen") && text.contains("cannot use the TLS files"), "{text}");
    });
}

/// The first program that is installed; otherwise reports that a test is skipped.
fn program(paths: &[&str]) -> Option<PathBuf> {
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: none of {paths:?} is installed; run tests/install-servers");
    }
    found
}

/// A sender process; killed when dropped.
struct Sender(Child);

impl Sender {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::create(log).expect("a log");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log).spawn();
        Self(child.expect("the sender starts"))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("a log file");
    file.write_all(text.as_bytes()).expect("a log file");
}

#[test]
fn logger_sends_by_tcp_and_udp() {
    let Some(logger) = program(&["/usr/bin/logger"]) else { return };
    on_sqlite("logger", |s| {
        let (tcp, udp) = (listen(s, "syslog.tcp_listen"), listen(s, "syslog.udp_listen"));
        s.start();
        let send = |addr: SocketAddr, flags: &[&str], message: &str| {
            let status = Command::new(&logger)
                .args(["--server", "127.0.0.1", "--port", &addr.port().to_string()])
                .args(flags)
                .arg(message)
                .status();
            assert!(status.expect("logger runs").success(), "{flags:?}");
        };
        for round in 0..2 {
            send(tcp, &["--tcp", "--octet-count", "--rfc5424"], &format!("MARK {round} counted 5424"));
            send(tcp, &["--tcp", "--rfc5424"], &format!("MARK {round} line 5424"));
            send(tcp, &["--tcp", "--octet-count", "--rfc3164"], &format!("MARK {round} counted 3164"));
            send(udp, &["--udp", "--rfc3164"], &format!("MARK {round} datagram"));
            wait_for_messages(s, 4 * (round + 1));
            s.server().kill();
            s.start();
        }
        assert_eq!(after("MARK", &messages(s)).len(), 8, "{:?}", messages(s));
    });
}

#[test]
fn rsyslog_forwards_counted_frames_and_reconnects_after_a_kill() {
    let Some(rsyslogd) = program(&["/usr/sbin/rsyslogd"]) else { return };
    on_sqlite("rsyslog", |s| {
        let addr = listen(s, "syslog.tcp_listen");
        let (input, work) = (s.dir.join("input.log"), s.dir.join("rsyslog"));
        fs::create_dir(&work).expect("a directory");
        append(&input, "");
        let config = s.dir.join("rsyslog.conf");
        let text = format!(
            r#"global(workDirectory="{work}")
module(load="imfile" mode="inotify")
input(type="imfile" File="{input}" Tag="app:" Severity="warning" Facility="local0" reopenOnTruncate="on")
action(type="omfwd" target="127.0.0.1" port="{port}" protocol="tcp" TCP_Framing="octet-counted"
       template="RSYSLOG_SyslogProtocol23Format" action.resumeRetryCount="-1" action.resumeInterval="1"
       queue.type="linkedList" queue.size="100000")
"#,
            work = work.display(),
            input = input.display(),
            port = addr.port()
        );
        fs::write(&config, text).expect("a file");
        s.start();
        let pid = work.join("pid");
        let mut command = Command::new(rsyslogd);
        command.arg("-n").arg("-f").arg(&config).arg("-i").arg(&pid);
        let _sender = Sender::start(&mut command, &s.dir.join("rsyslog.log"));
        let lines = |from: usize| (from..from + 500).map(|n| format!("MARK {n}\n")).collect::<String>();
        append(&input, &lines(0));
        wait_for_messages(s, 500);
        s.server().kill();
        append(&input, &lines(500));
        s.start();
        // Syslog has no acknowledgments: what rsyslog wrote into the broken connection is lost (as its manual states).
        // What it writes into the new one is stored, and so is everything stored before.
        append(&input, &lines(1000));
        s.wait("the last line", |s| after("MARK", &messages(s)).contains("MARK 1499"));
        let stored = after("MARK", &messages(s));
        let lost: Vec<usize> = (0..1500).filter(|n| !stored.contains(&format!("MARK {n}"))).collect();
        assert!(lost.iter().all(|n| (500..1000).contains(n)), "{lost:?}");
        assert!(lost.len() < 100, "{} of 500 are lost", lost.len());
    });
}

/// The syslog-ng package conflicts with rsyslog, so it is unpacked beside it.
const SYSLOG_NG: &str = "/usr/local/lib/logweir-tests/syslog-ng";

#[test]
fn syslog_ng_sends_by_syslog_and_by_http_and_nothing_acknowledged_is_lost() {
    let unpacked = format!("{SYSLOG_NG}/usr/sbin/syslog-ng");
    let Some(syslog_ng) = program(&["/usr/sbin/syslog-ng", &unpacked]) else { return };
    on_sqlite("syslog-ng", |s| {
        let addr = listen(s, "syslog.tcp_listen");
        let input = s.dir.join("input.log");
        append(&input, "");
        let config = s.dir.join("syslog-ng.conf");
        let text = format!(
            r#"@version: 3.38
options {{ stats-level(0); time-reopen(1); }};
source s_file {{ file("{input}" follow-freq(0.1) flags(no-parse)); }};
destination d_syslog {{ syslog("127.0.0.1" port({port}) transport("tcp")); }};
destination d_http {{
  http(url("http://{http}/ingest?format=plain&service=over-http") method("POST") body("${{MESSAGE}}") delimiter("\n")
       batch-lines(50) batch-timeout(100) retries(1000));
}};
log {{ source(s_file); destination(d_syslog); destination(d_http); }};
"#,
            input = input.display(),
            port = addr.port(),
            http = s.settings["http.listen"],
        );
        fs::write(&config, text).expect("a file");
        s.start();
        let mut command = Command::new(&syslog_ng);
        if syslog_ng.starts_with(SYSLOG_NG) {
            let modules = format!("{SYSLOG_NG}/usr/lib/syslog-ng/3.38");
            command.env("LD_LIBRARY_PATH", format!("{SYSLOG_NG}/usr/lib/syslog-ng:{modules}"));
            command.arg(format!("--module-path={modules}"));
        }
        let state = |name: &str| s.dir.join(name).to_string_lossy().into_owned();
        command.args(["--foreground", "--no-caps", "--stderr"]);
        command.arg(format!("--cfgfile={}", config.display())).arg(format!("--persist-file={}", state("persist")));
        command.arg(format!("--pidfile={}", state("pid"))).arg(format!("--control={}", state("ctl")));
        let _sender = Sender::start(&mut command, &s.dir.join("syslog-ng.log"));
        let lines = |from: usize| (from..from + 500).map(|n| format!("MARK {n}\n")).collect::<String>();
        let by_http = |s: &Scenario| {
            let sql = "SELECT DISTINCT message FROM logs WHERE service = 'over-http'";
            s.store.rows(sql).unwrap_or_default().len()
        };
        let by_syslog = |s: &Scenario| {
            let sql = "SELECT message FROM logs WHERE service <> 'over-http'";
            let rows =
                s.store.rows(sql).unwrap_or_default().into_iter().flatten().map(|message| (message, 1)).collect();
            after("MARK", &rows)
        };
        append(&input, &lines(0));
        s.wait("500 lines over both transports", |s| by_http(s) == 500 && by_syslog(s).len() == 500);
        s.server().kill();
        append(&input, &lines(500));
        s.start();
        append(&input, &lines(1000));
        // HTTP is acknowledged: everything is stored, however often it was sent.
        s.wait("all lines by HTTP", |s| by_http(s) == 1500);
        s.wait("the last line by syslog", |s| by_syslog(s).contains("MARK 1499"));
    });
}

// Tailed files.

/// Short intervals, so that a test takes a second rather than a minute.
fn tail(s: &mut Scenario, include: &str) -> PathBuf {
    let logs = s.dir.join("logs");
    fs::create_dir_all(&logs).expect("a directory");
    s.set("files.include", format!("{}/{include}", logs.display()));
    s.set("files.poll_ms", 20);
    s.set("files.rescan_ms", 50);
    s.set("multiline.timeout_ms", 500);
    logs
}

/// Writes `count` numbered lines into `app.log`, calling `rotate` after every `every` lines.
fn write_and_rotate(
    logs: &Path,
    count: usize,
    every: usize,
    rotate: impl Fn(&Path, usize) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let path = logs.join("app.log");
    std::thread::spawn(move || {
        let mut file = OpenOptions::new().create(true).append(true).open(&path).expect("a log file");
        for n in 0..count {
            // In two writes: a reader may see half of a line.
            write!(file, "MARK ").and_then(|()| writeln!(file, "{n} {}", "x".repeat(n % 100))).expect("a log file");
            if n % every == every - 1 {
                rotate(&path, n / every);
                file = OpenOptions::new().create(true).append(true).open(&path).expect("a log file");
            }
            if n % 50 == 0 {
                std::thread::sleep(Duration::from_millis(1)); // limits the rate to that of a busy service
            }
        }
    })
}

fn numbers(s: &Scenario) -> BTreeMap<usize, usize> {
    let mut found = BTreeMap::new();
    for (message, times) in messages(s) {
        let number = message.strip_prefix("MARK ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let number: usize = number.unwrap_or_else(|| panic!("unexpected message {message:?}"));
        assert_eq!(message, format!("MARK {number} {}", "x".repeat(number % 100)).trim_end());
        *found.entry(number).or_default() += times;
    }
    found
}

#[test]
fn rotation_by_rename_under_load_neither_loses_nor_duplicates_a_line() {
    on_sqlite("rename", |s| {
        // The glob does not match the rotated files: they are followed by inode.
        let logs = tail(s, "app.log");
        s.start();
        let checkpoint = s.data_dir().join("files.json");
        let writing = write_and_rotate(&logs, 20_000, 1500, move |path, n| {
            // A file that is created and removed between two scans of the globs goes unnoticed.
            let inode = format!("\"ino\":{},", fs::metadata(path).expect("the log file").ino());
            let deadline = Instant::now() + PATIENCE;
            while !fs::read_to_string(&checkpoint).is_ok_and(|text| text.contains(&inode)) {
                assert!(Instant::now() < deadline, "a new file was not found");
            }
            fs::rename(path, path.with_extension(format!("log.{n}"))).expect("a rename");
        });
        writing.join().expect("the writer writes");
        wait_for_messages(s, 20_000);
        assert!(numbers(s).values().all(|&times| times == 1));
        // Everything is read and acknowledged: a restart reads nothing again.
        s.stop();
        append(&logs.join("app.log"), "MARK 20000 \n");
        s.start();
        wait_for_messages(s, 20_001);
        assert!(numbers(s).values().all(|&times| times == 1));
    });
}

#[test]
fn a_kill_at_any_moment_loses_no_line_of_a_file_that_is_rotated() {
    on_sqlite("tail and kill", |s| {
        let logs = tail(s, "app.log*");
        s.start();
        let writing = write_and_rotate(&logs, 40_000, 3000, |path, n| {
            fs::rename(path, path.with_extension(format!("log.{n}"))).expect("a rename");
        });
        let mut kills = 0;
        while !writing.is_finished() || kills < 5 {
            let stored = messages(s).len();
            let millis = s.random.random_range(0..300);
            s.wait("a new record, or the end of the writer", |s| writing.is_finished() || messages(s).len() > stored);
            std::thread::sleep(Duration::from_millis(millis));
            s.server().kill();
            kills += 1;
            s.start();
        }
        writing.join().expect("the writer writes");
        wait_for_messages(s, 40_000);
        let numbers = numbers(s);
        assert_eq!(numbers.keys().copied().collect::<Vec<_>>(), (0..40_000).collect::<Vec<_>>());
        let duplicated: Vec<_> = numbers.iter().filter(|(_, times)| **times > 1).collect();
        assert!(duplicated.is_empty(), "{} lines were duplicated in {kills} kills: {duplicated:?}", duplicated.len());
    });
}

#[test]
fn what_was_in_flight_when_the_process_was_killed_is_submitted_again() {
    on_sqlite("tail kill points", |s| {
        let logs = tail(s, "*.log");
        for (round, point) in ["files.range_persisted", "files.acknowledged"].into_iter().enumerate() {
            append(&logs.join("app.log"), &format!("MARK {round} {}\n", "x".repeat(round)));
            s.launch(&format!("{point}=return")).wait(PATIENCE);
            s.start();
            wait_for_messages(s, round + 1);
        }
        assert!(numbers(s).values().all(|&times| times == 1), "{:?}", numbers(s));
    });
}

#[test]
fn copytruncate_neither_loses_nor_duplicates_a_line_that_was_read() {
    on_sqlite("copytruncate", |s| {
        // The glob matches the copies as well.
        let logs = tail(s, "app.log*");
        s.start();
        let path = logs.join("app.log");
        let mut from = 0;
        for n in 0..5 {
            let lines: String = (from..from + 200).map(|n| format!("MARK {n} {}\n", "x".repeat(n % 100))).collect();
            append(&path, &lines);
            from += 200;
            if n % 2 == 0 {
                wait_for_messages(s, from); // otherwise only the copy contains what was not read yet
            }
            fs::copy(&path, path.with_extension(format!("log.{n}"))).expect("a copy");
            File::create(&path).expect("truncated");
            wait_for_messages(s, from);
            // A copy is recognized by what was read last: until it is found, the file must not be rotated again.
            let copy = format!("app.log.{n}");
            s.server()
                .until("the copy is found", PATIENCE, |server| server.log_text().contains(&copy))
                .expect("a server");
        }
        assert!(
            numbers(s).values().all(|&times| times == 1),
            "{:?}",
            numbers(s).iter().filter(|(_, times)| **times > 1).collect::<Vec<_>>()
        );
    });
}

#[test]
fn copies_of_a_file_that_is_truncated_several_times_between_two_scans_are_all_recognized() {
    on_sqlite("copytruncate again and again", |s| {
        let logs = tail(s, "app.log*");
        s.set("files.rescan_ms", "5m");
        append(&logs.join("app.log"), "MARK 0 \n");
        s.start();
        wait_for_messages(s, 1);
        let path = logs.join("app.log");
        for n in 1..5 {
            fs::copy(&path, path.with_extension(format!("log.{n}"))).expect("a copy");
            File::create(&path).expect("truncated");
            append(&path, &format!("MARK {n} {}\n", "x".repeat(n)));
            wait_for_messages(s, n + 1);
        }
        // A start scans, and knows what was read from the checkpoint.
        s.stop();
        s.start();
        for n in 1..5 {
            let copy = format!("app.log.{n}");
            let found = |server: &Server| server.log_text().contains(&copy);
            s.server().until("the copy is found", PATIENCE, found).expect("a server");
        }
        append(&path, &format!("MARK 5 {}\n", "x".repeat(5)));
        s.wait("the last line", |s| numbers(s).contains_key(&5));
        assert!(numbers(s).values().all(|&times| times == 1), "{:?}", numbers(s));
    });
}

#[test]
fn new_files_are_found_incomplete_lines_wait_and_compressed_files_are_ignored() {
    on_sqlite("globs", |s| {
        let logs = tail(s, "**/*.log*");
        s.set("files.exclude", format!("{}/**/noise*", logs.display()));
        s.set("http.line_bytes_max", "4KiB");
        s.start();
        append(&logs.join("a.log"), "MARK 0 \nMARK 1");
        wait_for_messages(s, 1);
        fs::create_dir(logs.join("deeper")).expect("a directory");
        append(&logs.join("deeper/noise.log"), "never\n");
        append(&logs.join("b.log.gz"), "never\n");
        append(&logs.join("deeper/b.log"), "MARK 2 xx\n");
        wait_for_messages(s, 2);
        assert_eq!(numbers(s).keys().copied().collect::<Vec<_>>(), [0, 2]);
        append(&logs.join("a.log"), " x\n");
        wait_for_messages(s, 3);
        // An overlong line is discarded once, even if it is written in parts and the process is killed in between.
        append(&logs.join("a.log"), &"y".repeat(100_000));
        s.wait("the overlong line is being skipped", |s| {
            fs::read_to_string(s.data_dir().join("files.json")).is_ok_and(|text| text.contains("\"skipping\":true"))
        });
        s.server().kill();
        s.start();
        append(&logs.join("a.log"), &("y".repeat(10_000) + "\nMARK 3 xxx\n"));
        wait_for_messages(s, 4);
        assert_eq!(numbers(s).keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    });
}

#[test]
fn container_logs_are_joined_and_attributed_to_their_container() {
    on_sqlite("containers", |s| {
        let logs = tail(s, "{pods/*/*/*.log,none}").join("pods/shop_web-7f_11-22/nginx");
        let base = s.dir.join("logs");
        s.set("files.include", format!("{0}/pods/*/*/*.log,{0}/containers/*.log", base.display()));
        s.set("files.host", "node-1");
        fs::create_dir_all(&logs).expect("a directory");
        fs::create_dir_all(base.join("containers")).expect("a directory");
        let cri = "2026-11-21T08:00:00.000000001Z stdout P one half \n2026-11-21T08:00:00.000000002Z stderr F ERROR it broke\n\
                   2026-11-21T08:00:00.000000003Z stderr F java.lang.Error: no\n2026-11-21T08:00:00.000000004Z stderr F \tat a.B(C.java:1)\n\
                   2026-11-21T08:00:00.000000005Z stdout F and the other\n";
        append(&logs.join("0.log"), cri);
        let docker = r#"{"log":"a piece ","stream":"stdout","time":"2026-11-21T08:00:00.1Z"}
{"log":"and its end\n","stream":"stdout","time":"2026-11-21T08:00:00.2Z"}
"#;
        append(&base.join("containers/db-0_shop_postgres-0123abcd.log"), docker);
        s.start();
        wait_for_messages(s, 3);
        let sql = "SELECT message, host, service, attributes ->> '$.\"k8s.pod.name\"', attributes ->> '$.\"k8s.namespace.name\"' FROM logs";
        let mut rows = s.store.rows(sql).expect("the table");
        rows.sort_by_key(|row| row[0].contains("broke"));
        let ends =
            |end: &str| rows.iter().find(|row| row[0].ends_with(end)).unwrap_or_else(|| panic!("{end:?}: {rows:?}"));
        assert_eq!(ends("one half and the other")[1..], ["node-1", "nginx", "web-7f", "shop"]);
        assert_eq!(
            ends("it broke\njava.lang.Error: no\n\tat a.B(C.java:1)")[1..],
            ["node-1", "nginx", "web-7f", "shop"]
        );
        assert_eq!(ends("a piece and its end")[1..], ["node-1", "postgres", "db-0", "shop"]);
    });
}

#[test]
fn files_that_exist_at_the_first_start_can_be_skipped() {
    on_sqlite("files.from", |s| {
        let logs = tail(s, "*.log");
        s.set("files.from", "end");
        append(&logs.join("old.log"), "MARK 0 \n");
        s.start();
        s.wait("a checkpoint", |s| s.data_dir().join("files.json").exists());
        append(&logs.join("old.log"), "MARK 1 x\n");
        wait_for_messages(s, 1);
        s.server().kill();
        append(&logs.join("new.log"), "MARK 2 xx\n");
        s.start();
        wait_for_messages(s, 2);
        assert_eq!(numbers(s).keys().copied().collect::<Vec<_>>(), [1, 2]);
    });
}

/// A volume that is mounted after the process has started, a file that is moved back.
#[test]
fn a_file_that_comes_back_is_read_on() {
    on_sqlite("files that come back", |s| {
        let logs = tail(s, "*.log");
        append(&logs.join("app.log"), "MARK 0 \nMARK 1 x\n");
        s.start();
        wait_for_messages(s, 2);
        s.wait("the position", |s| {
            fs::read_to_string(s.data_dir().join("files.json")).is_ok_and(|text| text.contains("\"offset\":17"))
        });
        s.server().kill();
        fs::rename(&logs, s.dir.join("elsewhere")).expect("a directory can be moved");
        for start in 0..2 {
            s.start();
            s.wait("nothing is watched", |s| {
                fs::read_to_string(s.data_dir().join("files.json")).is_ok_and(|text| text.contains("\"files\":[]"))
            });
            // The position is kept over a restart, too.
            if start == 0 {
                s.server().kill();
            }
        }
        fs::rename(s.dir.join("elsewhere"), &logs).expect("a directory can be moved");
        append(&logs.join("app.log"), "MARK 2 xx\n");
        wait_for_messages(s, 3);
        append(&logs.join("app.log"), "MARK 3 xxx\n");
        wait_for_messages(s, 4);
        assert_eq!(numbers(s), (0..4).map(|number| (number, 1)).collect());
    });
}

#[test]
fn the_example_for_a_node_agent_is_a_valid_configuration() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/node-agent.toml");
    let output = run(&Settings::new(), &["validate", "--config", &example.to_string_lossy()], PATIENCE);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn many_files_are_read_with_few_descriptors_and_a_large_one_does_not_delay_others() {
    on_sqlite("many files", |s| {
        let logs = tail(s, "*.log");
        s.set("files.open_max", 16);
        let large: String = (0..100_000).map(|n| format!("{n} {}\n", "x".repeat(200))).collect();
        append(&logs.join("large.log"), &large);
        for n in 0..200 {
            append(&logs.join(format!("small-{n}.log")), &format!("MARK {n}\n"));
        }
        s.start();
        let sql = "SELECT count(*) FROM logs WHERE message LIKE 'MARK%'";
        let small =
            |s: &Scenario| s.store.rows(sql).ok().and_then(|rows| rows[0][0].parse::<usize>().ok()).unwrap_or(0);
        s.wait("the small files", |s| small(s) == 200);
        let pid = s.server().pid();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("a child of this process").flatten();
        let of_logs = open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&logs))).count();
        assert!(of_logs <= 16, "{of_logs} descriptors");
        // Each is continued at its position, with or without an open descriptor.
        for n in 0..200 {
            append(&logs.join(format!("small-{n}.log")), &format!("MARK {n} again\n"));
        }
        s.wait("the second lines", |s| small(s) == 400);
        s.wait("everything", |s| s.store.count() == Ok(100_400));
        let (bound, (_, most)) = (s.memory_bound(), s.server().memory_bytes());
        assert!(most < bound, "{most} bytes of memory, the bound is {bound}");
    });
}
