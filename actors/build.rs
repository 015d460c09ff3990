//! Tells `--version` what was built: profile, target, and the commit where `LOGWEIR_COMMIT` names it (the container
//! image's build has no repository to ask).

fn main() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let parts = [variable("LOGWEIR_COMMIT"), variable("PROFILE"), variable("TARGET")];
    let build: Vec<String> = parts.into_iter().flatten().collect();
    println!("cargo:rustc-env=LOGWEIR_BUILD={}", build.join(", "));
    println!("cargo:rerun-if-env-changed=LOGWEIR_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
}
