//! Who may do what: tokens, one list per kind of use.
//!
//! - A path that nobody has thought of needs a token: ingest on the data listener, admin on the admin listener.
//! - The probes are open, since a kubelet has no token, and so are the page's files, which ask for one. `/metrics` is not: it tells service names.
//! - A token comes as each kind of client brings it: `Bearer TOKEN`, `Splunk TOKEN`, as the password of `Basic` whatever
//!   the user is called, or as the key of `ApiKey`.
//! - Tokens are compared in a time that does not depend on where they differ, and with every token of the list.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::answer::Refused;
use super::limits::Sender;
use super::ui;
use crate::config::{Auth, AuthMode};
use crate::token::Token;

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
        (Listener::Data, "/ready") => Need::Open,
        (Listener::Data, path) if ui::is_asset(path) => Need::Open,
        (Listener::Data, "/services/collector/health" | "/services/collector/health/1.0") => Need::Open,
        (Listener::Admin, "/livez" | "/readyz" | "/startupz" | "/healthz" | "/ready" | "/health") => Need::Open,
        (_, "/api/v1/dead-letters/replay" | "/api/v1/dead-letters/purge") => Need::Admin,
        // What can be asked is no secret.
        (Listener::Data, "/api/v1/openapi.json" | "/api/v1/docs" | "/api/v1/docs.js" | "/api/v1/docs.css") => {
            Need::Open
        }
        (_, path) if path.starts_with("/api/v1/") => Need::QueryOrAdmin,
        (Listener::Data, path) if path.starts_with("/loki/") && path != "/loki/api/v1/push" => Need::QueryOrAdmin,
        (Listener::Data, _) => Need::Ingest,
        (Listener::Admin, _) => Need::Admin,
    }
}

/// Whether the `Authorization` header `given` is enough for `need`.
///
/// Returns whose token it is.
///
/// # Errors
/// 401, and what is asked for.
pub fn check(auth: &Auth, need: Need, given: Option<&[u8]>) -> Result<Sender, Refused> {
    let nobody: &[Token] = &[];
    let (name, lists) = match need {
        Need::Open => return Ok(Sender(None)),
        Need::Ingest => ("auth.ingest_tokens", [&*auth.ingest_tokens, nobody]),
        Need::QueryOrAdmin => ("auth.query_tokens or auth.admin_tokens", [&*auth.query_tokens, &*auth.admin_tokens]),
        Need::Admin => ("auth.admin_tokens", [&*auth.admin_tokens, nobody]),
    };
    if auth.mode == AuthMode::None {
        return Ok(Sender(None));
    }
    let token = given.and_then(token).unwrap_or_default();
    let mut known = subtle::Choice::from(0);
    let mut sender = 0_u64;
    for (index, candidate) in (0..).zip(lists.concat()) {
        let same = candidate.secret().as_bytes().ct_eq(&token);
        known |= same;
        sender.conditional_assign(&index, same);
    }
    // An empty token in the configuration must not open the door to those who send none.
    if bool::from(known) && !token.is_empty() {
        return Ok(Sender(usize::try_from(sender).ok()));
    }
    let detail = format!("this needs `Authorization: Bearer TOKEN` with a token of {name}");
    Err(Refused::new(401, "unauthorized", detail))
}

/// The token in an `Authorization` header; none where it has no scheme that is known.
pub fn token(header: &[u8]) -> Option<Cow<'_, [u8]>> {
    let space = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, value) = (&header[..space], header[space..].trim_ascii());
    let behind_colon = |decoded: Vec<u8>| {
        let colon = decoded.iter().position(|&byte| byte == b':')?;
        Some(Cow::Owned(decoded[colon + 1..].to_vec()))
    };
    let decoded = || STANDARD.decode(value).ok().and_then(behind_colon);
    match &*scheme.to_ascii_lowercase() {
        b"bearer" | b"splunk" => Some(Cow::Borrowed(value)),
        b"basic" => decoded(),
        // What Elasticsearch gives out is base64 of `id:key`; what people type is the token.
        b"apikey" => Some(decoded().unwrap_or(Cow::Borrowed(value))),
        _ => None,
    }
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

    fn allowed(need: Need, header: Option<&str>) -> bool {
        let outcome = check(&auth(AuthMode::Token), need, header.map(str::as_bytes));
        if let Err(refused) = &outcome {
            assert_eq!(refused.status, 401);
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
            (Need::Ingest, Some("Splunk in-1"), true),
            (Need::Ingest, Some("Splunk in-9"), false),
            (Need::Ingest, Some("Basic dXNlcjppbi0x"), true), // user:in-1
            (Need::Ingest, Some("Basic OmluLTE="), true),     // :in-1
            (Need::Ingest, Some("Basic aW4tMTp1c2Vy"), false), // in-1:user
            (Need::Ingest, Some("Basic aW4tMQ=="), false),    // in-1
            (Need::Ingest, Some("ApiKey aWQ6aW4tMQ=="), true), // id:in-1
            (Need::Ingest, Some("ApiKey in-1"), true),
            (Need::Ingest, Some("ApiKey in-9"), false),
            (Need::Ingest, Some("Digest in-1"), false),
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
            (Listener::Data, "/pipeline", Need::Open),
            (Listener::Data, "/pipeline/", Need::Ingest),
            (Listener::Data, "/assets/main.js", Need::Open),
            (Listener::Data, "/assets", Need::Ingest),
            (Listener::Admin, "/assets/main.js", Need::Admin),
            (Listener::Data, "/ingest", Need::Ingest),
            (Listener::Data, "/livez", Need::Ingest),
            (Listener::Data, "/services/collector/health", Need::Open),
            (Listener::Data, "/services/collector/healthy", Need::Ingest),
            (Listener::Data, "/loki/api/v1/push", Need::Ingest),
            (Listener::Data, "/loki/api/v1/query_range", Need::QueryOrAdmin),
            (Listener::Data, "/anything", Need::Ingest),
            (Listener::Data, "/api/v1/status", Need::QueryOrAdmin),
            (Listener::Data, "/api/v1/dead-letters", Need::QueryOrAdmin),
            (Listener::Data, "/api/v1/dead-letters/replay", Need::Admin),
            (Listener::Data, "/api/v1/dead-letters/purge", Need::Admin),
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
