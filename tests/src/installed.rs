//! Packages from registries that tests use, installed once below the target directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Returns the directory below `below` where `install` has installed the packages in `wanted`, or `None` (with a
/// message) if the registry cannot be reached.
///
/// # Panics
/// If the installation fails for any other reason.
#[must_use]
pub fn installed(
    below: &Path,
    name: &str,
    wanted: &str,
    install: impl FnOnce(&Path) -> Result<(), String>,
) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = below.join(name);
    let mark = dir.join("installed");
    if std::fs::read_to_string(&mark).is_ok_and(|has| has == wanted) {
        return Some(dir);
    }
    let _ = std::fs::remove_dir_all(&dir);
    match install(&dir) {
        Ok(()) => {
            std::fs::write(mark, wanted).expect("the target directory");
            Some(dir)
        }
        Err(error) if UNREACHABLE.iter().any(|sign| error.contains(sign)) => {
            eprintln!("SKIPPED: {name} cannot be installed, its registry is unreachable: {error}");
            None
        }
        Err(error) => panic!("cannot install {name}: {error}"),
    }
}

/// Network errors in the output of pip, npm and apt.
const UNREACHABLE: [&str; 7] = [
    "NewConnectionError",
    "ConnectTimeoutError",
    "Failed to establish",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "Temporary failure resolving",
];

/// Runs `command` to completion.
///
/// # Errors
/// The output, if it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let output_text = String::from_utf8_lossy(&output.stdout).into_owned() + &*String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{command:?}: {}: {output_text}", output.status))
}

/// Returns the interpreter of a virtual environment below `below` with the packages in the file `requirements`.
///
/// # Panics
/// See [`installed`].
#[must_use]
pub fn python(below: &Path, requirements: &Path) -> Option<PathBuf> {
    let wanted = std::fs::read_to_string(requirements).expect("the list of packages");
    let dir = installed(below, "python", &wanted, |dir| {
        run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        run(Command::new(dir.join("bin/pip")).args(["install", "--quiet", "--requirement"]).arg(requirements))
    })?;
    Some(dir.join("bin/python"))
}

/// Returns a directory of Node.js modules below `below` with the packages in the file `package`.
///
/// # Panics
/// See [`installed`].
#[must_use]
pub fn node_modules(below: &Path, package: &Path) -> Option<PathBuf> {
    let wanted = std::fs::read_to_string(package).expect("the list of packages");
    let dir = installed(below, "node", &wanted, |dir| {
        std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        std::fs::write(dir.join("package.json"), &wanted).map_err(|error| error.to_string())?;
        run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(dir))
    })?;
    Some(dir.join("node_modules"))
}
