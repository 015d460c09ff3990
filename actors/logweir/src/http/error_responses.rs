//! Error responses in the OpenAPI description, defined once for the handlers that share them.

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Schema, Type};
use utoipa::{IntoResponses, ToSchema};

use super::answer::ErrorBody;

/// Tags of the API description.
pub(super) const QUERIES: &str = "queries";
pub(super) const LIVE_TAIL: &str = "live tail";
pub(super) const STATUS: &str = "status";
pub(super) const DEAD_LETTERS: &str = "dead letters";
pub(super) const LOKI: &str = "Loki";

type Responses = BTreeMap<String, RefOr<Response>>;

/// Of endpoints that query records.
const QUERY_ERRORS: [(u16, &str); 8] = [
    (
        400,
        "Invalid parameter or query, or one that the database's encoding cannot represent; `column` is the position of the error in the query.",
    ),
    (401, "A query token is required."),
    (404, "Record not found; or this process is a processor, which serves no queries: use a gateway."),
    (429, "Too many queries are running and waiting."),
    (500, "The database rejected the query; the log of this process has the details."),
    (501, "The configured store cannot be queried."),
    (
        503,
        "The database is unavailable or not prepared and the cache has no record, or the process is starting. Counts are not answered from the cache.",
    ),
    (504, "The query timed out."),
];

/// Of endpoints that report the state of the process.
const STATUS_ERRORS: [(u16, &str); 2] = [(401, "A query token is required."), (503, "The process is starting.")];

/// Of the live tail.
const LIVE_TAIL_ERRORS: [(u16, &str); 4] = [
    (400, "Invalid query or event id; `column` is the position of the error in the query."),
    (401, "A query token is required."),
    (429, "The maximum number of live tails, tail.clients_max, is open."),
    (503, "The process is starting or shutting down."),
];

/// Of endpoints that list dead letters.
const DEAD_LETTER_ERRORS: [(u16, &str); 4] = [
    (400, "Invalid parameter."),
    (401, "A token is required: a query token to list, an admin token to replay or purge."),
    (500, "The database rejected the request."),
    (503, "The database is unavailable, or the process is starting."),
];

/// Additional errors of endpoints that change dead letters.
const DEAD_LETTER_CHANGE_ERRORS: [(u16, &str); 2] =
    [(403, "Cross-site request."), (429, "Another request is changing dead letters.")];

pub(super) struct QueryErrors;
pub(super) struct StatusErrors;
pub(super) struct LiveTailErrors;
pub(super) struct DeadLetterErrors;
pub(super) struct DeadLetterChangeErrors;
/// The same as [`QueryErrors`], in the shape of Loki's errors.
pub(super) struct LokiErrors;

impl IntoResponses for QueryErrors {
    fn responses() -> Responses {
        as_json(&QUERY_ERRORS)
    }
}

impl IntoResponses for StatusErrors {
    fn responses() -> Responses {
        as_json(&STATUS_ERRORS)
    }
}

impl IntoResponses for LiveTailErrors {
    fn responses() -> Responses {
        as_json(&LIVE_TAIL_ERRORS)
    }
}

impl IntoResponses for DeadLetterErrors {
    fn responses() -> Responses {
        as_json(&DEAD_LETTER_ERRORS)
    }
}

impl IntoResponses for DeadLetterChangeErrors {
    fn responses() -> Responses {
        as_json(&[&DEAD_LETTER_ERRORS[..], &DEAD_LETTER_CHANGE_ERRORS].concat())
    }
}

impl IntoResponses for LokiErrors {
    fn responses() -> Responses {
        let text = Schema::from(ObjectBuilder::new().schema_type(Type::String));
        error_responses(&QUERY_ERRORS, "text/plain", &text.into())
    }
}

fn as_json(errors: &[(u16, &str)]) -> Responses {
    error_responses(errors, "application/json", &Ref::from_schema_name(ErrorBody::name()).into())
}

fn error_responses(errors: &[(u16, &str)], content_type: &str, schema: &RefOr<Schema>) -> Responses {
    let response = |description: &str| {
        let content = ContentBuilder::new().schema(Some(schema.clone())).build();
        ResponseBuilder::new().description(description).content(content_type, content).build().into()
    };
    errors.iter().map(|&(status, description)| (status.to_string(), response(description))).collect()
}
