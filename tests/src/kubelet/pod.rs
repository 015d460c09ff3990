//! A pod: its directory, ports and process, from start to termination.
//!
//! ```text
//! waiting ─> started ─> ready ─> preStop ─> SIGTERM ─> (grace period over: SIGKILL) ─> terminated
//!    ^          │ exited on its own, or probes failed (then by preStop, SIGTERM, SIGKILL)
//!    └──────────┘ backoff
//! ```
//!
//! The owner calls [`Pod::step`] repeatedly; nothing here blocks.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::manifest::{Container, EnvFrom, FieldPath, Item, Manifests, PodSpec, Probe, Projection, ValueFrom};
use super::manifest::{PreStop, VolumeSource};
use crate::client::{agent, get};
use crate::process::{Exit, Server, binary, command_of, free_addr};

/// First restart delay of a container that keeps exiting; it doubles with each restart.
const BACK_OFF: Duration = Duration::from_secs(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// Minimum time to terminate if preStop used up the grace period.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// A pod's environment.
#[derive(Clone, Debug)]
pub struct World {
    /// The image.
    pub image: Image,
    /// Services by `name:port`, with their address on this host.
    pub services: BTreeMap<String, SocketAddr>,
}

/// Configuration of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    entry_point: Vec<String>,
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
}

impl Image {
    /// Parses the final stage of a Dockerfile.
    ///
    /// # Errors
    /// It has no stage, or uses an unsupported form.
    pub fn read(dockerfile: &str) -> Result<Self, String> {
        let (_, stage) = dockerfile.rsplit_once("\nFROM ").ok_or("no FROM")?;
        let list = |text: &str| serde_json::from_str(text).map_err(|error| format!("{text}: {error}"));
        let mut image = Self::default();
        for line in stage.lines() {
            match line.split_once(' ') {
                Some(("ENTRYPOINT", text)) => image.entry_point = list(text)?,
                Some(("CMD", text)) => image.arguments = list(text)?,
                Some(("ENV", text)) => {
                    let (name, value) = text.split_once('=').ok_or_else(|| format!("{line}: missing value"))?;
                    image.env.insert(name.to_owned(), value.to_owned());
                }
                _ => {}
            }
        }
        if image.entry_point.is_empty() { Err("no ENTRYPOINT".to_owned()) } else { Ok(image) }
    }
}

/// Translates a pod's spec to a process on this host. All differences from a cluster are here:
///
/// | in the manifest | here |
/// |---|---|
/// | the image | the program under test |
/// | `0.0.0.0:PORT` of a declared port | a free port of the loopback, the pod's own |
/// | a path below a mount | the same path below the volume's directory |
/// | `SERVICE:PORT` | the server's loopback address |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
    ports: BTreeMap<String, SocketAddr>,
}

impl Plan {
    /// Creates the pod's directory with the contents of its volumes, and returns the command to run.
    ///
    /// # Errors
    /// The spec references a missing object or field.
    pub fn of(
        name: &str,
        spec: &PodSpec,
        objects: &Manifests,
        claims: &BTreeMap<String, PathBuf>,
        world: &World,
        dir: &Path,
    ) -> Result<Self, String> {
        let [container] = &spec.containers;
        let mut mounts = Vec::new();
        for mount in &container.volume_mounts {
            let path = match spec.volumes.iter().find(|volume| volume.name == mount.name) {
                Some(volume) => directory(&volume.source, objects, claims, &dir.join(&volume.name))?,
                None => claim(claims, &mount.name)?,
            };
            mounts.push((mount.mount_path.clone(), path));
        }
        let ports: Vec<_> =
            container.ports.iter().map(|port| (port.name.clone(), port.container_port, free_addr())).collect();
        let here = Translation { mounts, ports: &ports, services: &world.services };
        let (program, rest) = world.image.entry_point.split_first().ok_or("the image has no entry point")?;
        let arguments = match container.command.split_first() {
            None if container.args.is_empty() => [rest, &world.image.arguments].concat(),
            None => [rest, &container.args].concat(),
            Some((first, command)) if first == program => [command, &container.args].concat(),
            Some((first, _)) => return Err(format!("{name}: the image contains only {program}, not {first}")),
        };
        let arguments = arguments.iter().map(|argument| here.translate(argument)).collect::<Result<_, _>>()?;
        let mut env = world.image.env.clone();
        env.extend(variables(name, container, objects)?);
        for value in env.values_mut() {
            *value = here.translate(value)?;
        }
        // Files can contain addresses too.
        for (_, path) in &here.mounts {
            if path.starts_with(dir) {
                translate_files(path, &here)?;
            }
        }
        let ports = ports.into_iter().map(|(name, _, addr)| (name, addr)).collect();
        Ok(Self { arguments, env, ports })
    }

    /// Returns the address of a named port.
    ///
    /// # Panics
    /// If the port does not exist.
    #[must_use]
    pub fn port(&self, name: &str) -> SocketAddr {
        *self.ports.get(name).unwrap_or_else(|| panic!("unknown port {name:?}: expected one of {:?}", self.ports))
    }

    /// Returns a command with this pod's configuration and other arguments.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        command_of(binary(), self.env.iter(), "", arguments)
    }

    /// Returns the container's command.
    #[must_use]
    pub fn own_command(&self) -> std::process::Command {
        self.command(&self.arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn claim(claims: &BTreeMap<String, PathBuf>, name: &str) -> Result<PathBuf, String> {
    claims.get(name).cloned().ok_or_else(|| format!("no volume or claim {name}"))
}

/// Creates and fills a volume's directory.
fn directory(
    source: &VolumeSource,
    objects: &Manifests,
    claims: &BTreeMap<String, PathBuf>,
    dir: &Path,
) -> Result<PathBuf, String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", dir.display());
    if let VolumeSource::PersistentVolumeClaim { claim_name } = source {
        return claim(claims, claim_name);
    }
    fs::create_dir_all(dir).map_err(wrong)?;
    let fill = |secret: &str, items: &[Item], mode: u32| {
        let texts = objects.secret(secret)?;
        for Item { key, path } in items {
            let text = texts.get(key).ok_or_else(|| format!("Secret/{secret} has no {key}"))?;
            let file = dir.join(path);
            fs::write(&file, text).map_err(wrong)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).map_err(wrong)?;
        }
        Ok::<(), String>(())
    };
    match source {
        VolumeSource::Projected { default_mode, sources } => {
            for Projection::Secret { name, items } in sources {
                fill(name, items, *default_mode)?;
            }
        }
        VolumeSource::Secret { secret_name, default_mode, items } => fill(secret_name, items, *default_mode)?,
        VolumeSource::EmptyDir { .. } | VolumeSource::PersistentVolumeClaim { .. } => {}
    }
    Ok(dir.to_owned())
}

fn variables(name: &str, container: &Container, objects: &Manifests) -> Result<BTreeMap<String, String>, String> {
    let of = |texts: BTreeMap<String, String>, key: &str, what: &str| {
        texts.get(key).cloned().ok_or_else(|| format!("{what} has no {key}"))
    };
    let mut env = BTreeMap::from([("HOSTNAME".to_owned(), name.to_owned())]);
    for source in &container.env_from {
        env.extend(match source {
            EnvFrom::ConfigMapRef(map) => objects.config_map(&map.name)?,
            EnvFrom::SecretRef(secret) => objects.secret(&secret.name)?,
        });
    }
    for variable in &container.env {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), None) => value.clone(),
            (None, None) => String::new(),
            (None, Some(ValueFrom::FieldRef { field_path: FieldPath::Name })) => name.to_owned(),
            (None, Some(ValueFrom::FieldRef { field_path: FieldPath::NodeName })) => "this-host".to_owned(),
            (None, Some(ValueFrom::SecretKeyRef { name, key })) => of(objects.secret(name)?, key, name)?,
            (None, Some(ValueFrom::ConfigMapKeyRef { name, key })) => of(objects.config_map(name)?, key, name)?,
            (Some(_), Some(_)) => return Err(format!("{} has two values", variable.name)),
        };
        env.insert(variable.name.clone(), value);
    }
    Ok(env)
}

struct Translation<'a> {
    mounts: Vec<(String, PathBuf)>,
    ports: &'a [(String, u16, SocketAddr)],
    services: &'a BTreeMap<String, SocketAddr>,
}

impl Translation<'_> {
    fn translate(&self, text: &str) -> Result<String, String> {
        if let Some(port) = text.strip_prefix("0.0.0.0:") {
            let declared = self.ports.iter().find(|(_, number, _)| number.to_string() == port);
            let (_, _, addr) =
                declared.ok_or_else(|| format!("it listens on {text}, which is not one of its ports"))?;
            return Ok(addr.to_string());
        }
        for (mount, path) in &self.mounts {
            match text.strip_prefix(mount.as_str()) {
                Some("") => return Ok(path.display().to_string()),
                Some(rest) if rest.starts_with('/') => return Ok(format!("{}{rest}", path.display())),
                _ => {}
            }
        }
        Ok(self.services(text))
    }

    /// Replaces whole names only: not preceded by a letter or another character of a name, and not followed by a digit.
    fn services(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (service, addr) in self.services {
            let mut from = 0;
            while let Some(at) = text[from..].find(service).map(|at| at + from) {
                let before = text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.');
                let behind = text[at + service.len()..].starts_with(|c: char| c.is_ascii_digit());
                let with = if before || behind { service.clone() } else { addr.to_string() };
                text.replace_range(at..at + service.len(), &with);
                from = at + with.len();
            }
        }
        text
    }
}

fn translate_files(dir: &Path, here: &Translation<'_>) -> Result<(), String> {
    for (path, bytes) in crate::scenario::files(dir) {
        let text = String::from_utf8_lossy(&bytes);
        let translated = here.services(&text);
        if translated != text {
            let mode = fs::metadata(&path).map_err(|error| error.to_string())?.permissions();
            fs::remove_file(&path).and_then(|()| fs::write(&path, translated)).map_err(|error| error.to_string())?;
            fs::set_permissions(&path, mode).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Why a container was terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It exited on its own.
    Exited,
    /// The pod was deleted.
    Deleted,
    /// A probe failed too often.
    Unhealthy,
}

/// Termination of a container.
#[derive(Clone, Debug)]
pub struct End {
    /// Name of the pod.
    pub pod: String,
    /// Revision of the pod.
    pub revision: u32,
    /// Why it was terminated.
    pub reason: EndReason,
    /// How.
    pub exit: Exit,
    /// Its output.
    pub log: String,
}

/// A pod.
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: u32,
    spec: Rc<PodSpec>,
    plan: Plan,
    dir: PathBuf,
    state: State,
    deleted: Option<Instant>,
    starts: u32,
    memory_peak: u64,
}

enum State {
    Waiting(Instant),
    Running(Box<Running>),
    Gone,
}

struct Running {
    server: Server,
    startup: RunningProbe,
    readiness: RunningProbe,
    liveness: RunningProbe,
    ready_since: Option<Instant>,
    ending: Option<Ending>,
}

struct Ending {
    reason: EndReason,
    sigterm_at: Instant,
    sigkill_at: Instant,
    sigterm_sent: bool,
}

impl Pod {
    /// Creates a pod that starts with its next step.
    #[must_use]
    pub fn new(name: &str, revision: u32, spec: Rc<PodSpec>, plan: Plan, dir: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            revision,
            spec,
            plan,
            dir,
            state: State::Waiting(Instant::now()),
            deleted: None,
            starts: 0,
            memory_peak: 0,
        }
    }

    fn container(&self) -> &Container {
        let [container] = &self.spec.containers;
        container
    }

    /// Its translation to this host.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its process, if it is running.
    pub fn server(&mut self) -> Option<&mut Server> {
        match &mut self.state {
            State::Running(running) => Some(&mut running.server),
            _ => None,
        }
    }

    /// Peak memory observed, and the limit.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        (self.memory_peak, self.container().resources.limits.memory.0)
    }

    /// When it became ready; `None` if it is not ready.
    #[must_use]
    pub fn ready_since(&self) -> Option<Instant> {
        match &self.state {
            State::Running(running) => running.ready_since,
            _ => None,
        }
    }

    /// When it was deleted; `None` if it was not.
    #[must_use]
    pub fn deleted_since(&self) -> Option<Instant> {
        self.deleted
    }

    /// Returns whether it was deleted and its process has exited.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// Returns whether it is being terminated, or was never ready so far.
    #[must_use]
    pub fn is_away(&self) -> bool {
        let was_ready = matches!(&self.state, State::Running(running) if running.readiness.succeeded);
        self.deleted.is_some() || !was_ready
    }

    /// Deletes it: preStop, SIGTERM, and SIGKILL at the end of the grace period.
    pub fn delete(&mut self) {
        if self.deleted.is_none() {
            self.deleted = Some(Instant::now());
            self.end(EndReason::Deleted);
        }
    }

    /// Kills its process, like the kernel's OOM killer. It will be restarted.
    pub fn kill_process(&mut self) {
        if let Some(server) = self.server() {
            server.kill();
        }
    }

    fn end(&mut self, reason: EndReason) {
        let now = Instant::now();
        let grace = Duration::from_secs(self.spec.termination_grace_period_seconds);
        let pre_stop = match self.container().lifecycle.pre_stop {
            Some(PreStop::Sleep { seconds }) => Duration::from_secs(seconds),
            None => Duration::ZERO,
        };
        let sigterm_at = now + pre_stop.min(grace);
        let sigkill_at = (now + grace).max(sigterm_at + LAST_GRACE);
        if let State::Running(running) = &mut self.state {
            match &mut running.ending {
                Some(ending) => ending.reason = reason,
                None => running.ending = Some(Ending { reason, sigterm_at, sigkill_at, sigterm_sent: false }),
            }
        }
    }

    /// Advances the state. Returns a termination if a container has exited.
    pub fn step(&mut self) -> Option<End> {
        let now = Instant::now();
        match &mut self.state {
            State::Waiting(_) if self.deleted.is_some() => self.state = State::Gone,
            State::Waiting(until) if now >= *until => self.start(now),
            State::Running(running) => match running.server.exited() {
                Some(exit) => return Some(self.ended(exit, now)),
                None => self.look_after(now),
            },
            State::Waiting(_) | State::Gone => {}
        }
        None
    }

    fn start(&mut self, now: Instant) {
        self.starts += 1;
        let log = self.dir.join(format!("{}.log", self.starts));
        let server = Server::spawn(self.plan.own_command(), self.plan.port("http"), self.plan.port("admin"), log);
        let running_probe = |probe: &Option<Probe>| {
            let delay = probe.as_ref().map_or(0, |probe| probe.initial_delay_seconds);
            RunningProbe {
                due: now + Duration::from_secs(delay),
                answer: None,
                failures: 0,
                succeeded: probe.is_none(),
            }
        };
        let container = self.container();
        let running = Running {
            server,
            startup: running_probe(&container.startup_probe),
            readiness: running_probe(&container.readiness_probe),
            liveness: running_probe(&container.liveness_probe),
            ready_since: None,
            ending: None,
        };
        self.state = State::Running(Box::new(running));
    }

    fn ended(&mut self, exit: Exit, now: Instant) -> End {
        let State::Running(running) = &self.state else { unreachable!("the pod was running") };
        let reason = running.ending.as_ref().map_or(EndReason::Exited, |ending| ending.reason);
        let log = running.server.log_text();
        let back_off = match self.starts {
            0 | 1 => Duration::ZERO,
            starts => BACK_OFF.saturating_mul(1 << (starts - 2).min(16)).min(BACK_OFF_MAX),
        };
        self.state = if self.deleted.is_some() { State::Gone } else { State::Waiting(now + back_off) };
        End { pod: self.name.clone(), revision: self.revision, reason, exit, log }
    }

    fn look_after(&mut self, now: Instant) {
        let spec = self.spec.clone();
        let [container] = &spec.containers;
        let plan = &self.plan;
        let State::Running(running) = &mut self.state else { return };
        let mut ask = |running_probe: &mut RunningProbe, probe: &Option<Probe>| {
            let probe = probe.as_ref()?;
            let answer = running_probe.ask(probe, plan.port(&probe.http_get.port), now)?;
            self.memory_peak = self.memory_peak.max(running.server.memory_bytes().1);
            Some(answer)
        };
        if !running.startup.succeeded {
            if running.ending.is_none() && ask(&mut running.startup, &container.startup_probe) == Some(Health::Failed) {
                return self.end(EndReason::Unhealthy);
            }
            // The readiness probe runs as soon as the container has started.
            running.readiness.due = now;
        } else {
            match ask(&mut running.readiness, &container.readiness_probe) {
                Some(Health::Good) => running.ready_since = running.ready_since.or(Some(now)),
                Some(Health::Failed) => running.ready_since = None,
                Some(Health::Failing) | None => {}
            }
            if running.ending.is_none() && ask(&mut running.liveness, &container.liveness_probe) == Some(Health::Failed)
            {
                return self.end(EndReason::Unhealthy);
            }
        }
        if let Some(ending) = &mut running.ending {
            if !ending.sigterm_sent && now >= ending.sigterm_at {
                ending.sigterm_sent = true;
                running.server.signal(libc::SIGTERM);
            }
            if now >= ending.sigkill_at {
                running.server.signal(libc::SIGKILL);
            }
        }
    }
}

/// State of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Good,
    /// Failed, but not often enough to count.
    Failing,
    Failed,
}

/// A running probe. Each request has its own thread, since a response may never arrive.
struct RunningProbe {
    due: Instant,
    answer: Option<Receiver<bool>>,
    failures: u32,
    succeeded: bool,
}

impl RunningProbe {
    /// Returns a result if one has arrived; sends a request when one is due.
    fn ask(&mut self, probe: &Probe, addr: SocketAddr, now: Instant) -> Option<Health> {
        if let Some(answer) = &self.answer {
            let good = match answer.try_recv() {
                Ok(good) => good,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => false,
            };
            self.answer = None;
            if good {
                self.failures = 0;
                self.succeeded = true;
                return Some(Health::Good);
            }
            self.failures += 1;
            return Some(if self.failures >= probe.failure_threshold { Health::Failed } else { Health::Failing });
        }
        if now >= self.due {
            self.due = now + probe.period();
            let (tell, answer) = channel();
            let url = format!("http://{addr}{}", probe.http_get.path);
            let within = Duration::from_secs(probe.timeout_seconds);
            std::thread::spawn(move || {
                let good = get(&agent(within), &url).is_ok_and(|answer| (200..400).contains(&answer.status));
                let _ = tell.send(good);
            });
            self.answer = Some(answer);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_configured_by_the_final_stage_of_the_dockerfile() {
        let text =
            "FROM a AS b\nENTRYPOINT [\"/no\"]\n\nFROM scratch\nENV A=b\nENTRYPOINT [\"/logweir\"]\nCMD [\"run\"]\n";
        let image = Image::read(text).unwrap();
        assert_eq!((image.entry_point, image.arguments), (vec!["/logweir".to_owned()], vec!["run".to_owned()]));
        assert_eq!(image.env["A"], "b");
        assert!(Image::read("FROM a\n").is_err());
    }

    #[test]
    fn addresses_paths_and_services_are_translated_to_this_host() {
        let addr: SocketAddr = "127.0.0.1:4711".parse().unwrap();
        let here = Translation {
            mounts: vec![("/var/lib/logweir".to_owned(), PathBuf::from("/tmp/claim"))],
            ports: &[("http".to_owned(), 8080, addr)],
            services: &BTreeMap::from([("redis:6379".to_owned(), addr)]),
        };
        for (text, translated) in [
            ("0.0.0.0:8080", "127.0.0.1:4711"),
            ("/var/lib/logweir", "/tmp/claim"),
            ("/var/lib/logweir/x", "/tmp/claim/x"),
            ("/var/lib/logweirs", "/var/lib/logweirs"),
            ("redis://:p@redis:6379", "redis://:p@127.0.0.1:4711"),
            ("redis://not-redis:6379,redis:63790", "redis://not-redis:6379,redis:63790"),
        ] {
            assert_eq!(here.translate(text).as_deref(), Ok(translated));
        }
        assert!(here.translate("0.0.0.0:9").unwrap_err().contains("not one of its ports"));
    }
}
