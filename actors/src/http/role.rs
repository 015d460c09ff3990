//! Which role serves which path.
//!
//! A processor takes records and answers for itself; a gateway has page and query API; `all` is both. What a path belongs to
//! is said here once, so that a route that is registered is not open in the wrong role by accident: what nobody has thought
//! of is intake, which a gateway refuses.

use super::answer::Refused;
use super::ui;
use crate::config::Role;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Takes records.
    Intake,
    /// Reads records from the store.
    Read,
    /// Tells how this process is, or what passes through it.
    Both,
}

fn part(path: &str) -> Part {
    match path {
        "/" | "/ready" | "/api/v1/status" | "/api/v1/pipeline" | "/api/v1/tail" | "/api/v1/alerts" => Part::Both,
        _ if path.starts_with("/api/v1/dead-letters") => Part::Both,
        _ if ui::is_asset(path) => Part::Read,
        "/loki/api/v1/push" => Part::Intake,
        _ if ["/api/", "/loki/", "/docs"].iter().any(|prefix| path.starts_with(prefix)) => Part::Read,
        _ => Part::Intake,
    }
}

/// Whether a process of this role serves `path` on its data listener.
///
/// # Errors
/// 404, and who does.
pub fn check(role: Role, path: &str) -> Result<(), Refused> {
    match (role, part(path)) {
        (Role::All, _) | (_, Part::Both) | (Role::Processor, Part::Intake) | (Role::Gateway, Part::Read) => Ok(()),
        (Role::Processor, Part::Read) => Err(Refused::new(
            404,
            "not_served_here",
            "this is a processor: ask a gateway, or run it with role = \"all\"",
        )),
        (Role::Gateway, Part::Intake) => Err(Refused::new(
            404,
            "not_served_here",
            "this is a gateway, which takes no records: send them to a processor",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_serves_its_part() {
        for (path, processor, gateway) in [
            ("/", true, true),
            ("/ready", true, true),
            ("/api/v1/status", true, true),
            ("/api/v1/tail", true, true),
            ("/api/v1/dead-letters/replay", true, true),
            ("/ingest", true, false),
            ("/v1/logs", true, false),
            ("/logs/_bulk", true, false),
            ("/services/collector/event", true, false),
            ("/loki/api/v1/push", true, false),
            ("/what/nobody/has/thought/of", true, false),
            ("/api/v1/query", false, true),
            ("/loki/api/v1/query_range", false, true),
            ("/docs", false, true),
            ("/pipeline", false, true),
            ("/assets/main.js", false, true),
        ] {
            assert!(check(Role::All, path).is_ok(), "{path}");
            assert_eq!(check(Role::Processor, path).is_ok(), processor, "{path}");
            assert_eq!(check(Role::Gateway, path).is_ok(), gateway, "{path}");
        }
    }
}
