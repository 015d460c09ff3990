//! A private redis-server on a free loopback port with its own directory, deleted on drop.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::client::PATIENCE;
use crate::process::free_addr;

const PORT_ATTEMPTS: u32 = 5;

/// A running, frozen or killed redis-server.
pub struct Redis {
    dir: TempDir,
    port: u16,
    options: Vec<String>,
    tls: bool,
    /// What a Sentinel watches: its configuration file, which it also writes.
    watched: Option<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts a server and waits until it responds.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with additional options, such as `["--maxclients", "1"]`.
    #[must_use]
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), options, false, None)
    }

    /// Starts a Sentinel that watches the primary on `port` as `main`, and promotes a replica if `quorum` Sentinels see it
    /// down.
    #[must_use]
    pub fn start_sentinel(port: u16, quorum: u32) -> Self {
        let watched = format!(
            "sentinel monitor main 127.0.0.1 {port} {quorum}\nsentinel down-after-milliseconds main 2000\n\
             sentinel failover-timeout main 2000\n"
        );
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), &[], false, Some(watched))
    }

    /// Starts a TLS-only server with a certificate for `localhost` from its own authority.
    #[must_use]
    pub fn start_tls() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority::new();
        std::fs::write(dir.path().join("ca.pem"), authority.0.pem()).expect("ca.pem");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, "localhost");
        let certificate = params.signed_by(&key, &authority.0).expect("a certificate");
        std::fs::write(dir.path().join("cert.pem"), certificate.pem()).expect("cert.pem");
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).expect("key.pem");
        Self::start_in(dir, &["--tls-auth-clients", "no"], true, None)
    }

    /// Another program may take the free port first; then another port is tried.
    fn start_in(dir: TempDir, options: &[&str], tls: bool, watched: Option<String>) -> Self {
        std::fs::create_dir_all(dir.path().join("data")).expect("the data directory");
        let options = options.iter().map(ToString::to_string).collect();
        let mut redis = Self { dir, port: 0, options, tls, watched, child: None };
        for _ in 0..PORT_ATTEMPTS {
            redis.port = free_addr().port();
            redis.spawn();
            if redis.becomes_ready() {
                return redis;
            }
            redis.kill();
        }
        panic!("redis-server does not start: {}", redis.log());
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        let origin = if self.tls { "rediss://localhost" } else { "redis://127.0.0.1" };
        format!("{origin}:{}", self.port)
    }

    /// Port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("redis-server runs").id()
    }

    /// Path of its authority's certificate, for clients that should trust it.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Directory of its database files.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs a command and returns the response as `redis-cli` prints it.
    pub fn command(&self, arguments: &[&str]) -> String {
        self.try_command(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    fn try_command(&self, arguments: &[&str]) -> Result<String, String> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "127.0.0.1", "-e", "-p", &self.port.to_string()]);
        if self.tls {
            cli.args(["--tls", "--sni", "localhost", "--cacert"]).arg(self.ca_file());
        }
        let output = cli.args(arguments).output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// Changes a setting at run time.
    pub fn config_set(&self, key: &str, value: &str) {
        assert_eq!(self.command(&["CONFIG", "SET", key, value]), "OK");
    }

    /// Freezes it: connections stay open without responses.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Resumes it.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Kills it and reaps it. The port and files stay.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have exited already (if the port was taken); then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Restarts it on the same port and files, and waits until it responds.
    pub fn restart(&mut self) {
        self.restart_loading(&[]);
        assert!(self.becomes_ready(), "redis-server does not restart: {}", self.log());
    }

    /// Restarts it on the same port and files with additional options, without waiting.
    pub fn restart_loading(&mut self, options: &[&str]) {
        self.kill();
        self.options.extend(options.iter().map(ToString::to_string));
        self.spawn();
    }

    fn spawn(&mut self) {
        let port = self.port.to_string();
        let path = |name: &str| self.dir.path().join(name);
        let mut server = Command::new("redis-server");
        match &self.watched {
            None => server.args(["--bind", "127.0.0.1", "--daemonize", "no", "--appendonly", "no", "--save", ""]),
            Some(watched) => {
                let file = path("sentinel.conf");
                if !file.exists() {
                    std::fs::write(&file, watched).expect("the Sentinel's configuration");
                }
                server.arg(file).args(["--sentinel", "--bind", "127.0.0.1"])
            }
        };
        server.arg("--dir").arg(self.data_dir()).arg("--logfile").arg(path("redis.log"));
        if self.tls {
            server.args(["--port", "0", "--tls-port", &port]);
            server.arg("--tls-cert-file").arg(path("cert.pem")).arg("--tls-key-file").arg(path("key.pem"));
            server.arg("--tls-ca-cert-file").arg(path("ca.pem"));
        } else {
            server.args(["--port", &port]);
        }
        server.args(&self.options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(server.spawn().expect("redis-server is installed"));
    }

    /// Polls until it responds; returns `false` if it exited instead.
    fn becomes_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if ended {
                return false;
            }
            // A server that requires a password is ready too.
            match self.try_command(&["PING"]) {
                Ok(answer) if answer == "PONG" => return true,
                Err(answer) if answer.contains("NOAUTH") => return true,
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        false
    }

    fn signal(&self, signal: libc::c_int) {
        let child = self.child.as_ref().expect("redis-server is running");
        let pid = libc::pid_t::try_from(child.id()).expect("a pid fits");
        // SAFETY: sends a signal to a child of this process, which is not reaped while `child` is held.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "signal {signal} to redis-server");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A certificate authority that is not trusted by default.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// Creates a new authority.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Issues a certificate for `names`; returns it and its key as PEM.
    #[must_use]
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Its certificate as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes its certificate to `path`.
    pub fn write(&self, path: &Path) {
        let mut file = std::fs::File::create(path).expect("a file for the certificate");
        file.write_all(self.0.pem().as_bytes()).expect("the certificate can be written");
    }
}

/// Opens an idle connection, like a client that occupies a slot.
#[must_use]
pub fn idle_connection(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).expect("a connection")
}
