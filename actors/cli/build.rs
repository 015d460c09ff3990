//! Provides `--version` with what was built (profile, target, `faults` if it has kill points, and the commit if `LOGWEIR_COMMIT`
//! is set, because the build of the container image has no repository), and `logweir help TOPIC` with the files of `docs/`.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let faults = std::env::var_os("CARGO_FEATURE_FAULTS").map(|_| "faults".to_owned());
    let parts = [variable("LOGWEIR_COMMIT"), variable("PROFILE"), variable("TARGET"), faults];
    let build: Vec<String> = parts.into_iter().flatten().collect();
    println!("cargo:rustc-env=LOGWEIR_BUILD={}", build.join(", "));
    println!("cargo:rerun-if-env-changed=LOGWEIR_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=docs");
    let docs = Path::new(&variable("CARGO_MANIFEST_DIR").unwrap_or_default()).join("docs");
    let out = Path::new(&variable("OUT_DIR").unwrap_or_default()).join("topics.rs");
    if let Err(error) = std::fs::write(&out, topics(&docs)) {
        println!("cargo:error={}: {error}", out.display());
    }
}

/// An array of `(name, title, text)`, one for each `docs/NAME.md`. Empty without the folder: the image builds the dependencies
/// before the sources are there.
fn topics(docs: &Path) -> String {
    let mut paths: Vec<_> = std::fs::read_dir(docs).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut array = "&[\n".to_owned();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        println!("cargo:rerun-if-changed={}", path.display());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let title = text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default().trim();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let _ = writeln!(array, "    ({name:?}, {title:?}, include_str!({path:?})),");
    }
    array + "]\n"
}
