//! How a request may be refused, as the OpenAPI description says it: said once, for the handlers that have it in common.

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Schema, Type};
use utoipa::{IntoResponses, ToSchema};

use super::answer::ErrorBody;

/// What the paths are told under.
pub(super) const READ: &str = "records";
pub(super) const LIVE: &str = "live";
pub(super) const STATE: &str = "state";
pub(super) const LETTERS: &str = "dead letters";
pub(super) const LOKI: &str = "Loki";

type Responses = BTreeMap<String, RefOr<Response>>;

/// Of what reads records.
const READ_REFUSED: [(u16, &str); 8] = [
    (400, "a parameter or the query is wrong; `column` says where"),
    (401, "a query token is needed"),
    (404, "there is no such record; or this is a processor, which answers no queries: ask a gateway"),
    (429, "too many queries run and wait"),
    (500, "the database has refused the query; the program's log says more"),
    (501, "this store keeps nothing"),
    (503, "the database is away, or the process is starting"),
    (504, "it took too long"),
];

/// Of what tells how the process is.
const TOLD_REFUSED: [(u16, &str); 2] = [(401, "a query token is needed"), (503, "the process is starting")];

/// Of what is live.
const LIVE_REFUSED: [(u16, &str); 4] = [
    (400, "the query or the token is wrong; `column` says where"),
    (401, "a query token is needed"),
    (429, "there are as many live tails as tail.clients_max allows"),
    (503, "the process is starting, or shutting down"),
];

/// Of what lists dead letters.
const LETTERS_REFUSED: [(u16, &str); 4] = [
    (400, "a parameter is wrong"),
    (401, "a token is needed: one for queries to look, one for administration to change something"),
    (500, "the database has refused it"),
    (503, "the database is away, or the process is starting"),
];

/// Of what changes dead letters, too.
const CHANGED_REFUSED: [(u16, &str); 2] =
    [(403, "another site's page may not change dead letters"), (429, "somebody else is changing dead letters")];

pub(super) struct Read;
pub(super) struct Told;
pub(super) struct Live;
pub(super) struct Letters;
pub(super) struct Changed;
/// As [`Read`], in Loki's shape.
pub(super) struct LokiRead;

impl IntoResponses for Read {
    fn responses() -> Responses {
        as_json(&READ_REFUSED)
    }
}

impl IntoResponses for Told {
    fn responses() -> Responses {
        as_json(&TOLD_REFUSED)
    }
}

impl IntoResponses for Live {
    fn responses() -> Responses {
        as_json(&LIVE_REFUSED)
    }
}

impl IntoResponses for Letters {
    fn responses() -> Responses {
        as_json(&LETTERS_REFUSED)
    }
}

impl IntoResponses for Changed {
    fn responses() -> Responses {
        as_json(&[&LETTERS_REFUSED[..], &CHANGED_REFUSED].concat())
    }
}

impl IntoResponses for LokiRead {
    fn responses() -> Responses {
        let text = Schema::from(ObjectBuilder::new().schema_type(Type::String));
        described(&READ_REFUSED, "text/plain", &text.into())
    }
}

fn as_json(refusals: &[(u16, &str)]) -> Responses {
    described(refusals, "application/json", &Ref::from_schema_name(ErrorBody::name()).into())
}

fn described(refusals: &[(u16, &str)], content_type: &str, schema: &RefOr<Schema>) -> Responses {
    let response = |what: &str| {
        let content = ContentBuilder::new().schema(Some(schema.clone())).build();
        ResponseBuilder::new().description(what).content(content_type, content).build().into()
    };
    refusals.iter().map(|&(status, what)| (status.to_string(), response(what))).collect()
}
