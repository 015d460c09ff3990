//! Connections to PostgreSQL as libpq's users expect them: `sslmode`, addresses, passwords and certificates that rotate
//! while the process runs, and poolers.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use logweir_engine::journal::LaneTail;
use logweir_query::page::Range;
use logweir_record::chunk::Chunk;
use logweir_record::record::{Record, Severity};
use logweir_store::read::{LogReader, ReadError};
use logweir_store::throttle::QueryThrottle;
use logweir_store::{self as store, AnyStore, Batch, BatchFrame, Claim, Database, DatabaseUrl, LogStore, StoreError};
use logweir_tests::client::Load;
use logweir_tests::maintenance::maintain;
use logweir_tests::pooler::{self, Pooler};
use logweir_tests::postgres::{self, Options, Server};
use logweir_tests::process::{Server as Process, Settings, command, free_addr, run, run_command};
use logweir_tests::proxy::Proxy;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_postgres_with};
use logweir_tests::store::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use uuid::Uuid;

/// A CA, and server certificates of it.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// Returns a certificate for `name` and its private key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// As [`write`], at once: somebody may be reading it.
fn replace(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::rename(write(dir, &format!("{name}.new"), text), &path).unwrap();
    path
}

async fn start(options: Options) -> Arc<Server> {
    Arc::new(tokio::task::spawn_blocking(move || Server::start(&options)).await.unwrap())
}

fn database(url: &str) -> Database {
    let mut database = Database::new(DatabaseUrl::Postgres(url.to_owned()));
    (database.pool_size, database.compress_after_days) = (2, 0);
    // So long that no slow machine reaches it.
    database.connect_timeout_ms = 60_000;
    database
}

fn open(url: &str) -> Arc<dyn LogStore> {
    store::open(&database(url)).unwrap().store()
}

fn reader(store: &AnyStore) -> Arc<dyn LogReader> {
    store.reader(PATIENCE, QueryThrottle::default()).unwrap()
}

async fn read(reader: &Arc<dyn LogReader>) -> Result<u64, ReadError> {
    reader.total(Range { start_us: 0, end_us: i64::MAX / 2 }).await.map(|snapshot| snapshot.value.records)
}

/// Connects by the URL; says `tls` or `plain`, or why it fails.
async fn connects(server: &Server, database: &Database) -> Result<&'static str, String> {
    let store = store::open(database).map_err(|error| error.to_string())?.store();
    store.lanes(Uuid::nil()).await.map_err(|error| error.to_string())?;
    let admin = postgres::connect(&format!(
        "host={} port={} user=postgres dbname=postgres",
        server.socket_dir().display(),
        server.port()
    ))
    .await;
    let uses_tls = "SELECT coalesce(bool_or(ssl), false) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                    WHERE application_name = 'logweir/admin'";
    let uses_tls: bool = admin.query_one(uses_tls, &[]).await.unwrap().get(0);
    drop(store);
    // So that the next one sees its own connection only.
    let gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'logweir/admin'";
    let deadline = Instant::now() + PATIENCE;
    while admin.query_one(gone, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(Instant::now() < deadline, "the connection stays open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(if uses_tls { "tls" } else { "plain" })
}

#[tokio::test]
async fn every_sslmode_means_what_it_means_in_libpq() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let (client_certificate, client_key) = authority.issue("certified");
    let server = start(Options {
        settings: vec![("ssl", "on".to_owned()), ("ssl_ca_file", "ca.crt".to_owned())],
        hba: vec![
            "local all all trust",
            "hostssl all certified all cert",
            "hostssl all secret all trust",
            "hostssl all both all trust",
            "hostnossl all open all trust",
            "hostnossl all both all trust",
            "host all all all reject",
        ],
        files: vec![("server.crt", certificate), ("server.key", key), ("ca.crt", authority.pem.clone())],
        ..Options::default()
    })
    .await;
    let socket = format!("host={} port={} user=postgres dbname=postgres", server.socket_dir().display(), server.port());
    open(&socket).prepare().await.unwrap();
    let admin = postgres::connect(&socket).await;
    for role in ["certified", "secret", "open", "both"] {
        admin.batch_execute(&format!("CREATE ROLE \"{role}\" LOGIN SUPERUSER")).await.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let right = write(dir.path(), "ca.pem", &authority.pem);
    let wrong = write(dir.path(), "other.pem", &Authority::new().pem);
    let (none, right_file, wrong_file) = (None::<&PathBuf>, Some(&right), Some(&wrong));
    let identity = format!(
        "&sslcert={}&sslkey={}",
        write(dir.path(), "client.crt", &client_certificate).display(),
        write(dir.path(), "client.key", &client_key).display()
    );
    let untrusted = "certificate";
    // User, host, mode with further parameters, CA file; then how it connects, or a word of the error.
    for (user, host, mode, ca_file, expected) in [
        ("both", "localhost", "disable", none, Ok("plain")),
        ("both", "localhost", "allow", none, Ok("plain")),
        ("both", "localhost", "prefer", none, Ok("tls")),
        ("both", "localhost", "require", none, Ok("tls")),
        ("open", "localhost", "allow", none, Ok("plain")),
        ("open", "localhost", "prefer", none, Ok("plain")),
        ("open", "localhost", "require", none, Err("28000")),
        ("secret", "localhost", "disable", none, Err("28000")),
        ("secret", "localhost", "allow", none, Ok("tls")),
        ("secret", "localhost", "prefer", none, Ok("tls")),
        // Without a CA file nothing is verified, except where the mode says so.
        ("secret", "127.0.0.1", "require", none, Ok("tls")),
        ("secret", "localhost", "verify-ca", none, Err("database.ca_file")),
        ("secret", "localhost", "verify-full", none, Err(untrusted)),
        // With one, the chain is verified, and the name only by verify-full.
        ("secret", "127.0.0.1", "prefer", right_file, Ok("tls")),
        ("secret", "127.0.0.1", "require", right_file, Ok("tls")),
        ("secret", "127.0.0.1", "verify-ca", right_file, Ok("tls")),
        ("secret", "127.0.0.1", "verify-full", right_file, Err(untrusted)),
        ("secret", "localhost", "verify-full", right_file, Ok("tls")),
        ("secret", "localhost", "allow", wrong_file, Err(untrusted)),
        ("secret", "localhost", "require", wrong_file, Err(untrusted)),
        ("secret", "localhost", "verify-ca", wrong_file, Err(untrusted)),
        ("secret", "localhost", "verify-full", wrong_file, Err(untrusted)),
        // A certificate that is verified and wrong does not end in plain text.
        ("both", "localhost", "prefer", wrong_file, Err(untrusted)),
        // The URL's own file counts; the host's name may have a fixed address.
        ("secret", "localhost", "verify-full&sslrootcert={right}", wrong_file, Ok("tls")),
        ("secret", "localhost", "verify-full&hostaddr=127.0.0.1", right_file, Ok("tls")),
        ("secret", "127.0.0.1", "verify-full&sslrootcert={right}", none, Err(untrusted)),
        ("certified", "localhost", "verify-full", right_file, Err("client certificate")),
        ("certified", "localhost", "verify-full{identity}", right_file, Ok("tls")),
    ] {
        let mode = mode.replace("{right}", &right.display().to_string()).replace("{identity}", &identity);
        let url = format!("postgres://{user}@{host}:{}/postgres?sslmode={mode}", server.port());
        let mut database = database(&url);
        database.ca_file = ca_file.cloned();
        match (connects(&server, &database).await, expected) {
            (Ok(how), Ok(expected)) => assert_eq!(how, expected, "{url} {ca_file:?}"),
            (Err(error), Err(word)) => assert!(error.contains(word), "{url} {ca_file:?}: {error}"),
            (got, expected) => panic!("{url} {ca_file:?}: {got:?} instead of {expected:?}"),
        }
    }
}

/// The elements that follow each other in DER, each as (tag, contents, all of it).
fn elements(mut der: &[u8]) -> Vec<(u8, &[u8], &[u8])> {
    let mut found = Vec::new();
    while let [tag, length, rest @ ..] = der {
        let bytes = usize::from(length.saturating_sub(0x80));
        let length = match bytes {
            0 => usize::from(*length),
            _ => rest[..bytes].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        let (all, next) = der.split_at(2 + bytes + length);
        found.push((*tag, &all[2 + bytes..], all));
        der = next;
    }
    found
}

/// A certificate for `name` as programs make it for themselves that know no extensions: of version 1. And its private key.
fn version_1(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    let sequence = |parts: &[&[u8]]| {
        let contents = parts.concat();
        let length = contents.len();
        let header = match length {
            0..0x80 => vec![0x30, u8::try_from(length).unwrap()],
            0x80..0x100 => vec![0x30, 0x81, u8::try_from(length).unwrap()],
            _ => vec![0x30, 0x82, u8::try_from(length >> 8).unwrap(), u8::try_from(length & 0xff).unwrap()],
        };
        [header, contents].concat()
    };
    let signed = elements(elements(own.der())[0].1);
    // Without the version and the extensions. The signature no longer fits, which nobody looks at.
    let kept: Vec<&[u8]> =
        elements(signed[0].1).iter().filter(|one| ![0xa0, 0xa3].contains(&one.0)).map(|one| one.2).collect();
    let certificate = sequence(&[&sequence(&kept), signed[1].2, signed[2].2]);
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    (pem, key.serialize_pem())
}

#[tokio::test]
async fn a_server_with_a_certificate_that_it_made_itself_is_connected_to_as_libpq_does() {
    let snakeoil = ["/etc/ssl/certs/ssl-cert-snakeoil.pem", "/etc/ssl/private/ssl-cert-snakeoil.key"];
    let debian = snakeoil.map(std::fs::read_to_string);
    let mut certificates = vec![("version 1", version_1("localhost"))];
    match debian {
        [Ok(certificate), Ok(key)] => certificates.push(("Debian's ssl-cert-snakeoil", (certificate, key))),
        _ => eprintln!("SKIPPED: Debian's ssl-cert-snakeoil, which is not installed, or not for this user"),
    }
    for (what, (certificate, key)) in certificates {
        for version in ["TLSv1.2", "TLSv1.3"] {
            let server = start(Options {
                settings: vec![
                    ("ssl", "on".to_owned()),
                    ("ssl_max_protocol_version", version.to_owned()),
                    ("password_encryption", "scram-sha-256".to_owned()),
                ],
                hba: vec!["local all all trust", "hostssl all scram all scram-sha-256", "hostssl all all all trust"],
                files: vec![("server.crt", certificate.clone()), ("server.key", key.clone())],
                ..Options::default()
            })
            .await;
            let socket = format!("host={} port={} user=postgres", server.socket_dir().display(), server.port());
            open(&format!("{socket} dbname=postgres")).prepare().await.unwrap();
            let admin = postgres::connect(&format!("{socket} dbname=postgres")).await;
            admin.batch_execute("CREATE ROLE scram LOGIN SUPERUSER PASSWORD 'secret'").await.unwrap();
            for (user, parameters, expected) in [
                ("postgres", "", "tls"),
                ("postgres", "?sslmode=prefer", "tls"),
                ("postgres", "?sslmode=require", "tls"),
                // The password is bound to the certificate.
                ("scram:secret", "?sslmode=require&channel_binding=require", "tls"),
            ] {
                let url = format!("postgres://{user}@localhost:{}/postgres{parameters}", server.port());
                let how = connects(&server, &database(&url)).await;
                assert_eq!(how.as_deref(), Ok(expected), "{what}, {version}: {url}");
            }
            if what == "version 1" {
                let verified = format!("postgres://postgres@localhost:{}/postgres?sslmode=verify-full", server.port());
                let refused = connects(&server, &database(&verified)).await.unwrap_err();
                assert!(refused.contains("certificate"), "{refused}");
            }
        }
    }
}

/// Runs `logweir database grants`, which connects once.
fn connects_as_configured(
    settings: &[(&str, String)],
    mut prepare: impl FnMut(Command) -> Command,
) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Settings::new();
    all.insert("data_dir".to_owned(), dir.path().display().to_string());
    all.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let output = run_command(prepare(command(&all, "", &["database", "grants", "--role", "app"])), PATIENCE);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

#[test]
fn a_ca_file_adds_to_the_systems_cas_and_sslrootcert_replaces_them() {
    let (public, private) = (Authority::new(), Authority::new());
    let (certificate, key) = public.issue("localhost");
    let server = Server::start(&Options {
        settings: vec![("ssl", "on".to_owned())],
        files: vec![("server.crt", certificate), ("server.key", key)],
        ..Options::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let (system, other) = (write(dir.path(), "system.pem", &public.pem), write(dir.path(), "other.pem", &private.pem));
    for (host, mode, has_file, accepted) in [
        ("localhost", "verify-full", false, true),
        ("localhost", "verify-full", true, true),
        ("localhost", "verify-ca", true, true),
        ("localhost", "require", true, true),
        // Anybody can get a certificate of a public CA for another name.
        ("127.0.0.1", "require", true, false),
        ("127.0.0.1", "verify-ca", true, false),
        ("localhost", "verify-full&sslrootcert={other}", false, false),
        ("localhost", "require&sslrootcert={other}", true, false),
    ] {
        let mode = mode.replace("{other}", &other.display().to_string());
        let url = format!("postgres://postgres@{host}:{}/postgres?sslmode={mode}", server.port());
        let mut settings = vec![("database.url", url.clone())];
        settings.extend(has_file.then(|| ("database.ca_file", other.display().to_string())));
        let connected = connects_as_configured(&settings, |mut command| {
            command.env("SSL_CERT_FILE", &system);
            command
        });
        assert_eq!(connected.is_ok(), accepted, "{url} {has_file}: {connected:?}");
        assert!(connected.err().is_none_or(|text| text.contains("certificate")), "{url} {has_file}");
    }
}

/// Whether a process can have a file with names of hosts of its own; says so if not.
fn may_name_hosts() -> bool {
    let may_mount = Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if !may_mount {
        println!("skipped: unshare -m is not permitted, so that no name of a host can be made");
    }
    may_mount
}

/// `inner` in a place where `hosts` is /etc/hosts.
fn with_hosts(hosts: &Path, inner: &Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(hosts);
    outer.arg(inner.get_program()).args(inner.get_args());
    outer.env_clear().envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    outer.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    outer
}

#[test]
fn a_name_is_tried_at_each_of_its_addresses() {
    if !may_name_hosts() {
        return;
    }
    let server = Server::start(&Options {
        settings: vec![("listen_addresses", "127.0.0.1,127.0.0.4".to_owned())],
        hba: vec!["host all all all trust"],
        ..Options::default()
    });
    // They accept connections and stay silent. glibc sorts by the longest prefix in common with 127.0.0.1.
    let silent = ["127.0.0.2", "127.0.0.3"].map(|address| TcpListener::bind((address, server.port())).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let hosts = write(dir.path(), "hosts", "127.0.0.2 db\n127.0.0.3 db\n127.0.0.4 db\n");
    let url = format!("postgres://postgres@db:{}/postgres", server.port());
    let settings = [("database.url", url), ("database.connect_timeout_ms", "5000".to_owned())];
    connects_as_configured(&settings, |inner| with_hosts(&hosts, &inner)).unwrap();
    drop(silent);
}

#[test]
fn a_running_process_follows_its_database_to_another_address_while_the_old_server_lives_on() {
    if !may_name_hosts() {
        return;
    }
    on_postgres("DNS move", |s| {
        let next = s.postgres().standby(free_addr().port(), "next", &[]).unwrap();
        let port = free_addr().port();
        let at = |host: u8, server: &Server| {
            let target = (Ipv4Addr::LOCALHOST, server.port()).into();
            Proxy::start_at((Ipv4Addr::new(127, 0, 0, host), port).into(), target).unwrap()
        };
        let _doors = [at(2, s.postgres()), at(3, &next)];
        let hosts = write(&s.dir, "hosts", "127.0.0.2 db\n");
        s.set("database.url", format!("postgres://postgres@db:{port}/postgres?sslmode=disable"));
        s.set("database.connection_age_max_s", 2);
        // The new server lacks what the old one stored after its promotion: the journal still has it.
        s.set("journal.retain_segments", 8);
        let addr = |key: &str| s.settings[key].parse().unwrap();
        let command = with_hosts(&hosts, &command(&s.settings, "", &["run"]));
        let mut process = Process::spawn(command, addr("http.listen"), addr("admin.listen"), s.dir.join("moved.log"));
        process.ready().unwrap();
        let load = s.load(Load::default());
        s.stored();
        // While partitions are made, a lane can get another connection anyway.
        let maintained = |process: &Process| {
            let metrics = process.admin("/metrics").map(|answer| answer.body).unwrap_or_default();
            metrics.contains("logweir_maintenance_failing{step=\"text_index\"}")
        };
        process.until("a round of maintenance", PATIENCE, maintained).unwrap();
        let rows = s.store.count().unwrap();
        s.wait("the lanes store", |s| s.store.count().unwrap() >= rows + 500);
        next.execute("SELECT pg_promote()");
        write(&s.dir, "hosts", "127.0.0.3 db\n");
        let new = Store::Postgres(next.url("postgres"));
        let used = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^logweir/(query|[0-9a-f]{32}/)'";
        s.wait("the old server is left", |s| {
            let answer = process.data("/api/v1/query?query=*").unwrap();
            assert_ne!(answer.status, 500, "{}", answer.body);
            s.store.rows(used).unwrap()[0][0] == "0" && new.rows(used).unwrap()[0][0] != "0"
        });
        let (old_rows, rows) = (s.store.count().unwrap(), new.count().unwrap());
        s.acknowledged(500);
        s.wait("the new server has the records", |_| new.count().unwrap() >= rows + 500);
        assert_eq!(s.store.count().unwrap(), old_rows);
        load.stop();
        process.signal(libc::SIGTERM);
        assert_eq!(process.wait(PATIENCE).code(), Some(0), "{}", process.log_text());
        s.set("database.url", next.url("postgres"));
        s.store = new;
        s.assert_contract();
    });
}

#[test]
fn every_sslmode_can_be_set_in_the_file_and_in_the_environment() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let server = Server::start(&Options {
        settings: vec![("ssl", "on".to_owned())],
        hba: vec!["hostssl all secret all trust", "host all secret all reject"],
        files: vec![("server.crt", certificate), ("server.key", key)],
        ..Options::default()
    });
    server.execute("CREATE ROLE secret LOGIN");
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) =
        (write(dir.path(), "ca.pem", &authority.pem), write(dir.path(), "other.pem", &Authority::new().pem));
    let (right, wrong) = (right.display().to_string(), wrong.display().to_string());
    // The certificate is for localhost. `None`: accepted; else a word of the error.
    for (mode, host, root, error) in [
        ("disable", "localhost", None, Some("28000")),
        ("allow", "127.0.0.1", None, None),
        ("prefer", "127.0.0.1", None, None),
        ("require", "127.0.0.1", None, None),
        ("verify-ca", "localhost", None, Some("database.ca_file")),
        ("verify-full", "localhost", None, Some("certificate")),
        ("allow", "127.0.0.1", Some(&right), None),
        ("prefer", "127.0.0.1", Some(&right), None),
        ("require", "127.0.0.1", Some(&right), None),
        ("verify-ca", "127.0.0.1", Some(&right), None),
        ("verify-full", "127.0.0.1", Some(&right), Some("certificate")),
        ("verify-full", "localhost", Some(&right), None),
        ("allow", "localhost", Some(&wrong), Some("certificate")),
        ("prefer", "localhost", Some(&wrong), Some("certificate")),
        ("require", "localhost", Some(&wrong), Some("certificate")),
        ("verify-ca", "localhost", Some(&wrong), Some("certificate")),
        ("verify-full", "localhost", Some(&wrong), Some("certificate")),
    ] {
        let url = format!("postgres://secret@{host}:{}/postgres?sslmode={mode}", server.port());
        let mut ways = Vec::new();
        match root {
            None => ways.push((url.clone(), None)),
            Some(root) => ways.extend([(format!("{url}&sslrootcert={root}"), None), (url.clone(), Some(root))]),
        }
        for (url, ca_file) in ways {
            let mut file = format!("[database]\nurl = '{url}'\n");
            let mut environment = vec![("database.url", url.clone())];
            if let Some(ca_file) = ca_file {
                file.push_str(&format!("ca_file = '{ca_file}'\n"));
                environment.push(("database.ca_file", ca_file.clone()));
            }
            let file = write(dir.path(), "logweir.toml", &file).display().to_string();
            for settings in [environment, vec![("config", file)]] {
                let connected = connects_as_configured(&settings, |command| command);
                match (&connected, error) {
                    (Ok(()), None) => {}
                    (Err(text), Some(word)) => assert!(text.contains(word), "{settings:?} {url}: {text}"),
                    _ => panic!("{settings:?} {url}: {connected:?}"),
                }
            }
        }
    }
}

#[test]
fn a_password_that_is_asked_for_and_not_there_is_named() {
    let server = Server::start(&Options { hba: vec!["host all app all scram-sha-256"], ..Options::default() });
    server.execute("CREATE ROLE app LOGIN PASSWORD 'one'");
    let url = |password: &str| format!("postgres://app{password}@127.0.0.1:{}/postgres", server.port());
    let connects = |password: &str| connects_as_configured(&[("database.url", url(password))], |command| command);
    let error = connects("").unwrap_err();
    assert!(error.contains("asks for a password, and database.url has none"), "{error}");
    assert!(error.contains("LOGWEIR__DATABASE__URL_FILE"), "{error}");
    let error = connects(":two").unwrap_err();
    assert!(error.contains("28P01") && error.contains("correct the password in database.url"), "{error}");
    connects(":one").unwrap();
}

#[test]
fn validate_accepts_libpqs_parameters_and_explains_what_it_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let validate = |url: &str| {
        let mut settings = Settings::new();
        settings.insert("data_dir".to_owned(), dir.path().display().to_string());
        settings.insert("database.url".to_owned(), url.to_owned());
        let output = run(&settings, &["validate"], PATIENCE);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for url in [
        "postgres://u@h/d?sslmode=verify-full",
        "postgres://u@h/d?sslmode=allow&sslrootcert=/etc/ca.pem",
        "postgres://u@a,b:5433/d?target_session_attrs=primary",
        "postgres://u@[::1]/d",
        "postgres://u@%2Frun%2Fpostgresql/d",
        "host=/run/postgresql user=u dbname=d",
    ] {
        let (code, text) = validate(url);
        assert_eq!(code, Some(0), "{url}: {text}");
    }
    for (url, words) in [
        ("postgres://u:secret@h/d?sslmode=full", &["sslmode=full", "verify-full"][..]),
        ("postgres://u:secret@h/d?sslcrl=/etc/crl", &["sslcrl", "remove it"]),
        ("postgres://u:secret@h/d?sslmode=verify-ca", &["database.ca_file"]),
    ] {
        let (code, text) = validate(url);
        assert_eq!(code, Some(78), "{url}: {text}");
        assert!(words.iter().all(|word| text.contains(word)) && !text.contains("secret"), "{url}: {text}");
    }
}

#[tokio::test]
async fn servers_are_found_by_socket_ipv6_name_and_after_one_that_is_down() {
    let server =
        start(Options { settings: vec![("listen_addresses", "127.0.0.1,::1".to_owned())], ..Options::default() }).await;
    let (port, dead) = (server.port(), free_addr().port());
    let dir = server.socket_dir().display().to_string();
    open(&server.url("postgres")).prepare().await.unwrap();
    for url in [
        format!("postgres://postgres@{}:{port}/postgres", dir.replace('/', "%2F")),
        // `sslmode` does not concern a socket.
        format!("postgres:///postgres?host={dir}&port={port}&user=postgres&sslmode=require"),
        format!("host={dir} port={port} user=postgres dbname=postgres"),
        format!("postgres://postgres@[::1]:{port}/postgres"),
        format!("postgres://postgres@localhost:{port}/postgres"),
        format!("host=nonexistent.invalid hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres"),
        format!("postgres://postgres@127.0.0.1:{dead},[::1]:{port}/postgres"),
        format!("host=127.0.0.1,{dir} port={dead},{port} user=postgres dbname=postgres load_balance_hosts=random"),
    ] {
        open(&url).lanes(Uuid::nil()).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    }
}

#[tokio::test]
async fn the_server_that_allows_writes_is_found_among_several() {
    let (primary, standby) = (start(Options::default()).await, start(Options::default()).await);
    for server in [&primary, &standby] {
        open(&server.url("postgres")).prepare().await.unwrap();
    }
    standby.set_read_only(true).await;
    let both = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", standby.port(), primary.port());
    open(&both).lanes(Uuid::nil()).await.unwrap();
    let admins = [postgres::connect(&primary.url("postgres")).await, postgres::connect(&standby.url("postgres")).await];
    for (attrs, expected) in [("any", 1), ("read-only", 1), ("standby", 1), ("prefer-standby", 1), ("primary", 0)] {
        let mut database = database(&both);
        database.read_url = Some(DatabaseUrl::Postgres(format!("{both}?target_session_attrs={attrs}")));
        let reader = reader(&store::open(&database).unwrap());
        read(&reader).await.unwrap();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'logweir/query'";
        until(async || admins[expected].query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
        drop(reader);
        until(async || admins[expected].query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0).await;
    }
    let alone = database(&format!("postgres://postgres@127.0.0.1:{}/postgres", standby.port()));
    let error = store::open(&alone).unwrap().store().lanes(Uuid::nil()).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Transient(_)) && error.to_string().contains("does not allow writes"),
        "{error}"
    );
}

async fn with_role(server: &Server) -> String {
    open(&server.url("postgres")).prepare().await.unwrap();
    let admin = postgres::connect(&server.url("postgres")).await;
    admin.batch_execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'one'").await.unwrap();
    format!("postgres://app:PASSWORD@127.0.0.1:{}/postgres", server.port())
}

const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";

#[tokio::test]
async fn a_rotated_password_is_read_again_and_the_message_says_what_helps() {
    let server = start(Options { hba: vec!["host all app all scram-sha-256"], ..Options::default() }).await;
    let url = with_role(&server).await;
    let admin = postgres::connect(&server.url("postgres")).await;
    let dir = tempfile::tempdir().unwrap();
    let one = url.replace("PASSWORD", "one");
    let file = write(dir.path(), "url", &format!("{one}\n"));
    let passfile = write(dir.path(), "pgpass", "*:*:*:app:one\n");
    let from_file = {
        let mut database = database(&one);
        database.url_file = Some(file.clone());
        database
    };
    let from_passfile = database(
        &url.replace(":PASSWORD", "").replace("/postgres", &format!("/postgres?passfile={}", passfile.display())),
    );
    let fixed = database(&one);
    let stores = [&from_file, &from_passfile, &fixed].map(|database| store::open(database).unwrap());
    for store in &stores {
        store.store().lanes(Uuid::nil()).await.unwrap();
        read(&reader(store)).await.unwrap();
    }

    admin.batch_execute("ALTER ROLE app PASSWORD 'two'").await.unwrap();
    admin.batch_execute(END_SESSIONS).await.unwrap();
    for (store, hint) in stores.iter().zip(["read again at the next attempt", "28P01", "LOGWEIR__DATABASE__URL_FILE"]) {
        let error = until_refused(store).await;
        assert!(matches!(error, StoreError::Systemic(_)) && error.to_string().contains(hint), "{error}");
        // A query can be repeated later.
        let error = read(&reader(store)).await.unwrap_err();
        assert!(matches!(&error, ReadError::Unavailable(text) if text.contains("28P01")), "{error}");
    }

    write(dir.path(), "url", &url.replace("PASSWORD", "two"));
    write(dir.path(), "pgpass", "*:*:*:app:two\n");
    for store in &stores[..2] {
        store.store().lanes(Uuid::nil()).await.unwrap();
        read(&reader(store)).await.unwrap();
    }
    let error = stores[2].store().lanes(Uuid::nil()).await.unwrap_err();
    assert!(error.to_string().contains("restart"), "{error}");

    // A file that is half written or gone leaves what was read before in use.
    for text in ["postgres://app:%", ""] {
        write(dir.path(), "url", text);
        admin.batch_execute(END_SESSIONS).await.unwrap();
        until(async || stores[0].store().lanes(Uuid::nil()).await.is_ok()).await;
    }
    std::fs::remove_file(&file).unwrap();
    admin.batch_execute(END_SESSIONS).await.unwrap();
    until(async || stores[0].store().lanes(Uuid::nil()).await.is_ok()).await;
}

/// Retries until the pool no longer returns the terminated connection.
async fn until_refused(store: &AnyStore) -> StoreError {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.store().lanes(Uuid::nil()).await {
            Err(error @ StoreError::Systemic(_)) => return error,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "timed out");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_rotated_ca_is_read_again_and_open_connections_are_replaced() {
    let (before, after) = (Authority::new(), Authority::new());
    let (certificate, key) = before.issue("localhost");
    let server = start(Options {
        settings: vec![("ssl", "on".to_owned())],
        hba: vec!["hostssl all app all trust", "host all app all reject"],
        files: vec![("server.crt", certificate), ("server.key", key)],
        ..Options::default()
    })
    .await;
    let url = with_role(&server).await.replace("127.0.0.1", "localhost") + "?sslmode=verify-full";
    let dir = tempfile::tempdir().unwrap();
    let mut database = database(&url);
    database.ca_file = Some(write(dir.path(), "ca.pem", &before.pem));
    let store = store::open(&database).unwrap();
    store.store().lanes(Uuid::nil()).await.unwrap();
    let mut feed = Feed::start(&store.store()).await.unwrap();
    feed.flush().await.unwrap();

    let (certificate, key) = after.issue("localhost");
    std::fs::write(server.data().join("server.crt"), certificate).unwrap();
    std::fs::write(server.data().join("server.key"), key).unwrap();
    let admin = postgres::connect(&server.url("postgres")).await;
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    admin.batch_execute(END_SESSIONS).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        admin.batch_execute(END_SESSIONS).await.unwrap();
        match store.store().lanes(Uuid::nil()).await {
            Err(error @ StoreError::Systemic(_)) => break error.to_string(),
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    };
    assert!(error.contains("certificate") && error.contains("read again at the next attempt"), "{error}");
    write(dir.path(), "ca.pem", &after.pem);
    store.store().lanes(Uuid::nil()).await.unwrap();
    until(async || feed.flush().await.is_ok()).await;
}

/// A lane that stores one record after the other.
struct Feed {
    writer: Uuid,
    lane: Box<dyn store::LaneWriter>,
    seq: u64,
}

impl Feed {
    async fn start(store: &Arc<dyn LogStore>) -> Result<Self, StoreError> {
        let (writer, run) = (Uuid::new_v4(), Uuid::new_v4());
        let tails: Vec<(u16, LaneTail)> = Vec::new();
        let claim = Claim { runs: vec![run], tails, ..Claim::new(writer, run, "test") };
        let lease = store.acquire_lease(&claim).await?;
        let (lane, _) = store.open_lane(&lease, 0).await?;
        Ok(Self { writer, lane, seq: 0 })
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        let now_us = 1_763_640_000_000_000;
        let mut chunk = Chunk::with_capacity(now_us, 1, 64);
        chunk.push(Record {
            ts_us: now_us,
            severity: Severity::INFO,
            service: "s",
            host: "h",
            message: "m",
            attributes: "",
        });
        let (from_seq, seq) = (self.seq, self.seq + 1);
        let frame = BatchFrame { seq, lane_records: seq, payload_crc: 1, dedup_key: None, chunk: Arc::new(chunk) };
        self.lane.flush(&Batch::new(0, from_seq, from_seq, 0, vec![frame])).await?;
        self.seq = seq;
        Ok(())
    }
}

/// Reads a message of PostgreSQL's protocol; the first one of a client has no type.
async fn message(from: &mut OwnedReadHalf, has_type: bool) -> std::io::Result<Vec<u8>> {
    let head = if has_type { 5 } else { 4 };
    let mut bytes = vec![0; head];
    from.read_exact(&mut bytes).await?;
    let len = u32::from_be_bytes(bytes[head - 4..].try_into().unwrap()) as usize;
    bytes.resize(head - 4 + len, 0);
    from.read_exact(&mut bytes[head..]).await?;
    Ok(bytes)
}

/// Passes connections on to `server`, and collects each BEGIN that follows a request without an answer.
async fn hasty_begins(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (addr, found) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let hasty = Arc::clone(&found);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
            // That of the connection itself.
            let unanswered = Arc::new(AtomicU32::new(1));
            let (open, hasty) = (Arc::clone(&unanswered), Arc::clone(&hasty));
            tokio::spawn(async move {
                let startup = message(&mut from_client, false).await?;
                to_server.write_all(&startup).await?;
                loop {
                    let request = message(&mut from_client, true).await?;
                    if request.starts_with(b"Q")
                        && request[5..].starts_with(b"BEGIN")
                        && open.load(Ordering::SeqCst) > 0
                    {
                        hasty.lock().unwrap().push(String::from_utf8_lossy(&startup).replace('\0', " "));
                    }
                    // A query, or a Sync.
                    if matches!(request[0], b'Q' | b'S') {
                        open.fetch_add(1, Ordering::SeqCst);
                    }
                    to_server.write_all(&request).await?;
                }
                #[allow(unreachable_code)]
                std::io::Result::Ok(())
            });
            tokio::spawn(async move {
                loop {
                    let answer = message(&mut from_server, true).await?;
                    // The server ignores the Sync that follows the beginning of a COPY.
                    if matches!(answer[0], b'Z' | b'G') {
                        unanswered.fetch_sub(1, Ordering::SeqCst);
                    }
                    to_client.write_all(&answer).await?;
                }
                #[allow(unreachable_code)]
                std::io::Result::Ok(())
            });
        }
    });
    (addr, found)
}

/// PgBouncer before 1.21 takes the first answer for the end of the session if the client ends there. It then cannot
/// reset the server connection, for which a new client waits until it gives up.
#[tokio::test]
async fn a_transaction_begins_when_everything_before_it_is_answered() {
    let server = start(Options::default()).await;
    let (addr, hasty) = hasty_begins((Ipv4Addr::LOCALHOST, server.port()).into()).await;
    let store = store::open(&database(&format!("postgres://postgres@{addr}/postgres?sslmode=disable"))).unwrap();
    for _ in 0..3 {
        store.store().prepare().await.unwrap();
        let mut feed = Feed::start(&store.store()).await.unwrap();
        for _ in 0..3 {
            feed.flush().await.unwrap();
        }
        // Maintenance has a default partition to create, and preparation a table.
        let tables = postgres::connect(&server.url("postgres")).await;
        tables.batch_execute("DROP TABLE logs_default, logweir_replayed").await.unwrap();
        store.store().prepare().await.unwrap();
        tables.batch_execute("DROP TABLE logs_default").await.unwrap();
        let failed = maintain(&store.store(), logweir_engine::clock::wall_us()).await;
        assert!(failed.is_empty(), "{failed:#?}");
        for _ in 0..2 {
            store.store().dead_letters(1).await.unwrap();
            store.store().purge_dead_letters(0).await.unwrap();
            read(&reader(&store)).await.unwrap();
        }
    }
    assert_eq!(*hasty.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn connections_are_replaced_when_they_are_old() {
    let server = start(Options::default()).await;
    let mut database = database(&server.url("postgres"));
    database.connection_age_max_s = 1;
    let store = store::open(&database).unwrap();
    store.store().prepare().await.unwrap();
    let mut feed = Feed::start(&store.store()).await.unwrap();
    let admin = postgres::connect(&server.url("postgres")).await;
    let reader = reader(&store);
    let processes = async |name: &str| {
        let sql =
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1 AND application_name NOT LIKE '%/open'";
        let rows = admin.query(sql, &[&name]).await.unwrap();
        rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>()
    };
    let lane = format!("logweir/{}/0/%", feed.writer.simple());
    feed.flush().await.unwrap();
    read(&reader).await.unwrap();
    let (first_lane, first_query) = (processes(&lane).await, processes("logweir/query").await);
    assert!(!first_lane.is_empty() && !first_query.is_empty());
    until(async || {
        feed.flush().await.unwrap();
        read(&reader).await.unwrap();
        let (lane, query) = (processes(&lane).await, processes("logweir/query").await);
        lane.iter().all(|pid| !first_lane.contains(pid)) && query.iter().all(|pid| !first_query.contains(pid))
    })
    .await;
}

/// A database whose owner, `limited`, is no superuser, so that limits concern it.
async fn owned(server: &Server) -> Database {
    let admin = postgres::connect(&server.url("postgres")).await;
    admin.batch_execute("CREATE ROLE limited LOGIN PASSWORD 'one'").await.unwrap();
    admin.batch_execute("CREATE DATABASE owned OWNER limited").await.unwrap();
    database(&format!("postgres://limited:one@127.0.0.1:{}/owned", server.port()))
}

fn log(server: &Server) -> String {
    std::fs::read_to_string(server.socket_dir().join("log")).unwrap()
}

/// Processes of the lane's connection, without the one that opens the lane.
async fn lane_processes(admin: &tokio_postgres::Client, feed: &Feed) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1 AND application_name NOT LIKE '%/open'";
    let rows = admin.query(sql, &[&format!("logweir/{}/0/%", feed.writer.simple())]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_lane_keeps_its_old_connection_while_the_role_may_have_no_other() {
    let server = start(Options::default()).await;
    let mut database = owned(&server).await;
    database.connection_age_max_s = 1;
    let store = store::open(&database).unwrap();
    store.store().prepare().await.unwrap();
    let mut feed = Feed::start(&store.store()).await.unwrap();
    let admin = postgres::connect(&server.url("postgres")).await;
    admin.batch_execute("ALTER ROLE limited CONNECTION LIMIT 1").await.unwrap();
    let before = lane_processes(&admin, &feed).await;
    until(async || {
        feed.flush().await.unwrap();
        log(&server).contains("too many connections for role")
    })
    .await;
    for _ in 0..10 {
        feed.flush().await.unwrap();
    }
    assert_eq!(lane_processes(&admin, &feed).await, before, "it stores over the same connection");

    admin.batch_execute("ALTER ROLE limited CONNECTION LIMIT -1").await.unwrap();
    until(async || {
        feed.flush().await.unwrap();
        lane_processes(&admin, &feed).await.iter().all(|pid| !before.contains(pid))
    })
    .await;
}

#[tokio::test]
async fn a_query_keeps_its_old_connection_while_the_role_may_have_no_other() {
    let server = start(Options::default()).await;
    let mut database = owned(&server).await;
    (database.connection_age_max_s, database.pool_size) = (1, 1);
    let store = store::open(&database).unwrap();
    store.store().prepare().await.unwrap();
    let reader = reader(&store);
    read(&reader).await.unwrap();
    let admin = postgres::connect(&server.url("postgres")).await;
    // As if another program took each place as soon as it is free.
    admin.batch_execute("ALTER ROLE limited CONNECTION LIMIT 0").await.unwrap();
    until(async || {
        read(&reader).await.unwrap();
        log(&server).contains("too many connections for role")
    })
    .await;
    for _ in 0..10 {
        read(&reader).await.unwrap();
    }
}

#[tokio::test]
async fn a_password_that_the_server_does_not_know_yet_ends_no_connection() {
    let server = start(Options { hba: vec!["host all limited all scram-sha-256"], ..Options::default() }).await;
    let mut database = owned(&server).await;
    let DatabaseUrl::Postgres(url) = database.url.clone() else { unreachable!() };
    let dir = tempfile::tempdir().unwrap();
    database.url_file = Some(write(dir.path(), "url", &url));
    let store = store::open(&database).unwrap();
    store.store().prepare().await.unwrap();
    let mut feed = Feed::start(&store.store()).await.unwrap();
    let reader = reader(&store);
    feed.flush().await.unwrap();
    read(&reader).await.unwrap();
    let admin = postgres::connect(&server.url("postgres")).await;
    let before = lane_processes(&admin, &feed).await;

    write(dir.path(), "url", &url.replace(":one@", ":two@"));
    let error = store.store().prepare().await.unwrap_err();
    assert!(error.to_string().contains("28P01"), "{error}");
    for _ in 0..3 {
        feed.flush().await.unwrap();
        read(&reader).await.unwrap();
    }
    assert_eq!(lane_processes(&admin, &feed).await, before);

    admin.batch_execute("ALTER ROLE limited PASSWORD 'two'").await.unwrap();
    store.store().prepare().await.unwrap();
    until(async || {
        feed.flush().await.unwrap();
        read(&reader).await.unwrap();
        lane_processes(&admin, &feed).await.iter().all(|pid| !before.contains(pid))
    })
    .await;
}

/// Whether there is a PgBouncer; says so if not.
fn has_pooler() -> bool {
    let installed = pooler::program().is_some();
    if !installed {
        println!("skipped: PgBouncer is not installed");
    }
    installed
}

const USERS: [(&str, &str); 1] = [("app", "one")];

async fn pooler(server: &Arc<Server>, mode: &'static str, lines: &'static str) -> Pooler {
    let port = server.port();
    tokio::task::spawn_blocking(move || Pooler::start_with(port, mode, &USERS, lines)).await.unwrap()
}

fn through(pooler: &Pooler) -> String {
    format!("postgres://app:one@127.0.0.1:{}/postgres", pooler.port())
}

/// Statements that the server has logged and that set something for a whole session.
fn session_settings(server: &Server) -> Vec<String> {
    let log = std::fs::read_to_string(server.socket_dir().join("log")).unwrap();
    let statements = log.lines().filter_map(|line| line.split_once("statement: ")).map(|(_, sql)| sql);
    let parts = statements.flat_map(|sql| sql.split(';')).map(str::trim);
    // PgBouncer itself sets the name.
    let is_ours =
        |sql: &&str| sql.starts_with("SET ") && !sql.starts_with("SET LOCAL") && !sql.contains("application_name");
    parts.filter(is_ours).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_pooler_is_refused_for_storing_exactly_if_it_shares_server_connections() {
    if !has_pooler() {
        return;
    }
    let server = start(Options { settings: vec![("log_statement", "all".to_owned())], ..Options::default() }).await;
    with_role(&server).await;
    let direct = session_settings(&server);
    assert!(direct.iter().any(|sql| sql.contains("tcp_keepalives_idle")), "a direct connection has them: {direct:?}");
    // Idle server connections, whichever of them is used next, and only a single one.
    for (mode, lines, refused) in [
        ("transaction", "", true),
        ("transaction", "server_round_robin = 1", true),
        ("transaction", "default_pool_size = 1", true),
        ("transaction", "default_pool_size = 1\nserver_round_robin = 1", true),
        ("statement", "", true),
        ("session", "", false),
        ("session", "server_round_robin = 1", false),
        // One client and the one that checks the pooler.
        ("session", "default_pool_size = 2", false),
    ] {
        for idle in [0, 4] {
            let pooler = pooler(&server, mode, lines).await;
            if !lines.contains("size") {
                let mut clients = Vec::new();
                for _ in 0..idle {
                    clients.push(postgres::connect(&through(&pooler)).await);
                }
                occupy(&clients).await;
            }
            let before = session_settings(&server).len();
            let store = open(&through(&pooler));
            let stored = async {
                let mut feed = Feed::start(&store).await?;
                for _ in 0..5 {
                    feed.flush().await?;
                }
                Ok::<_, StoreError>(())
            };
            match stored.await {
                Err(error) => {
                    assert!(refused, "{mode} {lines} {idle}: {error}");
                    assert!(matches!(error, StoreError::Systemic(_)), "{error}");
                    let text = error.to_string();
                    assert!(text.contains("database.url") && text.contains("pool_mode=session"), "{text}");
                }
                Ok(()) => assert!(!refused, "{mode} {lines} {idle}"),
            }
            let after = session_settings(&server);
            assert_eq!(after.len(), before, "nothing is set on a pooled session: {:?}", &after[before..]);
        }
    }
}

/// Occupies a server connection for each client at the same time, where the pooler allows transactions.
async fn occupy(clients: &[tokio_postgres::Client]) {
    for client in clients {
        let _ = client.batch_execute("BEGIN").await;
    }
    for client in clients {
        let _ = client.batch_execute("COMMIT").await;
    }
}

#[tokio::test]
async fn queries_work_through_a_transaction_pooler_and_harm_no_other_program() {
    if !has_pooler() {
        return;
    }
    let server = start(Options::default()).await;
    with_role(&server).await;
    let pooler = pooler(&server, "transaction", "default_pool_size = 2").await;
    let mut database = database(&server.url("postgres"));
    database.read_url = Some(DatabaseUrl::Postgres(through(&pooler)));
    let store = store::open(&database).unwrap();
    let mut feed = Feed::start(&store.store()).await.unwrap();
    feed.flush().await.unwrap();
    postgres::connect(&server.url("postgres")).await.batch_execute("CREATE TABLE others (n int)").await.unwrap();
    // Two processes of logweir, one of which ends: names of statements must not meet.
    for _ in 0..2 {
        let readers = [reader(&store::open(&database).unwrap()), reader(&store)];
        for _ in 0..6 {
            for reader in &readers {
                assert_eq!(read(reader).await.unwrap(), 1);
                let scan = store::read::Scan {
                    range: Range { start_us: 0, end_us: i64::MAX / 2 },
                    filter: logweir_query::parse("m").unwrap(),
                    direction: logweir_query::page::Direction::Backward,
                    after: None,
                    limit: 2_000,
                    bytes_max: 1 << 20,
                };
                assert_eq!(reader.records(&scan).await.unwrap().value.len(), 1);
            }
            let other = postgres::connect(&through(&pooler)).await;
            other.batch_execute("INSERT INTO others VALUES (1)").await.unwrap();
            let limit = other.simple_query("SELECT 1 WHERE current_setting('statement_timeout') <> '0'").await.unwrap();
            assert!(!limit.iter().any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))));
        }
    }
}

#[test]
fn another_program_of_the_same_user_is_not_harmed_by_queries_through_its_pooler() {
    if !has_pooler() {
        return;
    }
    on_postgres("transaction pooler for queries", |s| {
        s.postgres().execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'one'; CREATE TABLE others (n int)");
        let pooler = Pooler::start_with(s.postgres().port(), "transaction", &USERS, "default_pool_size = 2");
        s.set("database.read_url", through(&pooler));
        s.start();
        let load = s.load(Load::default());
        s.stored();
        let other = Store::Postgres(through(&pooler));
        let mut failed = Vec::new();
        for _ in 0..12 {
            let answer = s.server().data("/api/v1/query?query=nothing-like-this").unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
            failed.extend(other.rows("INSERT INTO others VALUES (1)").err());
        }
        load.stop();
        s.assert_contract();
        // Not after the end either.
        s.stop();
        failed.extend(other.rows("INSERT INTO others VALUES (1)").err());
        assert!(failed.is_empty(), "{} of 13: {}", failed.len(), failed[0]);
    });
}

/// A server whose role `app` has a password, and a scenario that reads its URL from a file.
fn with_url_file(s: &mut Scenario) -> PathBuf {
    s.postgres().execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'one'");
    let url = format!("postgres://app:one@127.0.0.1:{}/postgres", s.postgres().port());
    let file = write(&s.dir, "url", &url);
    s.settings.remove("database.url");
    s.set("database.url_file", file.display());
    file
}

#[test]
fn a_running_process_goes_on_after_its_password_was_rotated() {
    let options = Options { hba: vec!["host all app all scram-sha-256"], ..Options::default() };
    on_postgres_with("rotated password", &options, |s| {
        let file = with_url_file(s);
        s.start();
        let load = s.load(Load::default());
        s.stored();
        s.postgres().execute("ALTER ROLE app PASSWORD 'two'");
        s.postgres().execute(END_SESSIONS);
        s.acknowledged(500);
        let answered = |server: &logweir_tests::process::Server| server.data("/api/v1/hits?q=x").unwrap();
        s.server().until("storing is refused", PATIENCE, |server| server.log_text().contains("28P01")).unwrap();
        for _ in 0..20 {
            let answer = answered(s.server());
            assert_ne!(answer.status, 500, "{}", answer.body);
        }
        assert!(s.server().log_text().contains("read again at the next attempt"));
        let text = std::fs::read_to_string(&file).unwrap().replace(":one@", ":two@");
        replace(&s.dir, "url", &text);
        s.acknowledged(500);
        load.stop();
        s.assert_contract();
    });
}

/// Gives `server` another certificate for new connections.
fn present(server: &Server, authority: &Authority) {
    let (certificate, key) = authority.issue("localhost");
    std::fs::write(server.data().join("server.crt"), certificate).unwrap();
    std::fs::write(server.data().join("server.key"), key).unwrap();
    server.execute("SELECT pg_reload_conf()");
}

#[test]
fn a_running_process_goes_on_after_the_ca_was_rotated() {
    let [first, second, third] = std::array::from_fn(|_| Authority::new());
    let (certificate, key) = first.issue("localhost");
    let options = Options {
        settings: vec![("ssl", "on".to_owned())],
        hba: vec!["hostssl all app all trust", "host all app all reject"],
        files: vec![("server.crt", certificate), ("server.key", key)],
        ..Options::default()
    };
    on_postgres_with("rotated CA", &options, |s| {
        s.postgres().execute("CREATE ROLE app LOGIN SUPERUSER");
        let trusted = |s: &Scenario, authorities: &[&Authority]| {
            let pem: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
            replace(&s.dir, "ca.pem", &pem)
        };
        let file = trusted(s, &[&first]);
        let url = format!("postgres://app@localhost:{}/postgres?sslmode=verify-full", s.postgres().port());
        s.set("database.url", url);
        s.set("database.ca_file", file.display());
        s.start();
        let load = s.load(Load::default());
        s.stored();
        let storing_goes_on = |s: &Scenario| {
            s.postgres().execute(END_SESSIONS);
            let before = s.store.count().unwrap();
            s.wait("records are stored over new connections", |s| s.store.count().unwrap() >= before + 300);
        };
        // In the order of operations.md.
        trusted(s, &[&first, &second]);
        storing_goes_on(s);
        present(s.postgres(), &second);
        storing_goes_on(s);
        trusted(s, &[&second]);
        storing_goes_on(s);
        let log = s.server().log_text();
        assert!(!log.contains("invalid peer certificate"), "{log}");

        // The server's certificate first: what comes in waits until its CA is there.
        present(s.postgres(), &third);
        s.wait("no connection can be opened", |s| {
            s.postgres().execute(END_SESSIONS);
            std::fs::read_to_string(s.dir.join("server-1.log")).unwrap().contains("invalid peer certificate")
        });
        s.acknowledged(300);
        let answer = s.server().data("/api/v1/hits?q=x").unwrap();
        assert_ne!(answer.status, 500, "{}", answer.body);
        trusted(s, &[&third]);
        let before = s.store.count().unwrap();
        s.wait("storing goes on by itself", |s| s.store.count().unwrap() >= before + 300);
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn notices_of_a_trigger_are_not_logged_with_the_text_of_records() {
    on_postgres("notices", |s| {
        s.start();
        let load = s.load(Load::default());
        s.stored();
        s.postgres().execute(
            "CREATE FUNCTION chatty() RETURNS trigger LANGUAGE plpgsql AS \
             $$BEGIN RAISE NOTICE 'record-text %', new.message; RAISE WARNING 'record-text'; RETURN new; END$$; \
             CREATE TRIGGER chatty BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION chatty()",
        );
        s.acknowledged(2_000);
        load.stop();
        s.assert_contract();
        let log = s.server().log_text();
        let noisy: Vec<&str> = log.lines().filter(|line| line.contains("record-text")).collect();
        assert!(noisy.is_empty(), "{} lines, such as {}", noisy.len(), noisy[0]);
    });
}
