//! Every block of every Markdown document of the repository, run or checked as it is written.
//!
//! - `sh` and `console` blocks are run by bash, in order, in one directory per document, with the real binary on PATH.
//!   A server is started for them unless a block starts one. Ports, addresses of databases and absolute paths are
//!   replaced.
//! - Blocks that need a cluster, Docker, or a build are checked instead: syntax, repository files, make targets,
//!   packages, commands and flags that they name.
//! - `toml` is validated, `sql` is run in PostgreSQL, `rust` must be part of a crate's documentation, where it is a
//!   doctest.
//! - The configuration of a log shipper is run with that shipper if it is installed. Otherwise it is parsed, and a
//!   request as that shipper sends it goes to the very URL that is written there.
//! - Comments that begin with `# {`, and the output lines of `console` blocks, are compared with what is printed; `…`
//!   stands for any text.
//! - Outside of blocks: commands, flags, keys, metrics, repository paths, links and anchors must exist.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use logweir_tests::client::{agent, get};
use logweir_tests::documents::{Block, Document, commands, describes, documents, fences};
use logweir_tests::postgres;
use logweir_tests::process::{binary, free_addr};
use logweir_tests::protobuf::{Entry, PushRequest, Stream, Timestamp};
use prost::Message as _;
use serde_json::{Value, json};

/// Time that one block may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Records that a server has before the blocks of its document are run, so that queries have results.
const SAMPLES: &str = r#"{"level":"error","service":"checkout","host":"web-1","msg":"card declined","order":4711}
{"level":"warn","service":"cart","host":"web-2","msg":"timeout after 5 s","status":500}
"#;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository is above its tests")
}

/// What a newcomer reads first stays short.
const FRONT_PAGE_BYTES_MAX: usize = 8 << 10;
const GLOSSARY_LINES_MAX: usize = 30;

#[test]
fn the_front_page_is_short_and_the_code_maps_name_every_module() {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let front_page = read("README.md").len();
    assert!(front_page <= FRONT_PAGE_BYTES_MAX, "README.md has {front_page} bytes");
    let actors =
        ["record", "formats", "query", "tls", "store", "logweir"].map(|name| format!("actors/{name}/src/lib.rs"));
    let others = ["engine/src/lib.rs", "actors/cli/src/main.rs"].map(str::to_owned);
    for crate_root in &[&actors[..], &others[..]].concat() {
        let source = read(crate_root);
        let code_map: String = source.split("```text").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        let words: Vec<&str> = code_map.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        let modules = source
            .lines()
            .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
            .filter(|module| !module.ends_with("tests"));
        let missing: Vec<&str> = modules.filter(|module| !words.contains(module)).collect();
        assert!(missing.is_empty(), "the code map of {crate_root} lacks {missing:?}");
    }
    let glossary = read("actors/logweir/src/lib.rs").lines().filter(|line| line.starts_with("//! |")).count();
    assert!((3..=GLOSSARY_LINES_MAX).contains(&glossary), "the glossary has {glossary} lines");
}

#[test]
fn every_block_of_every_document_works_as_written() {
    let found = documents(repository());
    assert!(found.len() >= 15, "only {} documents were found: {found:?}", found.len());
    let (problems, next) = (Mutex::new(Vec::new()), Mutex::new(found.iter()));
    let total = Mutex::new(Counts::default());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(path) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
                    let (counts, found) = Check::of(path).run();
                    total.lock().unwrap_or_else(PoisonError::into_inner).add(counts);
                    problems.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                }
            });
        }
    });
    drop(POSTGRES.lock().unwrap_or_else(PoisonError::into_inner).take());
    let problems = problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(&format!(
        "{} documents: {}; {} problems",
        found.len(),
        total.into_inner().unwrap_or_else(PoisonError::into_inner),
        problems.len()
    ));
    assert!(problems.is_empty(), "{} problems in the documentation:\n{}", problems.len(), problems.join("\n"));
}

/// Past the capture of test output: what was skipped must be visible in a run that passes.
fn report(line: &str) {
    let _ = writeln!(std::io::stderr(), "docs: {line}");
}

/// Numbers of blocks.
#[derive(Default)]
struct Counts {
    run: usize,
    checked: usize,
    skipped: BTreeMap<&'static str, usize>,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.run += other.run;
        self.checked += other.checked;
        for (why, count) in other.skipped {
            *self.skipped.entry(why).or_default() += count;
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let skipped: usize = self.skipped.values().sum();
        write!(f, "{} blocks: {} run, {} checked", self.run + self.checked + skipped, self.run, self.checked)?;
        self.skipped.iter().try_for_each(|(why, count)| write!(f, ", {count} skipped: {why}"))
    }
}

/// The server of every document that needs PostgreSQL, until all are done.
static POSTGRES: Mutex<Option<postgres::Server>> = Mutex::new(None);

/// How a block was tested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Run,
    Checked,
    /// Checked only, because something is missing here.
    Skipped(&'static str),
}

/// A document that is being tested.
struct Check {
    name: String,
    path: PathBuf,
    markdown: String,
    document: Document,
    place: Place,
    problems: Vec<String>,
}

impl Check {
    fn of(path: &Path) -> Self {
        let markdown = fs::read_to_string(path).expect("a document");
        let name = path.strip_prefix(repository()).expect("a path of the repository").display().to_string();
        let document = Document::parse(&markdown);
        Self { name, path: path.to_owned(), markdown, document, place: Place::new(), problems: Vec::new() }
    }

    fn wrong(&mut self, line: usize, what: impl std::fmt::Display) {
        self.problems.push(format!("{}:{line}: {what}", self.name));
    }

    fn run(mut self) -> (Counts, Vec<String>) {
        let blocks = std::mem::take(&mut self.document.blocks);
        let mut counts = Counts::default();
        for block in &blocks {
            match self.block(block) {
                Ok(Outcome::Run) => counts.run += 1,
                Ok(Outcome::Checked) => counts.checked += 1,
                Ok(Outcome::Skipped(why)) => *counts.skipped.entry(why).or_default() += 1,
                Err(what) => self.wrong(block.line, what),
            }
        }
        let fences = fences(&self.markdown);
        if fences != blocks.len() {
            self.wrong(1, format!("{} blocks were found, the fences of {fences} were counted", blocks.len()));
        }
        self.prose();
        report(&format!("{}: {counts}; {} problems", self.name, self.problems.len()));
        (counts, self.problems)
    }

    fn block(&mut self, block: &Block) -> Result<Outcome, String> {
        match block.language.as_str() {
            "sh" | "console" => self.shell(block),
            "toml" if block.text.contains("[dependencies]") => manifest(&block.text),
            "toml" => self.toml(block),
            "sql" => self.sql(block),
            "rust" => self.rust(),
            "text" => Ok(Outcome::Checked),
            "json" => serde_json::from_str::<Value>(&block.text)
                .map(|_| Outcome::Checked)
                .map_err(|error| format!("invalid JSON: {error}")),
            "ini" | "yaml" | "alloy" | "ruby" | "rsyslog" => self.shipper(block),
            "" => Err("a block without a language".to_owned()),
            other => Err(format!("unknown language {other:?}: this test cannot run it")),
        }
    }

    fn shell(&mut self, block: &Block) -> Result<Outcome, String> {
        let (script, expected) = match block.language.as_str() {
            "console" => console(&block.text),
            _ => (block.text.clone(), expected(&block.text)),
        };
        let found = commands(&script);
        let syntax = Command::new("bash").arg("-n").arg("-c").arg(&script).output().expect("bash runs");
        if !syntax.status.success() {
            return Err(format!("bash -n: {}", String::from_utf8_lossy(&syntax.stderr)));
        }
        check_commands(&found)?;
        if let Some(why) = cannot_run(&found) {
            return Ok(Outcome::Skipped(why));
        }
        let starts = found.iter().any(|words| starts_a_server(words));
        if starts {
            self.place.server = None;
        } else if found.iter().any(|words| needs_a_server(words)) {
            self.place.serve(&[])?;
        }
        let stays = found.last().is_some_and(|words| stays(words)) && !has_background(&script);
        self.place.bash(&script, &expected, stays)?;
        Ok(Outcome::Run)
    }

    fn toml(&mut self, block: &Block) -> Result<Outcome, String> {
        let file = self.place.dir.path().join("block.toml");
        fs::write(&file, self.place.replace(&block.text)).expect("a file");
        let mut command = self.place.command(binary());
        let output = command.arg("validate").arg("--config").arg(&file).output().expect("logweir runs");
        self.place.config = Some(file);
        match output.status.success() {
            true => Ok(Outcome::Run),
            false => Err(format!("logweir validate: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// In the database of a server that has the sample records.
    fn sql(&mut self, block: &Block) -> Result<Outcome, String> {
        let database = self.place.database();
        if self.place.server.is_none() || !self.place.on_postgres {
            // Also what earlier blocks left running: it listens on the same ports and has another database.
            (self.place.server, self.place.started) = (None, Vec::new());
            self.place.on_postgres = true;
            self.place.serve(&[("LOGWEIR__DATABASE__URL", &database)])?;
        }
        let text = block.text.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&database, tokio_postgres::NoTls).await.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            for statement in text.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
                let rows = client.query(statement, &[]).await.map_err(|error| format!("{statement}: {error:?}"))?;
                if statement.to_ascii_uppercase().starts_with("SELECT") && rows.is_empty() {
                    return Err(format!("no rows: {statement}"));
                }
            }
            Ok(Outcome::Run)
        })
    }

    /// Rust is compiled and run as a doctest of the crate whose documentation includes the document.
    fn rust(&self) -> Result<Outcome, String> {
        let actors = ["record", "formats", "query", "tls", "store", "logweir"]
            .map(|name| repository().join("actors").join(name));
        for package in ["engine", "tests", "benches"].map(|name| repository().join(name)).into_iter().chain(actors) {
            let library = package.join("src/lib.rs");
            let text = fs::read_to_string(&library).expect("a library");
            for piece in text.split("include_str!(\"").skip(1) {
                let included = library.with_file_name(piece.split('"').next().unwrap_or_default());
                if fs::canonicalize(included).is_ok_and(|included| included == self.path) {
                    return Ok(Outcome::Checked);
                }
            }
        }
        Err("has Rust, and no crate's documentation includes this document".to_owned())
    }

    fn shipper(&mut self, block: &Block) -> Result<Outcome, String> {
        let shipper = Shipper::of(&block.language, &block.text)?;
        if shipper.program == "rsyslogd" {
            let config = self.place.config.clone().ok_or("rsyslog needs the document's configuration before it")?;
            self.place.server = None;
            self.place.serve(&[("LOGWEIR_CONFIG", &config.display().to_string())])?;
        } else {
            self.place.serve(&[])?;
        }
        let text = self.place.replace(&block.text);
        if on_path(shipper.program) {
            shipper.run(&text, &mut self.place)?;
            return Ok(Outcome::Run);
        }
        shipper.imitate(&text, &self.place)?;
        Ok(Outcome::Skipped(shipper.missing))
    }

    /// What is named outside of blocks.
    fn prose(&mut self) {
        let is_history = self.name == "CHANGELOG.md";
        for (line, code) in std::mem::take(&mut self.document.inline) {
            if is_history {
                continue;
            }
            if code == "logweir" || code.starts_with("logweir ") {
                for words in commands(&code.replace(['…', '|'], " ")) {
                    if let Err(what) = check_commands(&[words]) {
                        self.wrong(line, what);
                    }
                }
            }
            if let Some(what) = unknown_key(&code).or_else(|| unknown_metric(&code)).or_else(|| missing_path(&code)) {
                self.wrong(line, what);
            }
        }
        for (line, target) in std::mem::take(&mut self.document.links) {
            if let Some(what) = self.broken_link(&target) {
                self.wrong(line, what);
            }
        }
    }

    fn broken_link(&self, target: &str) -> Option<String> {
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let path = match file {
            "" => self.path.clone(),
            file => self.path.parent().expect("a document is in a folder").join(file),
        };
        if !path.exists() {
            return Some(format!("broken link: {target} does not exist"));
        }
        if anchor.is_empty() {
            return None;
        }
        let anchors = Document::parse(&fs::read_to_string(&path).ok()?).anchors;
        (!anchors.iter().any(|known| known == anchor)).then(|| format!("broken link: {target} has no such heading"))
    }
}

/// A directory with ports of its own, and what runs in it.
struct Place {
    dir: tempfile::TempDir,
    http: u16,
    admin: u16,
    syslog: u16,
    others: [u16; 2],
    server: Option<Running>,
    started: Vec<Running>,
    config: Option<PathBuf>,
    has_database: Cell<bool>,
    on_postgres: bool,
    blocks: usize,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).expect("a directory");
        std::os::unix::fs::symlink(binary(), bin.join("logweir")).expect("a link");
        fs::create_dir(dir.path().join("work")).expect("a directory");
        let port = || free_addr().port();
        let (http, admin, syslog, others) = (port(), port(), port(), [port(), port()]);
        let (server, started) = (None, Vec::new());
        Self {
            dir,
            http,
            admin,
            syslog,
            others,
            server,
            started,
            config: None,
            has_database: Cell::new(false),
            on_postgres: false,
            blocks: 0,
        }
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// A database of the document's own, on a server that all documents share: what one document does to its table
    /// must not decide what another one finds.
    fn database(&self) -> String {
        let mut server = POSTGRES.lock().unwrap_or_else(PoisonError::into_inner);
        let server = server.get_or_insert_with(|| {
            let server = postgres::Server::start(&postgres::Options::default());
            server.execute("CREATE ROLE \"user\" LOGIN SUPERUSER");
            server
        });
        let name = format!("logs_{}", self.http);
        if !self.has_database.replace(true) {
            server.execute(&format!("CREATE DATABASE {name}"));
        }
        format!("postgres://user@localhost:{}/{name}", server.port())
    }

    /// `text` with this place's ports, databases and paths.
    fn replace(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if text.contains("://user@localhost/logs") {
            text = text.replace("postgres://user@localhost/logs", &self.database());
        }
        let root = self.work().display().to_string();
        for path in ["/var/lib/logweir", "/var/log/", "/srv/"] {
            text = text.replace(path, &format!("{root}{path}"));
        }
        for (port, ours) in [
            ("8080", self.http),
            ("9600", self.admin),
            ("5514", self.syslog),
            ("8081", self.others[0]),
            ("9601", self.others[1]),
        ] {
            text = text.replace(port, &ours.to_string());
        }
        text
    }

    /// With this place's ports as the defaults.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(self.work())
            .env_clear()
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env("HOME", self.work())
            .env("LOGWEIR__HTTP__LISTEN", format!("127.0.0.1:{}", self.http))
            .env("LOGWEIR__ADMIN__LISTEN", format!("127.0.0.1:{}", self.admin))
            .env("LOGWEIR_URL", self.url(""));
        command
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    /// Starts a server with the sample records, unless one runs.
    fn serve(&mut self, environment: &[(&str, &str)]) -> Result<(), String> {
        let quick = agent(Duration::from_secs(60));
        let ready = format!("http://127.0.0.1:{}/readyz", self.admin);
        let is_ready = || get(&quick, &ready).is_ok_and(|answer| answer.status == 200);
        if self.server.is_some() || is_ready() {
            return Ok(());
        }
        let log = self.dir.path().join("server.log");
        let mut command = self.command(binary());
        command.arg("run").envs(environment.iter().copied());
        self.server = Some(Running::start(command, &log));
        self.wait("the server", &log, is_ready)?;
        if self.on_postgres {
            // A record that comes before its partition is in the default partition, which a document alters.
            let metrics = format!("http://127.0.0.1:{}/metrics", self.admin);
            let made = "logweir_maintenance_failing{step=\"partitions\"} 0";
            let has_partitions = || get(&quick, &metrics).is_ok_and(|answer| answer.body.contains(made));
            self.wait("the partitions", &log, has_partitions)?;
        }
        self.post("/ingest?ack=committed", "text/plain", SAMPLES.as_bytes(), &[])
    }

    fn wait(&self, what: &str, log: &Path, holds: impl Fn() -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            if Instant::now() > deadline {
                return Err(format!("timed out waiting for {what}: {}", fs::read_to_string(log).unwrap_or_default()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn post(&self, path: &str, kind: &str, body: &[u8], headers: &[(&str, &str)]) -> Result<(), String> {
        let url = if path.starts_with("http") { path.to_owned() } else { self.url(path) };
        let mut request = agent(PATIENCE).post(&url).header("content-type", kind);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).map_err(|error| format!("POST {url}: {error}"))?;
        let text = response.body_mut().read_to_string().unwrap_or_default();
        match response.status().as_u16() {
            200..=299 => Ok(()),
            status => Err(format!("POST {url}: {status}: {text}")),
        }
    }

    /// Runs a script to its end; one that stays until it has printed something, or serves.
    fn bash(&mut self, script: &str, expected: &[String], stays: bool) -> Result<(), String> {
        self.blocks += 1;
        let at = self.dir.path().join(format!("block-{}", self.blocks));
        let (file, out, log) = (at.with_extension("sh"), at.with_extension("out"), at.with_extension("log"));
        let text = self.replace(script);
        fs::write(&file, &text).expect("a file");
        let mut bash = self.command("bash");
        bash.args(["-e", "-o", "pipefail"]).arg(&file);
        bash.stdin(Stdio::null())
            .stdout(File::create(&out).expect("a file"))
            .stderr(File::create(&log).expect("a file"));
        let mut running = Running::spawn(bash);
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let report = || format!("in:\n{text}\nits output:\n{}\nits errors:\n{}", read(&out), read(&log));
        let deadline = Instant::now() + PATIENCE;
        let quick = agent(Duration::from_secs(2));
        loop {
            if let Some(status) = running.ended() {
                self.started.push(running); // what it left in the background
                if !status.success() {
                    return Err(format!("{status} {}", report()));
                }
                break;
            }
            if stays {
                let serves = [self.admin, self.others[1]].iter().any(|port| {
                    text.contains("logweir run")
                        && (text.contains(&port.to_string()) || *port == self.admin && !text.contains("--admin-listen"))
                        && get(&quick, &format!("http://127.0.0.1:{port}/readyz"))
                            .is_ok_and(|answer| answer.status == 200)
                });
                if serves {
                    self.started.push(running);
                    break;
                }
                if !read(&out).is_empty() {
                    break;
                }
                let _ = self.post("/ingest", "text/plain", SAMPLES.as_bytes(), &[]);
            }
            if Instant::now() > deadline {
                return Err(format!("it does not end {}", report()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        let output = read(&out);
        if text.contains("logweir query") {
            // What the block sends itself, else anything.
            let sent = text.split("\"msg\":\"").skip(1).filter_map(|rest| rest.split('"').next());
            if output.trim().is_empty() || sent.into_iter().any(|message| !output.contains(message)) {
                return Err(format!("a query does not show the records {}", report()));
            }
        }
        let mut lines = output.lines();
        for pattern in expected {
            let pattern = self.replace(pattern);
            if !lines.any(|line| describes(&pattern, line)) {
                return Err(format!("the document promises {pattern:?} {}", report()));
            }
        }
        Ok(())
    }

    /// Waits until a query finds a record with these fields.
    fn arrives(&self, query: &str, fields: &[(&str, &str)]) -> Result<(), String> {
        let http = agent(PATIENCE);
        let deadline = Instant::now() + PATIENCE;
        let mut last = Value::Null;
        while Instant::now() < deadline {
            let url = self.url("/api/v1/query");
            let found = http.get(&url).query("query", query).query("start", "2020-01-01T00:00:00Z").call();
            if let Ok(mut found) = found {
                let text = found.body_mut().read_to_string().unwrap_or_default();
                last = serde_json::from_str(&text).unwrap_or(Value::Null);
                let records = last["records"].as_array().cloned().unwrap_or_default();
                let has = |record: &Value| {
                    fields.iter().all(|(name, value)| {
                        record[*name] == json!(value) || record["attributes"][*name] == json!(value)
                    })
                };
                if records.iter().any(has) {
                    return Ok(());
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(format!("no record for {query} with {fields:?}: {last}"))
    }
}

/// A process group; ended with its value.
struct Running {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Running {
    fn start(mut command: Command, log: &Path) -> Self {
        let file = File::create(log).expect("a file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let child = command.process_group(0).spawn().expect("a program starts");
        Self { child, ended: None }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
        }
        self.ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: `kill` touches no memory. The group is ours: its leader is our child, and its number is not given to
        // another group while a member lives.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Dependencies of a `Cargo.toml`: packages of this repository, or what it depends on itself.
fn manifest(text: &str) -> Result<Outcome, String> {
    let workspace = fs::read_to_string(repository().join("Cargo.toml")).expect("a manifest");
    let name = |line: &str| line.split_once(" = ").map(|(name, _)| name.to_owned());
    let unknown = |name: &String| !workspace.contains(&format!("\n{name} = "));
    match text.lines().filter_map(name).find(unknown) {
        Some(name) => Err(format!("unknown dependency {name:?}")),
        None => Ok(Outcome::Checked),
    }
}

/// Commands and expected output of a `console` block: lines with `$ ` are typed, the others are printed.
fn console(text: &str) -> (String, Vec<String>) {
    let (typed, printed): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("$ "));
    let script = typed.iter().fold(String::new(), |script, line| script + &line[2..] + "\n");
    (script, printed.into_iter().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Output that comments of a `sh` block promise.
fn expected(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# ").filter(|rest| rest.starts_with('{')))
        .map(str::to_owned)
        .collect()
}

fn starts_a_server(words: &[String]) -> bool {
    words[0] == "logweir" && words.get(1).is_none_or(|word| word == "run" || word.starts_with("--"))
}

fn needs_a_server(words: &[String]) -> bool {
    const CLIENTS: [&str; 7] = ["produce", "query", "tail", "top", "health", "verify", "dead-letters"];
    let reads_the_store = words.get(1).is_some_and(|word| word == "journal");
    match words[0].as_str() {
        "logweir" => words.get(1).is_some_and(|word| CLIENTS.contains(&word.as_str())) || reads_the_store,
        _ => words.iter().any(|word| word.contains("127.0.0.1:8080")),
    }
}

/// Whether a command goes on until it is interrupted.
fn stays(words: &[String]) -> bool {
    let has = |flag: &str| words.iter().any(|word| word == flag);
    match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("logweir", Some("tail")) => !has("-n") && !has("--limit"),
        ("logweir", Some("query")) => has("-f") || has("--follow"),
        ("logweir", Some("top")) => !has("--once") && !has("-o"),
        ("curl", _) => has("-N"),
        _ => starts_a_server(words),
    }
}

fn has_background(script: &str) -> bool {
    script.replace("2>&1", "").replace("&&", "").contains('&')
        && script.lines().any(|line| line.trim_end().ends_with('&'))
}

/// Why a block is checked only.
fn cannot_run(commands: &[Vec<String>]) -> Option<&'static str> {
    commands.iter().find_map(|words| match words[0].as_str() {
        "kubectl" | "k" | "argocd" | "alias" => Some("no cluster"),
        "docker" | "./make-secrets" => Some("no Docker"),
        "apt-get" => Some("installs packages"),
        "cargo" | "make" | "install" | "tests/fuzz/run" => Some("builds the project"),
        _ => None,
    })
}

/// Checks that every file, target, package, command and flag exists that these commands name.
fn check_commands(commands: &[Vec<String>]) -> Result<(), String> {
    let mut folder = repository().to_owned();
    for words in commands {
        for word in words {
            if let Some(what) = missing_path(word) {
                return Err(what);
            }
        }
        let after = |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
        match words[0].as_str() {
            "cd" if words.get(1).is_some_and(|to| repository().join(to).is_dir()) => {
                folder = repository().join(&words[1])
            }
            // Of the program's log.
            "grep" => {
                let patterns = words.windows(2).filter(|pair| pair[0] == "-e").map(|pair| &pair[1]);
                if let Some(pattern) = patterns.into_iter().find(|pattern| !source().contains(pattern.as_str())) {
                    return Err(format!("no log line contains {pattern:?}"));
                }
            }
            "make" => {
                let makefile = fs::read_to_string(repository().join("Makefile")).expect("a Makefile");
                for target in &words[1..] {
                    if !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))) {
                        return Err(format!("unknown make target {target:?}"));
                    }
                }
            }
            "cargo" => {
                let packages = ["logweir", "logweir-cli", "logweir-engine", "logweir-tests", "logweir-benches"];
                if let Some(package) = after("-p").filter(|package| !packages.contains(&package.as_str())) {
                    return Err(format!("unknown package {package:?}"));
                }
                let folder =
                    if after("-p").is_some_and(|package| package == "logweir-engine") { "engine" } else { "tests" };
                let is_test = |test: &String| {
                    let test = repository().join(folder).join("tests").join(test);
                    test.with_extension("rs").exists() || test.join("main.rs").exists()
                };
                if let Some(test) = after("--test").filter(|test| !is_test(test)) {
                    return Err(format!("unknown test {test:?}"));
                }
            }
            "docker" => {
                let compose = fs::read_to_string(repository().join("deploy/compose/compose.yaml")).expect("a stack");
                for pair in words.windows(2).filter(|pair| pair[0] == "--profile") {
                    if !compose.contains(&format!("profiles: [{}", pair[1]))
                        && !compose.contains(&format!(", {}]", pair[1]))
                    {
                        return Err(format!("unknown profile {:?}", pair[1]));
                    }
                }
            }
            local if local.starts_with("./") && !folder.join(local).exists() => {
                return Err(format!("{local} does not exist in {}", folder.display()));
            }
            "logweir" | "/logweir" | "target/release/logweir" => check_logweir(&words[1..])?,
            _ => {
                if let Some(at) = words.iter().position(|word| word == "/logweir") {
                    check_logweir(&words[at + 1..])?;
                }
            }
        }
    }
    Ok(())
}

/// Checks a command line of logweir against its help.
fn check_logweir(words: &[String]) -> Result<(), String> {
    let is_name = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    let path: Vec<&str> = words.iter().take(2).take_while(is_name).map(String::as_str).collect();
    if path.first() == Some(&"help") {
        return help(&path).map(|_| ());
    }
    // The second word may be an argument.
    let text = match &path[..] {
        [group @ ("journal" | "dead-letters" | "database"), command] => help(&[*group, *command, "--help"])?,
        [command, ..] => help(&[*command, "--help"])?,
        [] => help(&["run", "--help"])?,
    };
    for flag in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
        let flag = flag.split('=').next().unwrap_or_default();
        let known = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-');
        if !["--help", "--version"].contains(&flag)
            && !text.match_indices(flag).any(|(at, _)| known(&text[at + flag.len()..]))
        {
            return Err(format!("logweir {} has no flag {flag}", path.join(" ")));
        }
    }
    Ok(())
}

fn help(arguments: &[&str]) -> Result<String, String> {
    static KNOWN: Mutex<BTreeMap<String, Result<String, String>>> = Mutex::new(BTreeMap::new());
    let line = arguments.join(" ");
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let run = || {
        let output = Command::new(binary()).args(arguments).output().expect("logweir runs");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(format!("logweir {line}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    };
    known.entry(line.clone()).or_insert_with(run).clone()
}

/// A configuration key that does not exist, such as `journal.quota`.
fn unknown_key(code: &str) -> Option<String> {
    static KEYS: OnceLock<Vec<String>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let table = help(&["validate", "--reference"]).expect("the reference is printed");
        let key = |line: &str| line.strip_prefix("| `")?.split('`').next().map(str::to_owned);
        table.lines().filter_map(key).collect()
    });
    let (section, name) = code.split_once('.')?;
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let is_section = keys.iter().any(|key| key.split_once('.').is_some_and(|(known, _)| known == section));
    let is_file = ["toml", "md", "rs", "yaml", "json", "sh", "yml", "wal"].contains(&name);
    (is_name(section) && is_name(name) && is_section && !is_file && !keys.iter().any(|key| key == code))
        .then(|| format!("unknown configuration key {code:?}"))
}

/// The program's source: what metrics, their labels and log lines can be.
fn source() -> &'static str {
    static SOURCE: OnceLock<String> = OnceLock::new();
    SOURCE.get_or_init(|| {
        let mut folders = vec![repository().join("actors"), repository().join("engine/src")];
        let mut text = String::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of the repository").flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => text.push_str(&fs::read_to_string(path).unwrap_or_default()),
                }
            }
        }
        text
    })
}

/// A metric that does not exist, or never has this label.
fn unknown_metric(code: &str) -> Option<String> {
    let (name, labels) = code.split_once('{').unwrap_or((code, ""));
    let is_metric = name.starts_with("logweir_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if !is_metric || name == "logweir_read" {
        return None;
    }
    let is_unknown = |text: &str| !source().contains(&format!("\"{text}\""));
    let label =
        labels.split(['{', '}', ',']).filter_map(|label| label.split('"').nth(1)).find(|label| is_unknown(label));
    match label {
        _ if is_unknown(name) => Some(format!("unknown metric {name:?}")),
        Some(label) => Some(format!("{name} never has the label {label:?}")),
        None => None,
    }
}

/// A path below one of the repository's folders that does not exist.
fn missing_path(code: &str) -> Option<String> {
    let path = code.split(' ').next().unwrap_or_default().trim_end_matches([',', '.']);
    let folder = path.split('/').next().unwrap_or_default();
    let is_ours = path.contains('/') && ["engine", "actors", "deploy", "benches", "tests", ".github"].contains(&folder);
    let is_pattern = path.contains(['*', '…', '$', '<', '{']);
    // In tests/README.md `tests/kill.rs` is relative to the document.
    let exists = [repository().to_owned(), repository().join("tests")].iter().any(|root| root.join(path).exists());
    (is_ours && !is_pattern && !exists).then(|| format!("{path} does not exist"))
}

fn on_path(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin"]).any(|folder| Path::new(folder).join(program).is_file())
}

/// A log shipper, recognized by its configuration.
struct Shipper {
    program: &'static str,
    missing: &'static str,
}

impl Shipper {
    fn of(language: &str, text: &str) -> Result<Self, String> {
        let known = [
            ("ini", "[OUTPUT]", "fluent-bit", "no fluent-bit, imitated"),
            ("yaml", "sinks:", "vector", "no vector, imitated"),
            ("yaml", "exporters:", "otelcol", "no otelcol, imitated"),
            ("yaml", "clients:", "promtail", "no promtail, imitated"),
            ("yaml", "output.elasticsearch:", "filebeat", "no filebeat, imitated"),
            ("alloy", "loki.write", "alloy", "no alloy, imitated"),
            ("ruby", "output {", "logstash", "no logstash, imitated"),
            ("rsyslog", "omfwd", "rsyslogd", "no rsyslogd"),
        ];
        let found = known.iter().find(|(kind, part, ..)| *kind == language && text.contains(part));
        let (_, _, program, missing) = found.ok_or_else(|| format!("a {language} block of an unknown program"))?;
        Ok(Self { program, missing })
    }

    /// The real program, with an input of its own in front of the documented output.
    fn run(&self, text: &str, place: &mut Place) -> Result<(), String> {
        let work = place.work();
        let input = work.join("shipped.log");
        fs::write(&input, "").expect("a file");
        let (file, glob) = (work.join("shipper.conf"), input.display());
        let state = work.join("state");
        fs::create_dir_all(&state).expect("a directory");
        let state = state.display();
        let (config, arguments): (String, Vec<String>) = match self.program {
            "fluent-bit" => (
                format!(
                    "[SERVICE]\n    Flush 1\n[INPUT]\n    Name tail\n    Path {glob}\n    Read_from_Head true\n{text}"
                ),
                vec!["-c".into()],
            ),
            "vector" => (
                format!("data_dir: {state}\nsources:\n  logs:\n    type: file\n    include: [\"{glob}\"]\n{text}"),
                vec!["--config-yaml".into()],
            ),
            "otelcol" => (
                format!(
                    "receivers:\n  filelog:\n    include: [\"{glob}\"]\n    start_at: beginning\n{text}service:\n  pipelines:\n    \
                     logs: {{ receivers: [filelog], exporters: [otlphttp] }}\n"
                ),
                vec!["--config".into()],
            ),
            "promtail" => (
                format!(
                    "server: {{ disable: true }}\npositions: {{ filename: {state}/positions }}\nscrape_configs:\n  - job_name: a\n    \
                     static_configs: [{{ targets: [localhost], labels: {{ job: a, __path__: \"{glob}\" }} }}]\n{text}"
                ),
                vec!["-config.file".into()],
            ),
            "filebeat" => (
                format!(
                    "filebeat.inputs:\n  - {{ type: filestream, id: a, paths: [\"{glob}\"] }}\npath.data: {state}\n{text}"
                ),
                vec!["-e".into(), "-c".into()],
            ),
            "alloy" => (
                format!(
                    "loki.source.file \"a\" {{\n  targets = [{{ __path__ = \"{glob}\" }}]\n  forward_to = [loki.write.logweir.receiver]\n}}\n{text}"
                ),
                vec!["run".into()],
            ),
            "logstash" => (format!("input {{ file {{ path => \"{glob}\" }} }}\n{text}"), vec!["-f".into()]),
            "rsyslogd" => (
                format!(
                    "global(workDirectory=\"{state}\")\nmodule(load=\"imfile\" mode=\"polling\" pollingInterval=\"1\")\n\
                     input(type=\"imfile\" File=\"{glob}\" Tag=\"app:\")\n{text}"
                ),
                vec!["-n".into(), "-i".into(), work.join("pid").display().to_string(), "-f".into()],
            ),
            other => return Err(format!("cannot run {other}")),
        };
        fs::write(&file, config).expect("a file");
        let sbin = Path::new("/usr/sbin").join(self.program);
        let mut command = place.command(if sbin.exists() { sbin } else { PathBuf::from(self.program) });
        command.args(arguments).arg(&file);
        let log = work.join("shipper.log");
        let shipper = Running::start(command, &log);
        let mut lines = fs::OpenOptions::new().append(true).open(&input).expect("a file");
        let sent = (0..10).try_for_each(|n| {
            thread::sleep(Duration::from_millis(500));
            writeln!(lines, "shipped by {} line {n}", self.program)
        });
        sent.expect("a file");
        place.started.push(shipper);
        place.arrives("shipped", &[]).map_err(|what| format!("{what}; {}", fs::read_to_string(log).unwrap_or_default()))
    }

    /// A request of this shipper's kind to the address in its configuration.
    fn imitate(&self, text: &str, place: &Place) -> Result<(), String> {
        let marker = format!("imitated{}", self.program.replace('-', ""));
        let found = |fields: &[(&str, &str)]| place.arrives(&marker, fields);
        match self.program {
            "fluent-bit" => {
                let values = ini(text)?;
                let value = |key: &str| values.get(key).cloned().ok_or_else(|| format!("{key} is missing"));
                let url = format!("http://{}:{}{}", value("Host")?, value("Port")?, value("URI")?);
                expect(&value("Format")?, "json_lines")?;
                expect(&value("Compress")?, "gzip")?;
                let body = format!("{}\n", json!({ "date": 1_795_169_700.5, "log": marker, "stream": "stdout" }));
                place.post(&url, "application/x-ndjson", &gzip(body.as_bytes()), &[("content-encoding", "gzip")])?;
                found(&[("message", &marker), ("stream", "stdout"), ("ts", "2026-11-20T10:15:00.5Z")])
                    .or_else(|_| {
                        found(&[("message", &marker), ("stream", "stdout"), ("ts", "2026-11-20T10:15:00.500000Z")])
                    })
                    .or_else(|_| {
                        found(&[("message", &marker), ("stream", "stdout"), ("ts", "2026-11-20T10:15:00.500Z")])
                    })
            }
            "vector" => {
                let sink = &yaml(text)?["sinks"]["logweir"];
                let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                expect(&word(&sink["type"]), "http")?;
                expect(&word(&sink["encoding"]["codec"]), "json")?;
                expect(&word(&sink["framing"]["method"]), "newline_delimited")?;
                expect(&word(&sink["compression"]), "zstd")?;
                let record = json!({ "message": marker, "timestamp": "2026-11-20T10:15:00.5Z", "host": "web-1", "source_type": "file" });
                let body = zstd::encode_all(format!("{record}\n").as_bytes(), 0).expect("memory");
                place.post(&word(&sink["uri"]), "application/x-ndjson", &body, &[("content-encoding", "zstd")])?;
                found(&[("message", &marker), ("host", "web-1"), ("source_type", "file")])
            }
            "otelcol" => {
                let url = yaml(text)?["exporters"]["otlphttp"]["logs_endpoint"].as_str().unwrap_or_default().to_owned();
                let text = |text: &str| json!({ "stringValue": text });
                let record =
                    json!({ "timeUnixNano": "1795169700000000000", "severityNumber": 17, "body": text(&marker) });
                let resource = json!({ "attributes": [{ "key": "service.name", "value": text("imitated") }] });
                let body =
                    json!({ "resourceLogs": [{ "resource": resource, "scopeLogs": [{ "logRecords": [record] }] }] });
                place.post(
                    &url,
                    "application/json",
                    &gzip(body.to_string().as_bytes()),
                    &[("content-encoding", "gzip")],
                )?;
                found(&[("message", &marker), ("service", "imitated")])
            }
            "promtail" | "alloy" => {
                let url = match self.program {
                    "promtail" => yaml(text)?["clients"][0]["url"].as_str().unwrap_or_default().to_owned(),
                    _ => quoted(text, "url")?,
                };
                let entries =
                    vec![Entry { timestamp: Some(Timestamp { seconds: 1_795_169_700 }), line: marker.clone() }];
                let streams = vec![Stream { labels: r#"{job="imitated", instance="web-1"}"#.to_owned(), entries }];
                let body =
                    snap::raw::Encoder::new().compress_vec(&PushRequest { streams }.encode_to_vec()).expect("memory");
                place.post(&url, "application/x-protobuf", &body, &[])?;
                found(&[("message", &marker), ("service", "imitated"), ("host", "web-1")])
            }
            "filebeat" | "logstash" => {
                let url = match self.program {
                    "filebeat" => {
                        let config = yaml(text)?;
                        let hosts = &config["output.elasticsearch"]["hosts"];
                        hosts[0].as_str().ok_or("output.elasticsearch.hosts is missing")?.to_owned()
                    }
                    _ => quoted(text, "hosts")?,
                };
                let hello = agent(PATIENCE).get(&url).header("user-agent", "Elastic-filebeat/9.0").call();
                let hello = hello.map_err(|error| error.to_string())?.body_mut().read_to_string().unwrap_or_default();
                if !hello.contains("version") {
                    return Err(format!("GET {url} does not describe a server: {hello}"));
                }
                let document =
                    json!({ "@timestamp": "2026-11-20T10:15:00.000Z", "message": marker, "host": { "name": "web-1" } });
                let body = format!("{}\n{document}\n", json!({ "create": { "_index": "imitated-2026.11.20" } }));
                place.post(&format!("{url}/_bulk"), "application/x-ndjson", body.as_bytes(), &[])?;
                found(&[("message", &marker), ("service", "imitated")])
            }
            other => Err(format!("cannot imitate {other}")),
        }
    }
}

fn expect(value: &str, wanted: &str) -> Result<(), String> {
    if value == wanted { Ok(()) } else { Err(format!("this test imitates {wanted:?}, and the document has {value:?}")) }
}

/// Keys of the last section of a Fluent Bit configuration.
fn ini(text: &str) -> Result<BTreeMap<String, String>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['[', '#']));
    lines
        .map(|line| {
            let (key, value) = line.split_once(char::is_whitespace).ok_or_else(|| format!("no value: {line:?}"))?;
            Ok((key.to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| format!("invalid YAML: {error}"))
}

/// The first quoted text behind `key`.
fn quoted(text: &str, key: &str) -> Result<String, String> {
    let after = text.split_once(key).and_then(|(_, rest)| rest.split('"').nth(1));
    after.map(str::to_owned).ok_or_else(|| format!("{key} is missing"))
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    flate2::read::GzEncoder::new(body, flate2::Compression::fast()).read_to_end(&mut compressed).expect("memory");
    compressed
}
