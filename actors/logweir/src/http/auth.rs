//! Authorization: tokens, one list per kind of access.
//!
//! - An unknown path requires a token: an ingest token on the data listener, an admin token on the admin listener.
//! - The probes are open, because a kubelet has no token, and so are the files of the web UI, which prompts for one.
//!   `/metrics` is not open: it reveals service names.
//! - A token is accepted in the form in which each kind of client sends it: `Bearer TOKEN`, `Splunk TOKEN`, as the
//!   password of `Basic` with any user name, or as the key of `ApiKey`.
//! - Tokens are compared in constant time, and with every token of the list.

use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::answer::HttpError;
use super::limits::Sender;
use super::token::token;
use super::ui;
use crate::config::Token;
use crate::config::{Auth, AuthMode};

/// The listener that a request arrived on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// Intake.
    Data,
    /// Probes, metrics, drain.
    Admin,
}

/// The token that a path requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// None.
    Open,
    /// An ingest token.
    Ingest,
    /// A query token or an admin token.
    QueryOrAdmin,
    /// An admin token.
    Admin,
}

/// Returns the token that `path` requires on `listener`.
#[must_use]
pub fn required_access(listener: Listener, path: &str) -> Access {
    match (listener, path) {
        (Listener::Data, "/ready") => Access::Open,
        (Listener::Data, path) if ui::is_asset(path) => Access::Open,
        (Listener::Data, "/services/collector/health" | "/services/collector/health/1.0") => Access::Open,
        (Listener::Admin, "/livez" | "/readyz" | "/startupz" | "/healthz" | "/ready" | "/health") => Access::Open,
        (_, "/api/v1/dead-letters/replay" | "/api/v1/dead-letters/purge") => Access::Admin,
        // The API description is not secret.
        (Listener::Data, "/api/v1/openapi.json" | "/api/v1/docs" | "/api/v1/docs.js" | "/api/v1/docs.css") => {
            Access::Open
        }
        (_, path) if path.starts_with("/api/v1/") => Access::QueryOrAdmin,
        (Listener::Data, path) if path.starts_with("/loki/") && path != "/loki/api/v1/push" => Access::QueryOrAdmin,
        (Listener::Data, _) => Access::Ingest,
        (Listener::Admin, _) => Access::Admin,
    }
}

/// Checks the `Authorization` header `authorization` against `access`.
///
/// Returns the sender that the token belongs to.
///
/// # Errors
/// 401, naming the token lists that would be accepted.
pub fn check(auth: &Auth, access: Access, authorization: Option<&[u8]>) -> Result<Sender, HttpError> {
    let no_tokens: &[Token] = &[];
    let (name, lists) = match access {
        Access::Open => return Ok(Sender(None)),
        Access::Ingest => ("auth.ingest_tokens", [&*auth.ingest_tokens, no_tokens]),
        Access::QueryOrAdmin => ("auth.query_tokens or auth.admin_tokens", [&*auth.query_tokens, &*auth.admin_tokens]),
        Access::Admin => ("auth.admin_tokens", [&*auth.admin_tokens, no_tokens]),
    };
    if auth.mode == AuthMode::None {
        return Ok(Sender(None));
    }
    let token = authorization.and_then(token).unwrap_or_default();
    let mut known = subtle::Choice::from(0);
    let mut sender = 0_u64;
    for (index, candidate) in (0..).zip(lists.concat()) {
        let matches = candidate.secret().as_bytes().ct_eq(&token);
        known |= matches;
        sender.conditional_assign(&index, matches);
    }
    // An empty token in the configuration must not authorize requests without a token.
    if bool::from(known) && !token.is_empty() {
        return Ok(Sender(usize::try_from(sender).ok()));
    }
    let detail = format!("missing or invalid token: expected `Authorization: Bearer TOKEN` with a token from {name}");
    Err(HttpError::new(401, "unauthorized", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(mode: AuthMode) -> Auth {
        let tokens = |texts: &[&str]| texts.iter().map(|text| Token((*text).to_owned())).collect();
        Auth {
            mode,
            ingest_tokens: tokens(&["in-1", "in-2", ""]),
            query_tokens: tokens(&["query"]),
            admin_tokens: tokens(&["admin"]),
            stamp_token: false,
        }
    }

    fn allowed(access: Access, header: Option<&str>) -> bool {
        let outcome = check(&auth(AuthMode::Token), access, header.map(str::as_bytes));
        if let Err(rejection) = &outcome {
            assert_eq!(rejection.status, 401);
        }
        outcome.is_ok()
    }

    #[test]
    fn each_kind_of_access_has_its_own_tokens() {
        for (access, header, expect) in [
            (Access::Open, None, true),
            (Access::Ingest, Some("Bearer in-1"), true),
            (Access::Ingest, Some("bearer  in-2 "), true),
            (Access::Ingest, Some("Bearer query"), false),
            (Access::Ingest, Some("Bearer in-"), false),
            (Access::Ingest, Some("Bearer in-11"), false),
            (Access::Ingest, Some("Basic in-1"), false),
            (Access::Ingest, Some("in-1"), false),
            (Access::Ingest, Some("Splunk in-1"), true),
            (Access::Ingest, Some("Splunk in-9"), false),
            (Access::Ingest, Some("Basic dXNlcjppbi0x"), true), // user:in-1
            (Access::Ingest, Some("Basic OmluLTE="), true),     // :in-1
            (Access::Ingest, Some("Basic aW4tMTp1c2Vy"), false), // in-1:user
            (Access::Ingest, Some("Basic aW4tMQ=="), false),    // in-1
            (Access::Ingest, Some("ApiKey aWQ6aW4tMQ=="), true), // id:in-1
            (Access::Ingest, Some("ApiKey in-1"), true),
            (Access::Ingest, Some("ApiKey in-9"), false),
            (Access::Ingest, Some("Digest in-1"), false),
            (Access::Ingest, Some("Bearer "), false),
            (Access::Ingest, Some(""), false),
            (Access::Ingest, None, false),
            (Access::QueryOrAdmin, Some("Bearer query"), true),
            (Access::QueryOrAdmin, Some("Bearer admin"), true),
            (Access::QueryOrAdmin, Some("Bearer in-1"), false),
            (Access::Admin, Some("Bearer admin"), true),
            (Access::Admin, Some("Bearer query"), false),
        ] {
            assert_eq!(allowed(access, header), expect, "{access:?} {header:?}");
        }
        assert!(check(&auth(AuthMode::None), Access::Admin, None).is_ok());
    }

    #[test]
    fn an_unknown_path_is_closed() {
        for (listener, path, expect) in [
            (Listener::Data, "/", Access::Open),
            (Listener::Data, "/pipeline", Access::Open),
            (Listener::Data, "/pipeline/", Access::Ingest),
            (Listener::Data, "/assets/main.js", Access::Open),
            (Listener::Data, "/assets", Access::Ingest),
            (Listener::Admin, "/assets/main.js", Access::Admin),
            (Listener::Data, "/ingest", Access::Ingest),
            (Listener::Data, "/livez", Access::Ingest),
            (Listener::Data, "/services/collector/health", Access::Open),
            (Listener::Data, "/services/collector/healthy", Access::Ingest),
            (Listener::Data, "/loki/api/v1/push", Access::Ingest),
            (Listener::Data, "/loki/api/v1/query_range", Access::QueryOrAdmin),
            (Listener::Data, "/anything", Access::Ingest),
            (Listener::Data, "/api/v1/status", Access::QueryOrAdmin),
            (Listener::Data, "/api/v1/dead-letters", Access::QueryOrAdmin),
            (Listener::Data, "/api/v1/dead-letters/replay", Access::Admin),
            (Listener::Data, "/api/v1/dead-letters/purge", Access::Admin),
            (Listener::Admin, "/", Access::Admin),
            (Listener::Admin, "/readyz", Access::Open),
            (Listener::Admin, "/readyz/", Access::Admin),
            (Listener::Admin, "/metrics", Access::Admin),
            (Listener::Admin, "/drain", Access::Admin),
        ] {
            assert_eq!(required_access(listener, path), expect, "{listener:?} {path}");
        }
    }
}
