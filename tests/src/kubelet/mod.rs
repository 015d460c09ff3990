//! A cluster on one host: interprets the rendered manifests and acts like a kubelet and the controllers on the real
//! program, so that tests cover what `deploy/` really specifies.
//!
//! ```text
//! client ─> Service ─> pod (the program; probes, preStop, SIGTERM, SIGKILL) ─> proxy ─> PostgreSQL; Redis
//!                       ^ set (ordinals, revisions, claims)  ^ manifest
//! ```
//!
//! [`pod::Plan`] documents the differences from a cluster, [`manifest`] the ignored fields; any other field is an
//! error.

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

/// Name of the StatefulSet.
const PROCESSOR: &str = "processor";
const DATABASE: &str = "logs";
/// How long a Service keeps sending to a pod that is being terminated.
const ENDPOINTS_LAG: Duration = Duration::from_secs(1);

/// Directory of the manifests.
#[must_use]
pub fn kubernetes() -> PathBuf {
    repository().join("deploy/kubernetes")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A cluster.
pub struct Cluster {
    /// Seed of all randomness; `LOGWEIR_SEED` sets it.
    pub random: StdRng,
    /// Its directory.
    pub dir: PathBuf,
    /// What the clients sent and which responses they got.
    pub ledger: Arc<Ledger>,
    /// The processors.
    pub set: Set,
    /// In front of the database.
    pub proxy: Proxy,
    service: Service,
    store: Store,
    world: World,
    tokens: BTreeMap<String, &'static str>,
    max_unavailable: usize,
    lost: Vec<Pod>,
    lost_ends: Vec<End>,
    _postgres: Postgres,
    _redis: Redis,
}

/// Runs a scenario in a cluster with this number of processors of `objects`. If it fails, volumes and logs are kept.
///
/// # Panics
/// If it fails.
pub fn in_cluster(name: &str, objects: &Manifests, replicas: u32, scenario: impl FnOnce(&mut Cluster)) {
    let seed = std::env::var("LOGWEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let dir = tempfile::Builder::new().prefix("logweir-kubelet-").tempdir().expect("a temporary directory");
    let mut cluster = Cluster::new(objects, replicas, dir.path(), seed).unwrap_or_else(|error| panic!("{error}"));
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(&mut cluster))) {
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
            // Clients need it as text that outlives them.
            tokens: tokens.into_iter().map(|(key, token)| (key, &*token.leak())).collect(),
            max_unavailable: 0,
            lost: Vec::new(),
            lost_ends: Vec::new(),
            _postgres: postgres,
            _redis: redis,
        })
    }

    /// Advances all controllers and pods.
    ///
    /// # Panics
    /// If a pod cannot be created.
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
        self.max_unavailable = self.max_unavailable.max(self.set.pods().values().filter(|pod| pod.is_away()).count());
        self.service.lead_to(endpoints);
    }

    /// Advances until `holds`.
    ///
    /// # Panics
    /// On timeout after a few times [`PATIENCE`].
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE * 5;
        loop {
            self.step();
            if holds(self) {
                return;
            }
            assert!(Instant::now() < deadline, "timed out waiting until {what}: {}", self.describe());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Advances for a while.
    pub fn go_on_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.until("time passes", |_| Instant::now() >= end);
    }

    /// Advances until all replicas are available with the right revision.
    pub fn until_available(&mut self) {
        self.until("every pod is available", |cluster| cluster.set.is_complete());
    }

    /// Advances until all replicas are ready, which is earlier than available.
    pub fn ready(&mut self, pods: usize) {
        self.until("the pods are ready", |cluster| {
            let pods_there = cluster.set.pods();
            pods_there.len() == pods && pods_there.values().all(|pod| pod.ready_since().is_some())
        });
    }

    /// Advances until every lane of every pod has reached the database. Before that, a drain waits only briefly for a
    /// database that may hang, and leaves records in the journal.
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

    /// Advances until another `records` records are acknowledged.
    pub fn acknowledged(&mut self, records: u64) {
        let target = self.ledger.records(Outcome::Acknowledged) + records;
        self.until("more records are acknowledged", |c| c.ledger.records(Outcome::Acknowledged) >= target);
    }

    /// Starts counting how many pods are unavailable at once: being terminated, or new and not ready yet.
    pub fn watch(&mut self) {
        self.max_unavailable = 0;
    }

    /// Returns the maximum number of pods that were unavailable at once since [`Cluster::watch`].
    #[must_use]
    pub fn max_unavailable(&self) -> usize {
        self.max_unavailable
    }

    /// Starts clients that send to the Service.
    #[must_use]
    pub fn load(&self, load: Load) -> Running {
        Load { token: Some(self.tokens["ingest"]), ..load }.start(&self.ledger, self.service.addr())
    }

    /// Kills a pod's process and force-deletes the pod.
    pub fn force_delete(&mut self, ordinal: u32) {
        drop(self.set.forget(ordinal));
    }

    /// Force-deletes a pod whose node is unreachable: its process and its kubelet keep running.
    ///
    /// # Panics
    /// If the pod does not exist.
    pub fn lose_contact(&mut self, ordinal: u32) {
        self.lost.push(self.set.forget(ordinal).expect("the pod exists"));
    }

    /// Returns the process of the unreachable pod.
    ///
    /// # Panics
    /// If it does not exist.
    pub fn lost(&mut self) -> &mut Server {
        self.lost.last_mut().and_then(Pod::server).expect("a lost pod whose process runs")
    }

    /// Terminations of the containers of lost pods.
    #[must_use]
    pub fn lost_ends(&self) -> &[End] {
        &self.lost_ends
    }

    /// Kills the processes on unreachable nodes, as if the nodes were switched off.
    pub fn end_lost(&mut self) {
        self.lost.clear();
    }

    /// Returns the pod with this ordinal.
    ///
    /// # Panics
    /// If it does not exist.
    pub fn pod(&mut self, ordinal: u32) -> &mut Pod {
        self.set.pods().get_mut(&ordinal).unwrap_or_else(|| panic!("no pod {ordinal}"))
    }

    /// Returns the UUID of the journal on this claim, as reported by the program.
    ///
    /// # Panics
    /// If the program fails.
    pub fn writer(&mut self, ordinal: u32, claim: &str) -> String {
        let volume = self.set.claim(claim);
        let arguments = ["journal", "check", "-o", "json", "--dir", &volume.to_string_lossy()];
        let output = run_command(self.pod(ordinal).plan().command(&arguments), PATIENCE);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        report["writer"].as_str().unwrap_or_else(|| panic!("no writer: {output:?}")).to_owned()
    }

    /// Runs a Job on a claim with its number of retries, and returns its last output.
    ///
    /// # Panics
    /// If the manifest has an unsupported field, or the Job fails.
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
        panic!("{name} on {claim} has used up its retries");
    }

    /// Returns all violations. Each pod gets a record that must reach the store, the backlogs must become empty, and
    /// store, ledger, each pod's accounting and `logweir verify` on each volume must agree.
    pub fn findings(&mut self) -> Vec<Violation> {
        let mut violations = self.settle_down();
        if !violations.is_empty() {
            return violations;
        }
        match self.store.contents() {
            Ok(contents) => violations.extend(examine(&self.ledger.posts(), &contents)),
            Err(what) => violations.push(Violation::Stuck(what)),
        }
        violations.extend(self.ledger.violations().into_iter().map(Violation::Answer));
        for pod in self.set.pods().values() {
            let (peak, limit) = pod.memory();
            if peak > limit {
                violations
                    .push(Violation::Accounting(format!("{} used {peak} bytes of memory, limit {limit}", pod.name)));
            }
        }
        violations.extend(self.verify());
        violations
    }

    /// Asserts that the contract holds.
    ///
    /// # Panics
    /// If it does not, with all violations.
    pub fn assert_contract(&mut self) {
        let violations = self.findings();
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "contract violations:\n{}", lines.join("\n"));
    }

    fn settle_down(&mut self) -> Vec<Violation> {
        self.until("every pod is ready", |cluster| {
            cluster.set.pods().values().all(|pod| pod.ready_since().is_some() && pod.deleted_since().is_none())
        });
        let (ledger, tokens) = (self.ledger.clone(), self.tokens.clone());
        let ordinals: Vec<u32> = self.set.pods().keys().copied().collect();
        let mut stuck = Vec::new();
        for ordinal in ordinals {
            let mut fresh = Client::new(&ledger, self.pod(ordinal).plan().port("http"));
            let load = Load { records: 1, ack: "committed", token: Some(tokens["ingest"]), ..Load::default() };
            self.until("a new record reaches the store", |_| fresh.post(load) == Outcome::Acknowledged);
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
                stuck.push(Violation::Accounting(format!(
                    "the backlog of pod {ordinal} does not become empty: {status}"
                )));
            }
        }
        stuck
    }

    /// Runs `logweir verify` on each pod's volume; a Job's volume was verified when it finished.
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

    fn describe(&mut self) -> String {
        let pods = self.set.pods().values_mut().map(|pod| {
            let log = pod.server().map(|server| server.log_text()).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(3).collect();
            format!("{} of {}, ready {:?}: {last:?}", pod.name, pod.revision, pod.ready_since().is_some())
        });
        pods.collect::<Vec<_>>().join("\n")
    }
}

/// Starts PostgreSQL with the roles of the rendered setup, so that processors log in with their own password.
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
