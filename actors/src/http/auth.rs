//! Who may do what: bearer tokens, one list per kind of use.
//!
//! - A path that nobody has thought of needs a token: ingest on the data listener, admin on the admin listener.
//! - The probes and the welcome page are open, since a kubelet has no token. `/metrics` is not: it tells service names.
//! - Tokens are compared in a time that does not depend on where they differ, and with every token of the list.

use subtle::ConstantTimeEq;

use super::answer::Answer;
use crate::config::{Auth, AuthMode, Token};

/// Which listener a request came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// Intake.
    Data,
    /// Health, metrics, drain.
    Admin,
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Open,
    /// A token for intake.
    Ingest,
    /// A token for queries, or for administration.
    QueryOrAdmin,
    /// A token for administration.
    Admin,
}

/// What `path` on `listener` asks for.
#[must_use]
pub fn need(listener: Listener, path: &str) -> Need {
    match (listener, path) {
        (Listener::Data, "/") => Need::Open,
        (Listener::Admin, "/livez" | "/readyz" | "/startupz" | "/healthz" | "/ready" | "/health") => Need::Open,
        (_, "/api/v1/status") => Need::QueryOrAdmin,
        (Listener::Data, _) => Need::Ingest,
        (Listener::Admin, _) => Need::Admin,
    }
}

/// Whether the `Authorization` header `given` is enough for `need`.
///
/// # Errors
/// 401, and what is asked for.
pub fn check(auth: &Auth, need: Need, given: Option<&[u8]>) -> Result<(), Answer> {
    let nobody: &[Token] = &[];
    let (name, lists) = match need {
        Need::Open => return Ok(()),
        Need::Ingest => ("auth.ingest_tokens", [&*auth.ingest_tokens, nobody]),
        Need::QueryOrAdmin => ("auth.query_tokens or auth.admin_tokens", [&*auth.query_tokens, &*auth.admin_tokens]),
        Need::Admin => ("auth.admin_tokens", [&*auth.admin_tokens, nobody]),
    };
    if auth.mode == AuthMode::None {
        return Ok(());
    }
    let token = given.and_then(bearer).unwrap_or_default();
    let mut known = subtle::Choice::from(0);
    for candidate in lists.concat() {
        known |= candidate.0.as_bytes().ct_eq(token);
    }
    // An empty token in the configuration must not open the door to those who send none.
    if bool::from(known) && !token.is_empty() {
        return Ok(());
    }
    metrics::counter!("logweir_refused_total", "reason" => "unauthorized").increment(1);
    let detail = format!("this needs `Authorization: Bearer TOKEN` with a token of {name}");
    Err(Answer::error(401, "unauthorized", detail).with_header("WWW-Authenticate", "Bearer realm=\"logweir\""))
}

/// The token of `Bearer TOKEN`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
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
        }
    }

    fn allowed(need: Need, header: Option<&str>) -> bool {
        let outcome = check(&auth(AuthMode::Token), need, header.map(str::as_bytes));
        if let Err(answer) = &outcome {
            assert_eq!(answer.status(), 401);
        }
        outcome.is_ok()
    }

    #[test]
    fn each_use_has_its_own_tokens() {
        for (need, header, expect) in [
            (Need::Open, None, true),
            (Need::Ingest, Some("Bearer in-1"), true),
            (Need::Ingest, Some("bearer  in-2 "), true),
            (Need::Ingest, Some("Bearer query"), false),
            (Need::Ingest, Some("Bearer in-"), false),
            (Need::Ingest, Some("Bearer in-11"), false),
            (Need::Ingest, Some("Basic in-1"), false),
            (Need::Ingest, Some("in-1"), false),
            (Need::Ingest, Some("Bearer "), false),
            (Need::Ingest, Some(""), false),
            (Need::Ingest, None, false),
            (Need::QueryOrAdmin, Some("Bearer query"), true),
            (Need::QueryOrAdmin, Some("Bearer admin"), true),
            (Need::QueryOrAdmin, Some("Bearer in-1"), false),
            (Need::Admin, Some("Bearer admin"), true),
            (Need::Admin, Some("Bearer query"), false),
        ] {
            assert_eq!(allowed(need, header), expect, "{need:?} {header:?}");
        }
        assert!(check(&auth(AuthMode::None), Need::Admin, None).is_ok());
    }

    #[test]
    fn what_nobody_has_thought_of_is_closed() {
        for (listener, path, expect) in [
            (Listener::Data, "/", Need::Open),
            (Listener::Data, "/ingest", Need::Ingest),
            (Listener::Data, "/livez", Need::Ingest),
            (Listener::Data, "/anything", Need::Ingest),
            (Listener::Data, "/api/v1/status", Need::QueryOrAdmin),
            (Listener::Admin, "/", Need::Admin),
            (Listener::Admin, "/readyz", Need::Open),
            (Listener::Admin, "/readyz/", Need::Admin),
            (Listener::Admin, "/metrics", Need::Admin),
            (Listener::Admin, "/drain", Need::Admin),
        ] {
            assert_eq!(need(listener, path), expect, "{listener:?} {path}");
        }
    }
}
