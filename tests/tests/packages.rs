//! The packages that `deploy/packages/build` makes from this program. The `.deb` is installed in a clean Debian that its own
//! systemd has booted in namespaces, run by the unit, upgraded, removed and purged; the `.rpm` is installed, upgraded and removed
//! in such a directory without booting it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use logweir_tests::disk::may_mount;
use logweir_tests::installed::{installed, run};
use logweir_tests::process::{Settings, binary, command};
use tempfile::TempDir;

/// How long something may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Highest exposure, in tenths (at most 100), that `systemd-analyze security` may report.
const EXPOSURE_MAX: &str = "15";
/// The first and the second version that are installed.
const VERSIONS: [&str; 2] = ["0.1.0", "0.2.0"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository is above its tests")
}

/// Whether these programs exist; says which one does not.
fn have(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let exists = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing = programs.iter().find(|program| !exists(program));
    if let Some(missing) = missing {
        eprintln!("skipped: no {missing}");
    }
    missing.is_none()
}

/// Runs a command that must succeed, and returns what it prints.
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text + &*errors
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out after {PATIENCE:?} waiting for: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A folder with the packages of both versions, made once by the script that makes a release's. A version whose tool is
/// missing is not in it.
fn packages() -> &'static Path {
    static PACKAGES: OnceLock<TempDir> = OnceLock::new();
    let made = PACKAGES.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        // A release's program is stripped as well, and nine tenths of this one are debug information.
        let program = dir.path().join("logweir");
        output(Command::new("strip").arg("-o").arg(&program).arg(binary()));
        for version in VERSIONS {
            let mut build = Command::new(repository().join("deploy/packages/build"));
            output(build.arg(&program).arg(dir.path()).env("VERSION", version).env("FAST", "1"));
        }
        dir
    });
    made.path()
}

fn package(version: &str, ends: &str) -> PathBuf {
    let mut found: Vec<_> =
        fs::read_dir(packages()).expect("the packages").flatten().map(|entry| entry.path()).collect();
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains(version) && name.ends_with(ends)
    });
    assert_eq!(found.len(), 1, "{version} {ends}: {found:?}");
    found.remove(0)
}

/// The unit with the program of the tests, which is where it is installed otherwise.
fn unit(dir: &Path) -> PathBuf {
    let text = fs::read_to_string(repository().join("deploy/systemd/logweir.service")).expect("the unit");
    let path = dir.join("logweir.service");
    let text = text.replace("/usr/bin/logweir", &binary().display().to_string());
    fs::write(&path, text).expect("a copy of the unit");
    path
}

#[test]
fn the_unit_is_valid_and_exposes_little() {
    if !have(&["systemd-analyze"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let unit = unit(dir.path());
    let found = output(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
    assert_eq!(found, "", "systemd-analyze verify");
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let security = ["security", "--offline=yes", "--no-pager", &threshold];
    output(Command::new("systemd-analyze").args(security).arg(&unit));
    // Without its confinement the same check fails.
    let text = fs::read_to_string(&unit).expect("the unit");
    fs::write(&unit, text.replace("SystemCallFilter=", "#").replace("CapabilityBoundingSet=\n", "\n"))
        .expect("the unit");
    let status = Command::new("systemd-analyze").args(security).arg(&unit).stdout(Stdio::null()).status();
    assert!(!status.expect("systemd-analyze starts").success(), "an unconfined unit passes");
}

#[test]
fn the_unit_waits_for_the_shutdown_of_the_installed_configuration() {
    let settings = Settings::from([("config".into(), config().display().to_string())]);
    let printed = output(&mut command(&settings, "", &["validate", "--print"]));
    let shutdown = printed.split_once("[shutdown]").map_or("", |(_, rest)| rest);
    let seconds = |key: &str| -> u64 {
        let line =
            shutdown.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {printed}"));
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        let number: u64 = digits.parse().expect("a number");
        assert!(number == 0 || line.contains("s\""), "{key} is not in seconds: {line}");
        number
    };
    let text = fs::read_to_string(repository().join("deploy/systemd/logweir.service")).expect("the unit");
    let timeout =
        text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s')).expect("seconds");
    let timeout: u64 = timeout.parse().expect("a number");
    assert!(timeout > seconds("linger_ms") + seconds("deadline_ms") + 5, "TimeoutStopSec={timeout}s is too short");
}

fn config() -> PathBuf {
    repository().join("deploy/packages/logweir.toml")
}

/// A Debian that was booted by its own systemd; killed on drop.
struct Machine {
    root: TempDir,
    cgroup: PathBuf,
    unshare: Child,
    init: String,
}

impl Machine {
    /// Boots a copy of `archive`, the root directory of a Debian.
    fn boot(archive: &Path) -> Self {
        let root = unpacked(archive);
        let cgroup = cgroup().join(format!("logweir-packages-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("a cgroup");
        let log = fs::File::create(root.path().join("boot.log")).expect("a file");
        let mut boot = Command::new(repository().join("tests/deploy/boot"));
        boot.arg(root.path()).arg(&cgroup).stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let mut unshare = boot.spawn().expect("sh starts");
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut init = String::new();
        until("the first process", || {
            init = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            assert!(unshare.try_wait().expect("a child").is_none(), "{}", boot_log(&root));
            !init.is_empty()
        });
        let machine = Self { root, cgroup, unshare, init };
        until("the boot", || {
            let state = machine.command("systemctl", &["is-system-running"]).output().expect("nsenter starts").stdout;
            ["running\n", "degraded\n"].iter().any(|booted| state == booted.as_bytes())
        });
        machine
    }

    /// A command in the machine.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--all", "--root", "--wd", program]).args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed, and returns what it prints.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        output(&mut self.command(program, arguments))
    }

    /// Whether a command succeeds.
    fn succeeds(&self, program: &str, arguments: &[&str]) -> bool {
        self.command(program, arguments).output().expect("nsenter starts").status.success()
    }

    /// Runs a line of shell.
    fn sh(&self, line: &str) -> String {
        self.run("sh", &["-ec", line])
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside.trim_start_matches('/'))
    }

    fn exists(&self, inside: &str) -> bool {
        self.path(inside).symlink_metadata().is_ok()
    }

    /// Installs or upgrades.
    fn install(&self, deb: &Path) -> String {
        fs::copy(deb, self.path("/root/logweir.deb")).expect("a copy of the package");
        // As apt does it: the configuration that an administrator has changed stays.
        self.run("dpkg", &["--force-confold", "--install", "/root/logweir.deb"])
    }

    /// A property of the service.
    fn service(&self, property: &str) -> String {
        self.run("systemctl", &["show", "--value", "--property", property, "logweir.service"]).trim().to_owned()
    }

    /// Waits until the server accepts records.
    fn ready(&self) {
        until("the server", || self.succeeds("logweir", &["health", "--ready"]));
    }

    /// Stores a record.
    fn send(&self, message: &str) {
        self.sh(&format!("echo level=warn msg={message} | logweir produce --quiet --ack committed -"));
    }

    fn has(&self, message: &str) -> bool {
        self.run("logweir", &["query", message]).contains(message)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With it dies the first process, and with that every other.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let empty = ["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"];
        until("the end of its processes", || {
            let _ = Command::new("find").arg(&self.cgroup).args(empty).stderr(Stdio::null()).status();
            !self.cgroup.exists()
        });
    }
}

fn boot_log(root: &TempDir) -> String {
    fs::read_to_string(root.path().join("boot.log")).unwrap_or_default()
}

/// This process' own cgroup (v2).
fn cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount =
        mounts.find_map(|fields| (fields[2] == "cgroup2").then(|| fields[1].to_owned())).expect("a cgroup2 mount");
    let own = fs::read_to_string("/proc/self/cgroup").expect("procfs");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup");
    Path::new(&mount).join(own)
}

/// A minimal Debian with systemd, made once below the target directory.
fn debian() -> Option<PathBuf> {
    let below = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let made = installed(below, "debian", "bookworm systemd", |dir| {
        fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        run(Command::new("mmdebstrap")
            .args(["--variant=minbase", "--include=systemd,systemd-sysv", "bookworm"])
            .arg(dir.join("root.tar")))
    })?;
    Some(made.join("root.tar"))
}

fn unpacked(archive: &Path) -> TempDir {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    output(Command::new("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(root.path()));
    root
}

#[test]
fn the_deb_is_installed_run_upgraded_removed_and_purged() {
    if !may_mount() {
        eprintln!("skipped: booting a root directory needs root");
        return;
    }
    if !have(&["cargo-deb", "mmdebstrap", "dpkg-deb", "unshare", "nsenter", "pivot_root"]) {
        return;
    }
    let Some(archive) = debian() else { return };
    let [first, second] = VERSIONS.map(|version| package(version, ".deb"));
    let machine = Machine::boot(&archive);
    machine.install(&first);
    machine.ready();
    is_installed(&machine);
    is_confined(&machine);
    machine.send("first");
    assert!(machine.has("first"));
    is_restarted_after_a_crash_but_not_with_a_wrong_configuration(&machine);

    // An upgrade keeps the configuration and the data, and restarts the service.
    machine.sh("echo '# changed by the administrator' >> /etc/logweir/logweir.toml");
    let before = machine.service("MainPID");
    machine.install(&second);
    machine.ready();
    assert_ne!(machine.service("MainPID"), before, "the old program still runs");
    assert!(machine.has("first"));
    assert!(machine.sh("cat /etc/logweir/logweir.toml").ends_with("# changed by the administrator\n"));
    assert_eq!(machine.sh("stat --format %U:%G:%a /etc/logweir/logweir.toml"), "root:logweir:640\n");

    // SIGTERM: everything is in the database, and the journal is sealed.
    machine.send("second");
    machine.run("systemctl", &["stop", "logweir"]);
    assert_eq!((machine.service("Result"), machine.service("ExecMainStatus")), ("success".into(), "0".into()));
    assert!(machine.run("logweir", &["journal", "check"]).contains("sealed: the last run shut down cleanly"));
    machine.run("systemctl", &["start", "logweir"]);

    // Removal stops the service, and keeps configuration and data.
    machine.run("dpkg", &["--remove", "logweir"]);
    assert!(!machine.succeeds("systemctl", &["is-active", "logweir"]));
    assert!(!machine.exists("/usr/bin/logweir"));
    assert!(machine.exists("/etc/logweir/logweir.toml"));

    // A purge deletes the configuration; data it keeps, and says so. The next installation continues with it.
    let said = machine.run("dpkg", &["--purge", "logweir"]);
    assert!(said.contains("logweir: kept /var/lib/logweir") && said.contains("rm -r /var/lib/logweir"), "{said}");
    for gone in
        ["/etc/logweir", "/etc/systemd/system/multi-user.target.wants/logweir.service", "/usr/share/doc/logweir"]
    {
        assert!(!machine.exists(gone), "{gone} is left after a purge");
    }
    machine.install(&second);
    machine.ready();
    assert!(machine.has("first") && machine.has("second"));
    machine.sh("systemctl stop logweir && rm -r /var/lib/logweir/*");
    let said = machine.run("dpkg", &["--purge", "logweir"]);
    assert!(!said.contains("kept") && !machine.exists("/var/lib/logweir"), "{said}");
}

fn is_installed(machine: &Machine) {
    let expected = "\
root:root:755 /usr/bin/logweir
root:root:755 /etc/logweir
root:logweir:640 /etc/logweir/logweir.toml
root:root:644 /usr/lib/systemd/system/logweir.service
root:root:644 /usr/lib/sysusers.d/logweir.conf
root:root:644 /usr/share/man/man1/logweir.1.gz
root:root:644 /usr/share/man/man1/logweir-query.1.gz
root:root:644 /usr/share/doc/logweir/copyright
root:root:644 /usr/share/doc/logweir/changelog.gz
root:root:644 /usr/share/doc/logweir/changelog.Debian.gz
root:root:644 /usr/share/bash-completion/completions/logweir
root:root:644 /usr/share/zsh/vendor-completions/_logweir
root:root:644 /usr/share/fish/vendor_completions.d/logweir.fish
logweir:logweir:750 /var/lib/logweir
logweir:logweir:640 /var/lib/logweir/logweir.db
";
    let paths: Vec<&str> = expected.lines().filter_map(|line| line.split_once(' ').map(|(_, path)| path)).collect();
    assert_eq!(machine.run("stat", &[&["--format", "%U:%G:%a %n"], &*paths].concat()), expected);
    assert_eq!(
        machine.run("dpkg-query", &["--show", "--showformat", "${Conffiles}", "logweir"]).split_whitespace().next(),
        Some("/etc/logweir/logweir.toml")
    );
    assert_eq!(machine.run("systemctl", &["is-enabled", "logweir"]), "enabled\n");
    assert!(machine.succeeds("sh", &["-c", "! setpriv --reuid nobody --clear-groups cat /etc/logweir/logweir.toml"]));
}

/// What systemd has taken from the process.
fn is_confined(machine: &Machine) {
    let pid = machine.service("MainPID");
    let status = machine.sh(&format!("cat /proc/{pid}/status"));
    let field = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {status}"));
        line.trim().to_owned()
    };
    for capabilities in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    let user = machine.sh("id --user logweir").trim().to_owned();
    assert!(field("Uid:").split_whitespace().all(|uid| uid == user), "{status}");
    let mounts = machine.sh(&format!("cat /proc/{pid}/mountinfo"));
    let writable = |path: &str| {
        let mut at = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| fields[4] == path);
        at.next_back().map(|fields| fields[5].split(',').any(|option| option == "rw"))
    };
    assert_eq!((writable("/"), writable("/var/lib/logweir")), (Some(false), Some(true)), "{mounts}");
}

fn is_restarted_after_a_crash_but_not_with_a_wrong_configuration(machine: &Machine) {
    let before = machine.service("MainPID");
    machine.run("systemctl", &["kill", "--signal=KILL", "logweir"]);
    until("a restart", || !["0".into(), before.clone()].contains(&machine.service("MainPID")));
    machine.ready();
    assert!(machine.has("first"));
    machine.sh("sed -i '1i lanes = \"many\"' /etc/logweir/logweir.toml");
    machine.run("systemctl", &["restart", "logweir"]);
    until("the end of the program", || machine.service("ActiveState") == "failed");
    assert_eq!((machine.service("ExecMainStatus"), machine.service("NRestarts")), ("78".into(), "0".into()));
    machine.sh("sed -i 1d /etc/logweir/logweir.toml && systemctl restart logweir");
    machine.ready();
}

#[test]
fn lintian_finds_nothing() {
    if !have(&["cargo-deb", "lintian"]) {
        return;
    }
    let deb = package(VERSIONS[0], ".deb");
    let found = output(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(deb));
    assert_eq!(found, "");
}

#[test]
fn the_rpm_has_the_same_files_and_its_scripts_start_and_stop_the_service() {
    if !have(&["cargo-generate-rpm", "rpm"]) {
        return;
    }
    let rpm = package(VERSIONS[0], ".rpm");
    let query =
        |arguments: &[&str]| output(Command::new("rpm").args(["--query", "--package"]).args(arguments).arg(&rpm));
    let files = query(&[
        "--queryformat",
        "[%{FILEUSERNAME}:%{FILEGROUPNAME}:%{FILEMODES:octal} %{FILENAMES} %{FILEFLAGS:fflags}\n]",
    ]);
    for file in [
        "root:root:100755 /usr/bin/logweir ",
        "root:logweir:100640 /etc/logweir/logweir.toml cn",
        "root:root:100644 /usr/lib/systemd/system/logweir.service ",
        "root:root:100644 /usr/lib/sysusers.d/logweir.conf ",
        "root:root:100644 /usr/share/licenses/logweir/LICENSE ",
        "root:root:100644 /usr/share/man/man1/logweir.1.gz d",
        "root:root:100644 /usr/share/man/man1/logweir-query.1.gz d",
        "root:root:100644 /usr/share/bash-completion/completions/logweir ",
        "root:root:100644 /usr/share/zsh/site-functions/_logweir ",
        "root:root:100644 /usr/share/fish/vendor_completions.d/logweir.fish ",
    ] {
        assert!(files.lines().any(|line| line.starts_with(file)), "{file:?} is not in\n{files}");
    }
    assert_eq!(
        query(&["--queryformat", "%{NAME} %{VERSION} %{LICENSE}"]),
        format!("logweir {} Apache-2.0", VERSIONS[0])
    );
    let scripts = query(&["--scripts"]);
    for script in
        ["systemd-sysusers", "preset logweir.service", "disable --now logweir.service", "try-restart logweir.service"]
    {
        assert!(scripts.contains(script), "{script:?} is not in\n{scripts}");
    }
    let user = fs::read_to_string(repository().join("deploy/systemd/logweir.sysusers")).expect("the user");
    let user = user.lines().find(|line| line.starts_with("u ")).expect("a user");
    assert!(scripts.contains(user), "the script creates another user than {user:?}:\n{scripts}");
}

#[test]
fn the_rpm_is_installed_upgraded_and_removed() {
    if !may_mount() {
        eprintln!("skipped: installing into a root directory needs root");
        return;
    }
    if !have(&["cargo-generate-rpm", "rpm", "mmdebstrap"]) {
        return;
    }
    let Some(archive) = debian() else { return };
    let root = unpacked(&archive);
    let rpm = |action: &str, package: &Path| {
        // Its dependencies are there, but rpm knows none of Debian's packages.
        output(Command::new("rpm").arg("--root").arg(root.path()).args([action, "--nodeps"]).arg(package))
    };
    let sh = |line: &str| output(Command::new("chroot").arg(root.path()).args(["sh", "-ec", line]));
    let [first, second] = VERSIONS.map(|version| package(version, ".rpm"));
    rpm("--install", &first);
    assert_eq!(sh("stat --format %U:%G:%a /etc/logweir/logweir.toml"), "root:logweir:640\n");
    assert_eq!(sh("systemctl is-enabled logweir"), "enabled\n", "Debian's preset enables every service");
    assert!(sh("logweir validate --config /etc/logweir/logweir.toml").contains("valid"));
    sh("echo '# changed by the administrator' >> /etc/logweir/logweir.toml; install -d /var/lib/logweir/journal");
    rpm("--upgrade", &second);
    assert_eq!(sh("tail -n 1 /etc/logweir/logweir.toml"), "# changed by the administrator\n");
    assert_eq!(sh("systemctl is-enabled logweir"), "enabled\n", "an upgrade has disabled the service");
    rpm("--erase", Path::new("logweir"));
    sh("! test -e /usr/bin/logweir; ! test -e /etc/systemd/system/multi-user.target.wants/logweir.service");
    sh("test -e /etc/logweir/logweir.toml.rpmsave; test -d /var/lib/logweir/journal");
}
