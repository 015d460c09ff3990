//! A cluster of one host: reads the rendered manifests and does with them what a kubelet and the controllers would do, to the
//! real program, so that what `deploy/` says is tested and not only what a test's author thinks that it says.
//!
//! ```text
//! client ─> Service ─> pod (the program; probes, preStop, SIGTERM, SIGKILL) ─> proxy ─> PostgreSQL; Redis
//!                       ^ set (ordinals, revisions, claims)  ^ manifest
//! ```
//!
//! What differs from a cluster stands at [`pod::Plan`], what is left out in [`manifest`]; anything else in a manifest is an error.

pub mod manifest;
pub mod pod;
pub mod service;
pub mod set;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::accounting::Totals;
use crate::client::{Client, Load, Running};
use crate::ledger::{Ledger, Outcome};
use crate::oracle::{Violation, examine};
use crate::postgres::{Options, Server as Postgres};
use crate::process::{Server, run_command};
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::scenario::PATIENCE;
use crate::store::Store;
use manifest::Manifests;
use pod::{End, Image, Plan, Pod, World};
use service::Service;
use set::Set;

/// The set that all of this is about.
const PROCESSOR: &str = "processor";
const DATABASE: &str = "logs";
/// How long a Service goes on sending to a pod that is to go.
const ENDPOINTS_LAG: Duration = Duration::from_secs(1);

/// The folder of the manifests.
#[must_use]
pub fn kubernetes() -> PathBuf {
    repository().join("deploy/kubernetes")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The cluster.
pub struct Cluster {
    /// Everything that is random follows from it; `LOGWEIR_SEED` sets it.
    pub random: StdRng,
    /// Its directory.
    pub dir: PathBuf,
    /// What the senders know.
    pub ledger: Arc<Ledger>,
    /// The processors.
    pub set: Set,
    /// Before the database.
    pub proxy: Proxy,
    service: Service,
    store: Store,
    world: World,
    tokens: BTreeMap<String, &'static str>,
    most_away: usize,
    lost: Vec<Pod>,
    lost_ends: Vec<End>,
    _postgres: Postgres,
    _redis: Redis,
}

/// Tells a story in a cluster with so many processors of `objects`. Where it fails, volumes and logs are kept.
///
/// # Panics
/// It fails.
pub fn in_cluster(name: &str, objects: &Manifests, replicas: u32, story: impl FnOnce(&mut Cluster)) {
    let seed = std::env::var("LOGWEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let dir = tempfile::Builder::new().prefix("logweir-kubelet-").tempdir().expect("a temporary directory");
    let mut cluster = Cluster::new(objects, replicas, dir.path(), seed).unwrap_or_else(|error| panic!("{error}"));
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| story(&mut cluster))) {
        drop(cluster);
        eprintln!("{name} failed with LOGWEIR_SEED={seed}; volumes and logs are kept in {}", dir.keep().display());
        resume_unwind(panic);
    }
}

impl Cluster {
    fn new(objects: &Manifests, replicas: u32, dir: &Path, seed: u64) -> Result<Self, String> {
        let postgres = database(objects, dir)?;
        let proxy = Proxy::start(([127, 0, 0, 1], postgres.port()).into()).expect("a proxy");
        let password = objects.secret(objects.named("Secret", "logweir-cache")?)?["password"].clone();
        let redis = Redis::start_with(&["--requirepass", &password]);
        let services = BTreeMap::from([
            ("database:5432".to_owned(), proxy.addr()),
            ("redis:6379".to_owned(), ([127, 0, 0, 1], redis.port()).into()),
        ]);
        let dockerfile = std::fs::read_to_string(repository().join("deploy/Dockerfile")).expect("the Dockerfile");
        let world = World { image: Image::read(&dockerfile)?, services };
        let tokens = objects.secret(objects.named("Secret", "logweir-tokens")?)?;
        Ok(Self {
            random: StdRng::seed_from_u64(seed),
            dir: dir.to_owned(),
            ledger: Arc::default(),
            set: Set::new(PROCESSOR, objects, replicas, world.clone(), dir)?,
            proxy,
            service: Service::start().expect("a loopback port"),
            store: Store::Postgres(postgres.url(DATABASE)),
            world,
            // Senders are told it as text that outlives them.
            tokens: tokens.into_iter().map(|(key, token)| (key, &*token.leak())).collect(),
            most_away: 0,
            lost: Vec::new(),
            lost_ends: Vec::new(),
            _postgres: postgres,
            _redis: redis,
        })
    }

    /// Lets everybody do what is due.
    ///
    /// # Panics
    /// A pod cannot be made.
    pub fn step(&mut self) {
        self.set.step().unwrap_or_else(|error| panic!("{error}"));
        self.lost_ends.extend(self.lost.iter_mut().filter_map(Pod::step));
        let mut endpoints = Vec::new();
        for pod in self.set.pods().values_mut() {
            let leaving = pod.deleted_since().is_some_and(|since| since.elapsed() > ENDPOINTS_LAG);
            if pod.ready_since().is_some() && !leaving {
                endpoints.push(pod.plan().port("http"));
            }
        }
        self.most_away = self.most_away.max(self.set.pods().values().filter(|pod| pod.is_away()).count());
        self.service.lead_to(endpoints);
    }

    /// Goes on until `holds`.
    ///
    /// # Panics
    /// It does not within a few times [`PATIENCE`].
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE * 5;
        loop {
            self.step();
            if holds(self) {
                return;
            }
            assert!(Instant::now() < deadline, "not in time: {what}: {}", self.told());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Goes on for a while, where a moment is wanted and any would do.
    pub fn go_on_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.until("time passes", |_| Instant::now() >= end);
    }

    /// Goes on until as many pods as there should be are available, each of its revision.
    pub fn settle(&mut self) {
        self.until("every pod is available", |cluster| cluster.set.is_settled());
    }

    /// Goes on until all pods that there should be are ready, which is sooner.
    pub fn ready(&mut self, pods: usize) {
        self.until("the pods are ready", |cluster| {
            let pods_there = cluster.set.pods();
            pods_there.len() == pods && pods_there.values().all(|pod| pod.ready_since().is_some())
        });
    }

    /// Goes on until every lane of every pod has reached the database: before that a drain does not wait long for a database that
    /// may hang, and leaves what it has in the journal.
    pub fn connected(&mut self) {
        let token = self.tokens["query"];
        self.until("every lane has reached the database", |cluster| {
            cluster.set.pods().values_mut().all(|pod| {
                let status = pod.server().and_then(|server| server.data_as(token, "/api/v1/status"));
                let status = status.map(|answer| answer.json()).unwrap_or_default();
                let mut lanes = status["lanes"].as_array().into_iter().flatten().peekable();
                lanes.peek().is_some() && lanes.all(|lane| lane["store"]["state"] == "ok")
            })
        });
    }

    /// Goes on until `records` more records are acknowledged than now.
    pub fn acknowledged(&mut self, records: u64) {
        let target = self.ledger.records(Outcome::Acknowledged) + records;
        self.until("more records are acknowledged", |c| c.ledger.records(Outcome::Acknowledged) >= target);
    }

    /// Counts from now on how many pods are away at once: on their way out, or new and not ready yet.
    pub fn watch(&mut self) {
        self.most_away = 0;
    }

    /// The most pods that were away at once since [`Cluster::watch`].
    #[must_use]
    pub fn most_away(&self) -> usize {
        self.most_away
    }

    /// Starts senders to the Service.
    #[must_use]
    pub fn load(&self, load: Load) -> Running {
        Load { token: Some(self.tokens["ingest"]), ..load }.start(&self.ledger, self.service.addr())
    }

    /// Kills a pod's process and takes the pod out of the books.
    pub fn force_delete(&mut self, ordinal: u32) {
        drop(self.set.forget(ordinal));
    }

    /// Takes a pod out of the books while its process goes on, and its node's kubelet too, which nobody reaches any more.
    ///
    /// # Panics
    /// There is no such pod.
    pub fn lose_contact(&mut self, ordinal: u32) {
        self.lost.push(self.set.forget(ordinal).expect("a pod"));
    }

    /// The process of the pod that nobody reaches any more.
    ///
    /// # Panics
    /// There is none.
    pub fn lost(&mut self) -> &mut Server {
        self.lost.last_mut().and_then(Pod::server).expect("a lost pod whose process runs")
    }

    /// How containers of lost pods ended.
    #[must_use]
    pub fn lost_ends(&self) -> &[End] {
        &self.lost_ends
    }

    /// Ends what runs where nobody reaches it: the node is switched off.
    pub fn end_lost(&mut self) {
        self.lost.clear();
    }

    /// The pod with this ordinal.
    ///
    /// # Panics
    /// There is none.
    pub fn pod(&mut self, ordinal: u32) -> &mut Pod {
        self.set.pods().get_mut(&ordinal).unwrap_or_else(|| panic!("there is no pod {ordinal}"))
    }

    /// The identity of the journal on this claim, as a pod's program reads it.
    ///
    /// # Panics
    /// The program does not say.
    pub fn writer(&mut self, ordinal: u32, claim: &str) -> String {
        let volume = self.set.claim(claim);
        let arguments = ["journal", "check", "--json", "--dir", &volume.to_string_lossy()];
        let output = run_command(self.pod(ordinal).plan().command(&arguments), PATIENCE);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        report["writer"].as_str().unwrap_or_else(|| panic!("no writer: {output:?}")).to_owned()
    }

    /// Runs a Job on a claim, as often as it says, and returns its last output.
    ///
    /// # Panics
    /// The manifest says something that would not be obeyed, or the Job fails.
    pub fn run_job(&mut self, objects: &Manifests, name: &str, claim: &str) -> Output {
        let job = objects.job(name).unwrap_or_else(|error| panic!("{error}"));
        let claims = BTreeMap::from([(claim.to_owned(), self.set.claim(claim))]);
        for attempt in 0..=job.backoff_limit {
            let dir = self.dir.join("jobs").join(format!("{name}-{claim}-{attempt}"));
            std::fs::create_dir_all(&dir).expect("a directory for the job");
            let plan = Plan::of(name, &job.template.spec, objects, &claims, &self.world, &dir);
            let plan = plan.unwrap_or_else(|error| panic!("{error}"));
            let output = run_command(plan.own_command(), PATIENCE);
            if output.status.success() {
                return output;
            }
            eprintln!("{name} on {claim}: {output:?}");
        }
        panic!("{name} on {claim} has failed as often as it may");
    }

    /// Everything that is wrong now: each pod is given a record that must reach the store, the backlogs must become empty,
    /// and store, ledger, each pod's accounting and `logweir verify` on each volume must agree.
    pub fn findings(&mut self) -> Vec<Violation> {
        let mut violations = self.come_to_rest();
        if !violations.is_empty() {
            return violations;
        }
        match self.store.contents() {
            Ok(contents) => violations.extend(examine(&self.ledger.posts(), &contents)),
            Err(what) => violations.push(Violation::Stuck(what)),
        }
        violations.extend(self.ledger.offences().into_iter().map(Violation::Answer));
        for pod in self.set.pods().values() {
            let (peak, limit) = pod.memory();
            if peak > limit {
                violations.push(Violation::Accounting(format!("{} took {peak} bytes of {limit}", pod.name)));
            }
        }
        violations.extend(self.verify());
        violations
    }

    /// The contract is kept.
    ///
    /// # Panics
    /// It is not; says how.
    pub fn conserve(&mut self) {
        let violations = self.findings();
        let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "the contract is broken:\n{}", told.join("\n"));
    }

    fn come_to_rest(&mut self) -> Vec<Violation> {
        self.until("every pod is ready", |cluster| {
            cluster.set.pods().values().all(|pod| pod.ready_since().is_some() && pod.deleted_since().is_none())
        });
        let (ledger, tokens) = (self.ledger.clone(), self.tokens.clone());
        let ordinals: Vec<u32> = self.set.pods().keys().copied().collect();
        let mut stuck = Vec::new();
        for ordinal in ordinals {
            let mut fresh = Client::new(&ledger, self.pod(ordinal).plan().port("http"));
            let load = Load { records: 1, ack: "committed", token: Some(tokens["ingest"]), ..Load::default() };
            self.until("a fresh record reaches the store", |_| fresh.post(load) == Outcome::Acknowledged);
            let mut status = serde_json::Value::Null;
            let deadline = Instant::now() + PATIENCE;
            let mut empty = false;
            while !empty && Instant::now() < deadline {
                self.step();
                std::thread::sleep(Duration::from_millis(10));
                let answer = self.pod(ordinal).server().and_then(|s| s.data_as(tokens["query"], "/api/v1/status"));
                status = answer.map(|answer| answer.json()).unwrap_or_default();
                empty = Totals::of(&status).is_some_and(|totals| totals.backlog == 0);
            }
            if !empty {
                stuck.push(Violation::Accounting(format!("{ordinal} does not get empty: {status}")));
            }
        }
        stuck
    }

    /// `logweir verify` on each volume that a pod has; what a Job has emptied was verified by its end.
    fn verify(&mut self) -> Vec<Violation> {
        let command = |pod: &Pod| (pod.name.clone(), pod.plan().command(&["verify"]));
        let commands: Vec<(String, Command)> = self.set.pods().values().map(command).collect();
        let mut wrong = Vec::new();
        for (name, command) in commands {
            let output = run_command(command, PATIENCE);
            if !output.status.success() {
                wrong.push(Violation::Verify(format!("{name}: {output:?}")));
            }
        }
        wrong
    }

    fn told(&mut self) -> String {
        let pods = self.set.pods().values_mut().map(|pod| {
            let log = pod.server().map(|server| server.log_text()).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(3).collect();
            format!("{} of {}, ready {:?}: {last:?}", pod.name, pod.revision, pod.ready_since().is_some())
        });
        pods.collect::<Vec<_>>().join("\n")
    }
}

/// PostgreSQL with the roles that the rendered set-up makes: the processors come in by their own password.
fn database(objects: &Manifests, dir: &Path) -> Result<Postgres, String> {
    let hba = vec!["host logs logweir 127.0.0.1/32 scram-sha-256"];
    let postgres = Postgres::start(&Options { hba, ..Options::default() });
    postgres.execute(&format!("CREATE DATABASE {DATABASE}"));
    let secrets = dir.join("postgresql-secret");
    std::fs::create_dir(&secrets).map_err(|error| error.to_string())?;
    for (key, text) in objects.secret(objects.named("Secret", "logweir-database")?)? {
        std::fs::write(secrets.join(key), text).map_err(|error| error.to_string())?;
    }
    let scripts = objects.config_map(objects.named("ConfigMap", "database-init")?)?;
    let script = scripts["roles.sh"].replace("/etc/postgresql-secret", &secrets.to_string_lossy());
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("POSTGRES_DB", DATABASE)
        .env("PGHOST", postgres.socket_dir())
        .env("PGPORT", postgres.port().to_string())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() { Ok(postgres) } else { Err(format!("roles.sh: {output:?}")) }
}
