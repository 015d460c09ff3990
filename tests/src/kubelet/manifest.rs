//! Parses rendered manifests. The supported fields are types: each field is implemented, listed in `IGNORED`, or an
//! error. No part of a manifest is skipped silently.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields without meaning on a single host, with the reason.
const IGNORED: [(&str, &str); 14] = [
    ("/spec/selector", "pods are identified by ordinal; checks.py compares the labels"),
    ("/spec/revisionHistoryLimit", "affects only rollbacks"),
    ("/spec/template/metadata", "labels and annotations"),
    ("/spec/template/spec/affinity", "there is only one host"),
    ("/spec/template/spec/topologySpreadConstraints", "there is only one host"),
    ("/spec/template/spec/securityContext", "pods run as the user of the test"),
    ("/spec/template/spec/serviceAccountName", "there is no API server"),
    ("/spec/template/spec/automountServiceAccountToken", "there is no API server"),
    (
        "/spec/template/spec/containers/0/image",
        "the image is the program under test; its entry point is that of deploy/Dockerfile",
    ),
    ("/spec/template/spec/containers/0/imagePullPolicy", "nothing is pulled"),
    ("/spec/template/spec/containers/0/securityContext", "pods run as the user of the test"),
    ("/spec/template/spec/containers/0/resources/requests", "there is only one host"),
    ("/spec/template/spec/containers/0/resources/limits/cpu", "pods share the host's cores"),
    ("/spec/template/spec/containers/0/resources/limits/ephemeral-storage", "pods share the host's disk"),
];

/// Rendered objects.
#[derive(Clone, Debug)]
pub struct Manifests(Vec<Value>);

impl Manifests {
    /// Renders a directory with `kubectl` or `kustomize`; `None` (with a message) if neither is installed.
    ///
    /// # Panics
    /// If rendering fails.
    #[must_use]
    pub fn render(folder: &Path) -> Option<Self> {
        let Some((program, arguments)) = renderer() else {
            eprintln!("SKIPPED: rendering manifests needs kubectl 1.27 or kustomize 5");
            return None;
        };
        let output = Command::new(program).args(arguments).arg(folder).output().expect("the renderer starts");
        let output_text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} cannot render {}: {output_text}", folder.display());
        Some(Self::parse(&String::from_utf8_lossy(&output.stdout)).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Parses YAML documents.
    ///
    /// # Errors
    /// Invalid YAML.
    pub fn parse(yaml: &str) -> Result<Self, String> {
        serde_saphyr::from_multiple(yaml).map(Self).map_err(|error| format!("no YAML: {error}"))
    }

    fn object(&self, kind: &str, name: &str) -> Result<&Value, String> {
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        self.0.iter().find(is_it).ok_or_else(|| format!("no object {kind}/{name}"))
    }

    /// Sets one field of an object, like a patch; null removes the field.
    ///
    /// # Panics
    /// If the object or the field's parent does not exist.
    pub fn patch(&mut self, kind: &str, name: &str, pointer: &str, value: Value) {
        let is_it = |object: &&mut Value| object["kind"] == kind && object["metadata"]["name"] == name;
        let object = self.0.iter_mut().find(is_it).unwrap_or_else(|| panic!("no object {kind}/{name}"));
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
        match object.pointer_mut(parent) {
            Some(Value::Object(map)) if value.is_null() => drop(map.remove(key)),
            Some(Value::Object(map)) => drop(map.insert(key.to_owned(), value)),
            Some(Value::Array(list)) if key == "-" => list.push(value),
            other => panic!("{kind}/{name}: {parent} cannot contain {key}: {other:?}"),
        }
    }

    /// Spec of a StatefulSet.
    ///
    /// # Errors
    /// It does not exist or contains an unsupported field.
    pub fn stateful_set(&self, name: &str) -> Result<StatefulSet, String> {
        self.read("StatefulSet", name)
    }

    /// Spec of a Job.
    ///
    /// # Errors
    /// As [`Manifests::stateful_set`].
    pub fn job(&self, name: &str) -> Result<Job, String> {
        self.read("Job", name)
    }

    fn read<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<T, String> {
        let mut object = self.object(kind, name)?.clone();
        for (pointer, _) in IGNORED {
            let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
            if let Some(Value::Object(parent)) = object.pointer_mut(parent) {
                parent.remove(key);
            }
        }
        let not_understood = |error| format!("{kind}/{name}: unsupported by this kubelet: {error}");
        serde_json::from_value(object["spec"].take()).map_err(not_understood)
    }

    /// Returns the entries of a ConfigMap.
    ///
    /// # Errors
    /// It does not exist.
    pub fn config_map(&self, name: &str) -> Result<BTreeMap<String, String>, String> {
        let data = self.object("ConfigMap", name)?["data"].clone();
        serde_json::from_value(data).map_err(|error| format!("ConfigMap/{name}: {error}"))
    }

    /// Returns the decoded entries of a Secret.
    ///
    /// # Errors
    /// It does not exist or is not text.
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

    /// Adds a Secret that another operator would create in a cluster.
    pub fn add_secret(&mut self, name: &str, texts: &BTreeMap<String, String>) {
        let encoded = |text: &String| Value::from(base64::prelude::BASE64_STANDARD.encode(text));
        let data: Map<String, Value> = texts.iter().map(|(key, text)| (key.clone(), encoded(text))).collect();
        self.0.push(serde_json::json!({"kind": "Secret", "metadata": {"name": name}, "data": data}));
    }

    /// Returns the name of the object of this kind with a name prefix, since generated names end in a hash.
    ///
    /// # Errors
    /// No object matches.
    pub fn named(&self, kind: &str, begins: &str) -> Result<&str, String> {
        let mut names = self.0.iter().filter(|o| o["kind"] == kind).filter_map(|o| o["metadata"]["name"].as_str());
        names.find(|name| name.starts_with(begins)).ok_or_else(|| format!("no object {kind}/{begins}…"))
    }
}

fn renderer() -> Option<(&'static str, &'static [&'static str])> {
    let run = |program: &str, arguments: &[&str]| Command::new(program).args(arguments).output().ok();
    if run("kustomize", &["version"]).is_some_and(|output| output.status.success()) {
        return Some(("kustomize", &["build"]));
    }
    let output = run("kubectl", &["version", "--client"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, version) = text.split_once("Kustomize Version: v")?;
    let major: u32 = version.split('.').next()?.parse().ok()?;
    (major >= 5).then_some(("kubectl", &["kustomize"]))
}

/// Spec of a StatefulSet.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StatefulSet {
    /// The headless Service. Without DNS here, pods are reached by address.
    pub service_name: String,
    /// Number of pods; unset if an autoscaler sets it.
    pub replicas: Option<u32>,
    /// Whether pods are started and stopped in order.
    #[serde(default)]
    pub pod_management_policy: PodManagement,
    /// Update strategy.
    pub update_strategy: UpdateStrategy,
    /// Seconds that a pod must be ready before a rollout continues.
    #[serde(default)]
    pub min_ready_seconds: u64,
    /// Retention of the claims of deleted pods.
    pub persistent_volume_claim_retention_policy: Retention,
    /// Pod template.
    pub template: Template,
    /// Volume claim template.
    #[serde(default)]
    pub volume_claim_templates: Vec<ClaimTemplate>,
}

/// Pod management policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PodManagement {
    /// In order, each when the previous one is available.
    #[default]
    OrderedReady,
    /// All at the same time.
    Parallel,
}

/// Update strategy; `OnDelete` is not supported.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum UpdateStrategy {
    /// From the highest ordinal down, one at a time.
    RollingUpdate {
        /// Its parameters.
        #[serde(default)]
        rolling_update: RollingUpdate,
    },
}

/// Parameters of a rolling update.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollingUpdate {
    /// Pods with a lower ordinal are not updated.
    #[serde(default)]
    pub partition: u32,
}

/// Claim retention policy.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    /// When the set is deleted; not exercised here.
    pub when_deleted: Keep,
    /// When the set is scaled down.
    pub when_scaled: Keep,
}

/// Claim retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Keep {
    /// Keeps the claim.
    Retain,
    /// Deletes the claim with its pod.
    Delete,
}

/// Volume claim template.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimTemplate {
    /// Name and labels.
    pub metadata: Named,
    /// Size, class and access mode; not applicable to a directory.
    pub spec: ClaimSpec,
}

/// Spec of a volume claim.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimSpec {
    /// Access modes.
    pub access_modes: Vec<String>,
    /// Size; not enforced here. checks.py compares it with the journal's quota.
    pub resources: Value,
    /// Storage class.
    pub storage_class_name: Option<String>,
}

/// Object metadata.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Name.
    pub name: String,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Spec of a Job.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// Number of retries.
    pub backoff_limit: u32,
    /// Pod template.
    pub template: Template,
}

/// Pod template.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The pod.
    pub spec: PodSpec,
}

/// Spec of a pod.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    /// Containers; exactly one is supported.
    pub containers: [Container; 1],
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Restart policy.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Seconds from deletion to SIGKILL.
    #[serde(default = "thirty")]
    pub termination_grace_period_seconds: u64,
    /// Labels of the nodes on which the pods run: the only node has them all.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Service environment variables; not supported.
    pub enable_service_links: No,
}

/// A boolean that must be false.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "bool")]
pub struct No;

impl TryFrom<bool> for No {
    type Error = &'static str;

    fn try_from(on: bool) -> Result<Self, Self::Error> {
        if on { Err("only false is supported") } else { Ok(Self) }
    }
}

/// Restart policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    /// Always.
    #[default]
    Always,
    /// Unless it exited with 0.
    OnFailure,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Overrides the image's entry point.
    #[serde(default)]
    pub command: Vec<String>,
    /// Overrides the image's command.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// Environment variables from ConfigMaps and Secrets; [`Container::env`] takes precedence.
    #[serde(default)]
    pub env_from: Vec<EnvFrom>,
    /// Ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Lifecycle hooks.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Startup probe.
    pub startup_probe: Option<Probe>,
    /// Readiness probe.
    pub readiness_probe: Option<Probe>,
    /// Liveness probe.
    pub liveness_probe: Option<Probe>,
    /// Resources.
    pub resources: Resources,
    /// Volume mounts.
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Option<String>,
    /// Source of its value.
    pub value_from: Option<ValueFrom>,
}

/// Source of a variable's value.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ValueFrom {
    /// A field of the pod.
    FieldRef {
        /// Path of the field.
        field_path: FieldPath,
    },
    /// An entry of a Secret.
    SecretKeyRef {
        /// Name.
        name: String,
        /// Key or keys.
        key: String,
    },
    /// An entry of a ConfigMap.
    ConfigMapKeyRef {
        /// Name.
        name: String,
        /// Key or keys.
        key: String,
    },
}

/// A field of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum FieldPath {
    /// Its name.
    #[serde(rename = "metadata.name")]
    Name,
    /// Name of its node.
    #[serde(rename = "spec.nodeName")]
    NodeName,
}

/// Environment variables from an object.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum EnvFrom {
    /// All entries of a ConfigMap.
    ConfigMapRef(Named),
    /// All entries of a Secret.
    SecretRef(Named),
}

/// A container port.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Port number.
    pub container_port: u16,
}

/// Lifecycle hooks.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lifecycle {
    /// That.
    pub pre_stop: Option<PreStop>,
}

/// Lifecycle hooks.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PreStop {
    /// Sleeps.
    Sleep {
        /// Seconds.
        seconds: u64,
    },
}

/// A probe.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// The HTTP request.
    pub http_get: HttpGet,
    /// Initial delay in seconds.
    #[serde(default)]
    pub initial_delay_seconds: u64,
    /// Period in seconds.
    #[serde(default = "ten")]
    pub period_seconds: u64,
    /// Timeout in seconds.
    #[serde(default = "one")]
    pub timeout_seconds: u64,
    /// Number of consecutive failures that count.
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

impl Probe {
    /// Period in seconds.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_secs(self.period_seconds)
    }
}

/// An HTTP request of a probe.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpGet {
    /// Path.
    pub path: String,
    /// Name of the port.
    pub port: String,
}

/// Resources of a container.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Limits.
    pub limits: Limits,
}

/// Resource limits.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory.
    pub memory: Bytes,
}

/// An amount of memory in Kubernetes notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Bytes(pub u64);

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |unit: &str, bytes: u64| Some(text.strip_suffix(unit)?.parse::<u64>().ok()? * bytes);
        let found = number("Ki", 1 << 10).or_else(|| number("Mi", 1 << 20)).or_else(|| number("Gi", 1 << 30));
        found.map(Self).ok_or_else(|| format!("invalid memory {text:?}: expected an amount in Ki, Mi or Gi"))
    }
}

/// A volume mount.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// Path.
    pub mount_path: String,
    /// Whether it is read-only; not enforced here.
    #[serde(default)]
    pub read_only: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its source.
    pub source: VolumeSource,
}

impl TryFrom<Map<String, Value>> for Volume {
    type Error = String;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, String> {
        let name = fields.remove("name").and_then(|name| name.as_str().map(ToOwned::to_owned)).ok_or("missing name")?;
        let source =
            serde_json::from_value(Value::Object(fields)).map_err(|error| format!("volume {name}: {error}"))?;
        Ok(Self { name, source })
    }
}

/// Source of a volume.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum VolumeSource {
    /// An empty directory that is deleted with the pod.
    EmptyDir {
        /// Size limit; not enforced here.
        size_limit: Option<String>,
    },
    /// Projected from Secrets.
    Projected {
        /// File mode.
        default_mode: u32,
        /// Name.
        sources: Vec<Projection>,
    },
    /// A Secret.
    Secret {
        /// Name.
        secret_name: String,
        /// File mode.
        default_mode: u32,
        /// Key or keys.
        items: Vec<Item>,
    },
    /// A volume claim.
    PersistentVolumeClaim {
        /// Name.
        claim_name: String,
    },
}

/// One source of a projected volume.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Projection {
    /// A Secret.
    Secret {
        /// Name.
        name: String,
        /// Key or keys.
        items: Vec<Item>,
    },
}

/// An entry as a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Key of the entry.
    pub key: String,
    /// File name.
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
    fn fields_are_parsed() {
        let spec = job(|_| {}).unwrap().template.spec;
        assert_eq!(spec.restart_policy, RestartPolicy::OnFailure);
        assert_eq!(spec.termination_grace_period_seconds, 30, "the default of Kubernetes");
        assert_eq!(spec.containers[0].resources.limits.memory, Bytes(1280 << 20));
        assert_eq!(
            spec.volumes[0].source,
            VolumeSource::PersistentVolumeClaim { claim_name: "data-processor-2".to_owned() }
        );
    }

    #[test]
    fn an_unsupported_field_is_an_error_that_names_it() {
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
    fn a_secret_is_decoded_and_a_missing_one_is_named() {
        let mut manifests =
            Manifests::parse("kind: Secret\nmetadata: { name: s-1 }\ndata:\n  url: |\n    YWJj\n    ZA==\n").unwrap();
        assert_eq!(manifests.secret("s-1").unwrap()["url"], "abcd");
        assert_eq!(manifests.named("Secret", "s-"), Ok("s-1"));
        manifests.add_secret("t", &BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        assert_eq!(manifests.secret("t").unwrap()["k"], "v");
        assert!(manifests.secret("u").unwrap_err().contains("Secret/u"));
    }
}
