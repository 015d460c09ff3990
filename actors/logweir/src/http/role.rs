//! Assigns paths to roles.
//!
//! A processor accepts records and reports its own state; a gateway serves the web UI and the query API; `all` does
//! both. The assignment is made here once, so that a new route is never served in the wrong role by accident: an
//! unknown path counts as intake, which a gateway rejects.

use super::answer::HttpError;
use super::ui;
use crate::config::Role;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RouteKind {
    /// Accepts records.
    Intake,
    /// Queries the store.
    Query,
    /// Reports the state of the process, or follows what passes through it.
    Shared,
}

fn route_kind(path: &str) -> RouteKind {
    match path {
        "/" | "/ready" | "/api/v1/status" | "/api/v1/pipeline" | "/api/v1/tail" | "/api/v1/alerts" => RouteKind::Shared,
        _ if path.starts_with("/api/v1/dead-letters") => RouteKind::Shared,
        _ if ui::is_asset(path) => RouteKind::Query,
        "/loki/api/v1/push" => RouteKind::Intake,
        _ if ["/api/", "/loki/", "/docs"].iter().any(|prefix| path.starts_with(prefix)) => RouteKind::Query,
        _ => RouteKind::Intake,
    }
}

/// Checks that a process with this role serves `path` on its data listener.
///
/// # Errors
/// 404, with the role that does serve it.
pub fn check(role: Role, path: &str) -> Result<(), HttpError> {
    match (role, route_kind(path)) {
        (Role::All, _)
        | (_, RouteKind::Shared)
        | (Role::Processor, RouteKind::Intake)
        | (Role::Gateway, RouteKind::Query) => Ok(()),
        (Role::Processor, RouteKind::Query) => {
            let detail = format!("a processor does not serve {path}: query a gateway, or set role = \"all\"");
            Err(HttpError::new(404, "wrong_role", detail))
        }
        (Role::Gateway, RouteKind::Intake) => {
            let detail = format!("a gateway does not serve {path}: send records to a processor, or set role = \"all\"");
            Err(HttpError::new(404, "wrong_role", detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_serves_its_paths() {
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
            ("/unknown/path", true, false),
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
