//! TLS on the data listener with client certificates: authentication, and rotation of the files under load.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use logweir_tests::client::{get, post_body};
use logweir_tests::process::Server;
use logweir_tests::redis::Authority;
use logweir_tests::scenario::{PATIENCE, Scenario, on_sqlite};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// A client that trusts `servers` and presents `identity`.
fn client(servers: &[&Authority], identity: Option<&(String, String)>) -> ureq::Agent {
    let certificate = |pem: &str| Certificate::from_pem(pem.as_bytes()).expect("a certificate").to_owned();
    let roots: Vec<_> = servers.iter().map(|authority| certificate(&authority.pem())).collect();
    let identity = identity.map(|(pem, key)| {
        ClientCert::new_with_certs(&[certificate(pem)], PrivateKey::from_pem(key.as_bytes()).expect("a key"))
    });
    let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots)).client_cert(identity).build();
    let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false);
    config.timeout_global(Some(PATIENCE)).build().into()
}

fn post(agent: &ureq::Agent, to: SocketAddr) -> Result<(), String> {
    let answer = post_body(agent, &format!("https://localhost:{}/ingest", to.port()), "text/plain", "one line\n");
    match answer {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("{}: {}", answer.status, answer.body)),
        Err(error) => Err(error.to_string()),
    }
}

/// Unlike a mounted Secret, replaces one file after the other, so that they do not match for a moment.
fn install(dir: &Path, (certificate, key): &(String, String)) {
    fs::write(dir.join("tls.crt"), certificate).expect("the certificate is written");
    fs::write(dir.join("tls.key"), key).expect("the key is written");
}

fn with_tls(s: &mut Scenario, clients: &Authority) {
    let dir = s.dir.clone();
    clients.write(&dir.join("clients.crt"));
    for (key, file) in
        [("tls_cert_file", "tls.crt"), ("tls_key_file", "tls.key"), ("tls_client_ca_file", "clients.crt")]
    {
        s.set(&format!("http.{key}"), dir.join(file).display());
    }
}

fn wait_for_reloads(s: &mut Scenario, outcome: &str, at_least: f64) {
    let label = format!("outcome=\"{outcome}\"");
    let reloaded = |server: &Server| server.metric("logweir_tls_certificate_reloads_total", &label) >= at_least;
    s.server().until(&format!("{outcome} {at_least} times"), PATIENCE, reloaded).expect("it goes on");
}

#[test]
fn a_client_certificate_is_required_and_rotation_under_load_fails_no_request() {
    on_sqlite("mTLS", |s| {
        let (first, second, clients) = (Authority::new(), Authority::new(), Authority::new());
        let identity = clients.issue(&["sender"]);
        install(&s.dir, &first.issue(&["localhost"]));
        with_tls(s, &clients);
        let to = s.start().http;

        let both = [&first, &second];
        assert_eq!(post(&client(&both, Some(&identity)), to), Ok(()));
        assert!(post(&client(&both, None), to).is_err(), "no certificate");
        assert!(
            post(&client(&both, Some(&second.issue(&["sender"]))), to).is_err(),
            "a certificate from another authority"
        );
        assert!(post(&client(&[&second], Some(&identity)), to).is_err(), "the client does not trust the server");
        let plain = get(&client(&both, None), &format!("http://{to}/ready"));
        assert!(plain.map_or(true, |answer| answer.status != 200), "plain HTTP is rejected");

        let (stop, accepted) = (AtomicBool::new(false), AtomicU64::new(1));
        let reused = client(&both, Some(&identity));
        std::thread::scope(|threads| {
            for fresh in [true, false] {
                let (stop, accepted, both, identity, reused) = (&stop, &accepted, &both, &identity, &reused);
                threads.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let fresh = fresh.then(|| client(both, Some(identity)));
                        post(fresh.as_ref().unwrap_or(reused), to).expect("no request fails");
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let rotated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for (times, authority) in [(1.0, &second), (2.0, &first), (3.0, &second)] {
                    install(&s.dir, &authority.issue(&["localhost"]));
                    wait_for_reloads(s, "accepted", times);
                    assert_eq!(post(&client(&[authority], Some(&identity)), to), Ok(()), "the new certificate is used");
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
                fs::write(s.dir.join("tls.key"), "nothing").expect("the key is written");
                wait_for_reloads(s, "rejected", 1.0);
                assert_eq!(
                    post(&client(&[&second], Some(&identity)), to),
                    Ok(()),
                    "the previous certificate stays in use"
                );
                accepted.fetch_add(1, Ordering::Relaxed);
            }));
            stop.store(true, Ordering::Relaxed);
            rotated.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });

        // With another client CA, previously accepted clients are rejected, even if they resume a session.
        install(&s.dir, &second.issue(&["localhost"]));
        second.write(&s.dir.join("clients.crt"));
        let mut accepted_late = 0;
        s.wait("the former clients are rejected", |_| {
            let rejected = post(&client(&both, Some(&identity)), to).is_err();
            accepted_late += u64::from(!rejected);
            rejected
        });
        assert_eq!(post(&client(&both, Some(&second.issue(&["sender"]))), to), Ok(()));
        let sent = accepted.load(Ordering::Relaxed) + accepted_late + 1;
        s.wait("each is stored once", |s| s.store.count().is_ok_and(|count| count >= sent));
        assert_eq!(s.store.count(), Ok(sent));
        assert!(s.stop().add_up());
    });
}

#[test]
fn commands_present_a_client_certificate_and_always_verify_the_server() {
    on_sqlite("mTLS commands", |s| {
        let (servers, clients) = (Authority::new(), Authority::new());
        install(&s.dir, &servers.issue(&["localhost"]));
        with_tls(s, &clients);
        let (certificate, key) = clients.issue(&["operator"]);
        let file = |name: &str, text: &str| {
            let path = s.dir.join(name);
            fs::write(&path, text).expect("the file is written");
            path.display().to_string()
        };
        let (ca, certificate, key) =
            (file("ca.crt", &servers.pem()), file("client.crt", &certificate), file("client.key", &key));
        let lines = file("lines", "one line\n");
        let url = format!("https://localhost:{}", s.start().http.port());
        let connect = |with_ca: bool, with_identity: bool| {
            let mut options = vec!["--url", &url];
            if with_ca {
                options.extend(["--ca-file", &ca]);
            }
            if with_identity {
                options.extend(["--cert-file", &certificate, "--key-file", &key]);
            }
            options
        };
        let run = |command: &[&str], options: Vec<&str>| {
            let output = s.run(&[command, &options].concat());
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let (code, _, error) = run(&["produce", &lines, "--ack", "committed"], connect(true, true));
        assert_eq!(code, Some(0), "{error}");
        let (code, found, error) = run(&["query"], connect(true, true));
        assert!(code == Some(0) && found.contains("one line"), "{found}{error}");
        let (code, _, error) = run(&["query"], connect(false, true));
        assert!(code == Some(69) && error.contains("--ca-file"), "{error}");
        // Not retried.
        let (code, _, error) = run(&["produce", &lines, "--retry-for", "1h"], connect(false, true));
        assert!(code == Some(69) && error.contains("--ca-file"), "{error}");
        assert_eq!(run(&["query"], connect(true, false)).0, Some(69), "no certificate");
    });
}
