//! Reads what the renderer prints. What a manifest may say stands here as types: each field is obeyed, or it is one of
//! `ELSEWHERE`, or it is an error. Nothing that somebody wrote into a manifest is passed over in silence.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What has no meaning on one host, and why.
const ELSEWHERE: [(&str, &str); 14] = [
    ("/spec/selector", "pods are known by their ordinals; checks.py compares the labels"),
    ("/spec/revisionHistoryLimit", "how far back one may go, not what runs"),
    ("/spec/template/metadata", "labels and annotations"),
    ("/spec/template/spec/affinity", "there is one host"),
    ("/spec/template/spec/topologySpreadConstraints", "there is one host"),
    ("/spec/template/spec/securityContext", "pods run as whoever runs the test"),
    ("/spec/template/spec/serviceAccountName", "there is no API server to ask"),
    ("/spec/template/spec/automountServiceAccountToken", "there is no API server to ask"),
    (
        "/spec/template/spec/containers/0/image",
        "the program under test is the image; its entry point is deploy/Dockerfile's",
    ),
    ("/spec/template/spec/containers/0/imagePullPolicy", "nothing is pulled"),
    ("/spec/template/spec/containers/0/securityContext", "pods run as whoever runs the test"),
    ("/spec/template/spec/containers/0/resources/requests", "there is one host"),
    ("/spec/template/spec/containers/0/resources/limits/cpu", "the host's cores are everybody's"),
    ("/spec/template/spec/containers/0/resources/limits/ephemeral-storage", "the host's disk is everybody's"),
];

/// All objects of one rendering.
#[derive(Clone, Debug)]
pub struct Manifests(Vec<Value>);

impl Manifests {
    /// Renders a folder with `kubectl` or `kustomize`; none, loudly, where neither is here.
    ///
    /// # Panics
    /// It cannot be rendered.
    #[must_use]
    pub fn render(folder: &Path) -> Option<Self> {
        let Some((program, arguments)) = renderer() else {
            eprintln!("PASSED OVER: neither kubectl 1.27 nor kustomize 5 is here, so that no manifest can be rendered");
            return None;
        };
        let output = Command::new(program).args(arguments).arg(folder).output().expect("the renderer starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} cannot render {}: {said}", folder.display());
        Some(Self::parse(&String::from_utf8_lossy(&output.stdout)).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Reads YAML documents.
    ///
    /// # Errors
    /// They are not YAML.
    pub fn parse(yaml: &str) -> Result<Self, String> {
        serde_saphyr::from_multiple(yaml).map(Self).map_err(|error| format!("no YAML: {error}"))
    }

    fn object(&self, kind: &str, name: &str) -> Result<&Value, String> {
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        self.0.iter().find(is_it).ok_or_else(|| format!("there is no {kind}/{name}"))
    }

    /// Changes an object in one place, as a patch would; a value of null takes the place away.
    ///
    /// # Panics
    /// There is no such object, or nothing that could hold the place.
    pub fn patch(&mut self, kind: &str, name: &str, pointer: &str, value: Value) {
        let is_it = |object: &&mut Value| object["kind"] == kind && object["metadata"]["name"] == name;
        let object = self.0.iter_mut().find(is_it).unwrap_or_else(|| panic!("there is no {kind}/{name}"));
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
        match object.pointer_mut(parent) {
            Some(Value::Object(map)) if value.is_null() => drop(map.remove(key)),
            Some(Value::Object(map)) => drop(map.insert(key.to_owned(), value)),
            Some(Value::Array(list)) if key == "-" => list.push(value),
            other => panic!("{kind}/{name} has nothing at {parent} that holds {key}: {other:?}"),
        }
    }

    /// What a StatefulSet asks for.
    ///
    /// # Errors
    /// It is not here, or says something that would not be obeyed.
    pub fn stateful_set(&self, name: &str) -> Result<StatefulSet, String> {
        self.read("StatefulSet", name)
    }

    /// What a Job asks for.
    ///
    /// # Errors
    /// As with [`Manifests::stateful_set`].
    pub fn job(&self, name: &str) -> Result<Job, String> {
        self.read("Job", name)
    }

    fn read<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<T, String> {
        let mut object = self.object(kind, name)?.clone();
        for (pointer, _) in ELSEWHERE {
            let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
            if let Some(Value::Object(parent)) = object.pointer_mut(parent) {
                parent.remove(key);
            }
        }
        let not_understood = |error| format!("{kind}/{name} says what this kubelet does not understand: {error}");
        serde_json::from_value(object["spec"].take()).map_err(not_understood)
    }

    /// The texts of a ConfigMap.
    ///
    /// # Errors
    /// It is not here.
    pub fn config_map(&self, name: &str) -> Result<BTreeMap<String, String>, String> {
        let data = self.object("ConfigMap", name)?["data"].clone();
        serde_json::from_value(data).map_err(|error| format!("ConfigMap/{name}: {error}"))
    }

    /// The texts of a Secret.
    ///
    /// # Errors
    /// It is not here, or not text.
    pub fn secret(&self, name: &str) -> Result<BTreeMap<String, String>, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("Secret/{name}: {error}");
        let data = self.object("Secret", name)?["data"].clone();
        let data: BTreeMap<String, String> = serde_json::from_value(data).map_err(|error| wrong(&error))?;
        let text = |encoded: String| {
            let encoded: String = encoded.split_whitespace().collect();
            let bytes = base64::prelude::BASE64_STANDARD.decode(encoded).map_err(|error| wrong(&error))?;
            String::from_utf8(bytes).map_err(|error| wrong(&error))
        };
        data.into_iter().map(|(key, encoded)| Ok((key, text(encoded)?))).collect()
    }

    /// Adds a Secret, where another operator of the cluster would have made it.
    pub fn add_secret(&mut self, name: &str, texts: &BTreeMap<String, String>) {
        let encoded = |text: &String| Value::from(base64::prelude::BASE64_STANDARD.encode(text));
        let data: Map<String, Value> = texts.iter().map(|(key, text)| (key.clone(), encoded(text))).collect();
        self.0.push(serde_json::json!({"kind": "Secret", "metadata": {"name": name}, "data": data}));
    }

    /// The name of the object of this kind whose name begins so: that of a generated one ends in a hash.
    ///
    /// # Errors
    /// There is none.
    pub fn named(&self, kind: &str, begins: &str) -> Result<&str, String> {
        let mut names = self.0.iter().filter(|o| o["kind"] == kind).filter_map(|o| o["metadata"]["name"].as_str());
        names.find(|name| name.starts_with(begins)).ok_or_else(|| format!("there is no {kind}/{begins}…"))
    }
}

fn renderer() -> Option<(&'static str, &'static [&'static str])> {
    let says = |program: &str, arguments: &[&str]| Command::new(program).args(arguments).output().ok();
    if says("kustomize", &["version"]).is_some_and(|output| output.status.success()) {
        return Some(("kustomize", &["build"]));
    }
    let output = says("kubectl", &["version", "--client"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, version) = text.split_once("Kustomize Version: v")?;
    let major: u32 = version.split('.').next()?.parse().ok()?;
    (major >= 5).then_some(("kubectl", &["kustomize"]))
}

/// What a StatefulSet asks for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StatefulSet {
    /// The Service that gives the pods their names. There is no DNS here: the pods are asked by address.
    pub service_name: String,
    /// How many pods; none leaves it to an autoscaler.
    pub replicas: Option<u32>,
    /// Whether pods wait for each other when they come and go.
    #[serde(default)]
    pub pod_management_policy: PodManagement,
    /// How a new template gets to the pods.
    pub update_strategy: UpdateStrategy,
    /// How long a pod must have been ready before a rollout goes on.
    #[serde(default)]
    pub min_ready_seconds: u64,
    /// What becomes of the claims of pods that are not wanted any more.
    pub persistent_volume_claim_retention_policy: Retention,
    /// The pods.
    pub template: Template,
    /// A volume for each pod.
    #[serde(default)]
    pub volume_claim_templates: Vec<ClaimTemplate>,
}

/// Whether pods wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PodManagement {
    /// From 0 upwards, each when the one before it is available; and back.
    #[default]
    OrderedReady,
    /// All at once.
    Parallel,
}

/// How a new template gets to the pods; `OnDelete` is not used here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum UpdateStrategy {
    /// From the highest ordinal downwards, one at a time.
    RollingUpdate {
        /// Its bounds.
        #[serde(default)]
        rolling_update: RollingUpdate,
    },
}

/// The bounds of a rolling update.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollingUpdate {
    /// Pods with a lower ordinal stay as they are.
    #[serde(default)]
    pub partition: u32,
}

/// What becomes of claims.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    /// When the set is deleted, which does not happen here.
    pub when_deleted: Keep,
    /// When there are fewer replicas.
    pub when_scaled: Keep,
}

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Keep {
    /// It stays.
    Retain,
    /// It goes with its pod.
    Delete,
}

/// A volume for each pod.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimTemplate {
    /// Its name and labels.
    pub metadata: Named,
    /// Size, class and access: a directory has none of them.
    pub spec: ClaimSpec,
}

/// What a volume should be like.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimSpec {
    /// Who may mount it.
    pub access_modes: Vec<String>,
    /// Its size: not held here, checks.py compares it with the journal's quota.
    pub resources: Value,
    /// What makes it.
    pub storage_class_name: Option<String>,
}

/// A name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What a Job asks for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// How often it is tried again.
    pub backoff_limit: u32,
    /// Its pod.
    pub template: Template,
}

/// A pod's description.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The pod.
    pub spec: PodSpec,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    /// What runs in it: here, one.
    pub containers: [Container; 1],
    /// Where its files come from.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Whether a container that ended is started again.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// From the wish to end it until SIGKILL.
    #[serde(default = "thirty")]
    pub termination_grace_period_seconds: u64,
    /// Variables for each Service, which nobody makes here.
    pub enable_service_links: No,
}

/// A switch that must be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "bool")]
pub struct No;

impl TryFrom<bool> for No {
    type Error = &'static str;

    fn try_from(on: bool) -> Result<Self, Self::Error> {
        if on { Err("only false is understood") } else { Ok(Self) }
    }
}

/// Whether a container that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    /// Always.
    #[default]
    Always,
    /// Unless it ended with 0.
    OnFailure,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// In place of the image's entry point.
    #[serde(default)]
    pub command: Vec<String>,
    /// In place of the image's command.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// Variables from elsewhere; [`Container::env`] comes before them.
    #[serde(default)]
    pub env_from: Vec<EnvFrom>,
    /// Where it listens.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// What is done before SIGTERM.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Whether it has started.
    pub startup_probe: Option<Probe>,
    /// Whether it should be sent to.
    pub readiness_probe: Option<Probe>,
    /// Whether it lives.
    pub liveness_probe: Option<Probe>,
    /// What it may take.
    pub resources: Resources,
    /// Where its volumes are.
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
}

/// A variable.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub value: Option<String>,
    /// Where that stands.
    pub value_from: Option<ValueFrom>,
}

/// Where a variable's value stands.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ValueFrom {
    /// In the pod.
    FieldRef {
        /// Where in it.
        field_path: FieldPath,
    },
    /// In a Secret.
    SecretKeyRef {
        /// Which.
        name: String,
        /// What of it.
        key: String,
    },
    /// In a ConfigMap.
    ConfigMapKeyRef {
        /// Which.
        name: String,
        /// What of it.
        key: String,
    },
}

/// Where in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum FieldPath {
    /// Its name.
    #[serde(rename = "metadata.name")]
    Name,
    /// The name of its node.
    #[serde(rename = "spec.nodeName")]
    NodeName,
}

/// Many variables.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum EnvFrom {
    /// All of a ConfigMap.
    ConfigMapRef(Named),
    /// All of a Secret.
    SecretRef(Named),
}

/// Where a container listens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its number.
    pub container_port: u16,
}

/// What is done before SIGTERM.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lifecycle {
    /// That.
    pub pre_stop: Option<PreStop>,
}

/// What is done before SIGTERM.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PreStop {
    /// Nothing, for a while.
    Sleep {
        /// So long.
        seconds: u64,
    },
}

/// A question to a container.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// What is asked.
    pub http_get: HttpGet,
    /// When it is asked first.
    #[serde(default)]
    pub initial_delay_seconds: u64,
    /// How often it is asked.
    #[serde(default = "ten")]
    pub period_seconds: u64,
    /// How long an answer may take.
    #[serde(default = "one")]
    pub timeout_seconds: u64,
    /// How many failures, one after another, count.
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

impl Probe {
    /// How often it is asked.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_secs(self.period_seconds)
    }
}

/// A question by HTTP.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpGet {
    /// The path.
    pub path: String,
    /// The name of the port.
    pub port: String,
}

/// What a container may take.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// At the most.
    pub limits: Limits,
}

/// What a container may take at the most.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory, in the notation of Kubernetes.
    pub memory: Bytes,
}

/// An amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Bytes(pub u64);

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |unit: &str, bytes: u64| Some(text.strip_suffix(unit)?.parse::<u64>().ok()? * bytes);
        let found = number("Ki", 1 << 10).or_else(|| number("Mi", 1 << 20)).or_else(|| number("Gi", 1 << 30));
        found.map(Self).ok_or_else(|| format!("{text:?} is no amount in Ki, Mi or Gi"))
    }
}

/// Where a volume is seen.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume.
    pub name: String,
    /// Where.
    pub mount_path: String,
    /// Whether it may be written to. Nothing keeps the program from it here.
    #[serde(default)]
    pub read_only: bool,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where from.
    pub source: VolumeSource,
}

impl TryFrom<Map<String, Value>> for Volume {
    type Error = String;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, String> {
        let name = fields.remove("name").and_then(|name| name.as_str().map(ToOwned::to_owned)).ok_or("no name")?;
        let source =
            serde_json::from_value(Value::Object(fields)).map_err(|error| format!("volume {name}: {error}"))?;
        Ok(Self { name, source })
    }
}

/// Where a volume's files come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum VolumeSource {
    /// Nowhere, and they go with the pod.
    EmptyDir {
        /// Not held here.
        size_limit: Option<String>,
    },
    /// From Secrets.
    Projected {
        /// The files' mode.
        default_mode: u32,
        /// Which.
        sources: Vec<Projection>,
    },
    /// From a Secret.
    Secret {
        /// Which.
        secret_name: String,
        /// The files' mode.
        default_mode: u32,
        /// What of it.
        items: Vec<Item>,
    },
    /// From a claim.
    PersistentVolumeClaim {
        /// Which.
        claim_name: String,
    },
}

/// One source of a volume that has many.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Projection {
    /// A Secret.
    Secret {
        /// Which.
        name: String,
        /// What of it.
        items: Vec<Item>,
    },
}

/// One text as a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The text's name.
    pub key: String,
    /// The file's name.
    pub path: String,
}

fn one() -> u64 {
    1
}

fn three() -> u32 {
    3
}

fn ten() -> u64 {
    10
}

fn thirty() -> u64 {
    30
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(change: impl FnOnce(&mut Manifests)) -> Result<Job, String> {
        let text = "
kind: Job
metadata: { name: drain }
spec:
  backoffLimit: 3
  template:
    spec:
      restartPolicy: OnFailure
      enableServiceLinks: false
      containers:
        - name: logweir
          image: logweir
          args: [journal, drain]
          resources: { limits: { cpu: '2', memory: 1280Mi } }
      volumes:
        - name: data
          persistentVolumeClaim: { claimName: data-processor-2 }
";
        let mut manifests = Manifests::parse(text).unwrap();
        change(&mut manifests);
        manifests.job("drain")
    }

    #[test]
    fn what_stands_there_is_read() {
        let spec = job(|_| {}).unwrap().template.spec;
        assert_eq!(spec.restart_policy, RestartPolicy::OnFailure);
        assert_eq!(spec.termination_grace_period_seconds, 30, "as in a cluster where nothing is said");
        assert_eq!(spec.containers[0].resources.limits.memory, Bytes(1280 << 20));
        assert_eq!(
            spec.volumes[0].source,
            VolumeSource::PersistentVolumeClaim { claim_name: "data-processor-2".to_owned() }
        );
    }

    #[test]
    fn what_would_not_be_obeyed_is_an_error_that_names_it() {
        let pod = "/spec/template/spec";
        for (place, value, named) in [
            ("/spec/suspend".to_owned(), json!(true), "suspend"),
            (format!("{pod}/initContainers"), json!([]), "initContainers"),
            (format!("{pod}/hostNetwork"), json!(true), "hostNetwork"),
            (format!("{pod}/enableServiceLinks"), json!(true), "only false"),
            (format!("{pod}/restartPolicy"), json!("Never"), "Never"),
            (format!("{pod}/containers/-"), json!({"name": "sidecar"}), "length"),
            (format!("{pod}/containers/0/workingDir"), json!("/"), "workingDir"),
            (format!("{pod}/containers/0/lifecycle"), json!({"preStop": {"exec": {}}}), "exec"),
            (format!("{pod}/containers/0/livenessProbe"), json!({"exec": {}}), "exec"),
            (format!("{pod}/containers/0/resources"), json!({"limits": {"memory": "much"}}), "much"),
            (format!("{pod}/volumes/-"), json!({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
        ] {
            let error = job(|manifests| manifests.patch("Job", "drain", &place, value)).unwrap_err();
            assert!(error.contains(named) && error.contains("Job/drain"), "{place}: {error}");
        }
    }

    #[test]
    fn a_secret_is_decoded_and_one_that_is_missing_is_named() {
        let mut manifests =
            Manifests::parse("kind: Secret\nmetadata: { name: s-1 }\ndata:\n  url: |\n    YWJj\n    ZA==\n").unwrap();
        assert_eq!(manifests.secret("s-1").unwrap()["url"], "abcd");
        assert_eq!(manifests.named("Secret", "s-"), Ok("s-1"));
        manifests.add_secret("t", &BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        assert_eq!(manifests.secret("t").unwrap()["k"], "v");
        assert!(manifests.secret("u").unwrap_err().contains("Secret/u"));
    }
}
