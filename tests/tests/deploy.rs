//! Checks everything under `deploy/` for consistency, with itself and with the program: see `tests/deploy/checks.py`.
//!
//! `LOGWEIR_MUTATIONS=1` breaks a copy of it in one place after another, and verifies that each check detects its
//! mutation.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use logweir_tests::{installed, process};

#[test]
fn manifests_dashboards_and_alerts_are_consistent() {
    checks(&[]);
}

#[test]
fn each_check_detects_its_mutations() {
    if std::env::var_os("LOGWEIR_MUTATIONS").is_none() {
        eprintln!("SKIPPED: takes minutes; LOGWEIR_MUTATIONS=1 runs it");
        return;
    }
    checks(&["--mutations"]);
}

#[test]
fn a_backup_is_restored_to_a_point_in_time() {
    script("backup.sh");
}

#[test]
fn a_replica_is_ready_only_while_it_follows_the_primary() {
    script("replica.sh");
}

/// Runs a script that tests those of the manifests with real servers.
fn script(name: &str) {
    let kubernetes = folder().join("../../deploy/kubernetes");
    let status = Command::new("sh").arg(folder().join(name)).arg(kubernetes).stdin(Stdio::null()).status();
    assert!(status.expect("sh starts").success(), "see the output above");
}

fn checks(arguments: &[&str]) {
    let below = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deploy");
    let Some(python) = installed::python(&below, &folder().join("requirements.txt")) else { return };
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(folder().join("checks.py")).args(arguments);
    command.arg("--program").arg(process::binary());
    if let Some(modules) = installed::node_modules(&below, &folder().join("package.json")) {
        command.arg("--node-modules").arg(modules);
    }
    let status = command.stdin(Stdio::null()).status().expect("Python starts");
    assert!(status.success(), "see the output above");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}
