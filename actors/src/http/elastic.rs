//! Elasticsearch's bulk API, and as much of the rest as shippers ask for before they send.
//!
//! - `create` and `index` are stored; `update` and `delete` are refused item by item: a log is not changed.
//! - Every answer carries `X-Elastic-Product`, without which Elastic's clients hang up.
//! - What sets an index up (templates, policies, pipelines) is answered as done, and does nothing: there are no indices.

use actix_web::http::header::HeaderMap;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, Resource};
use serde_json::{Value, json};
use std::fmt::Write as _;
use tokio::time::Instant;

use super::Shared;
use super::answer::{Answer, Refused};
use super::intake::take;
use super::parameters::{Parameters, sender_name};
use crate::message::{BulkItem, Format, ItemOutcome, ParseReport};
use crate::parser::push_json_string;

/// The version that is claimed: Beats refuse an Elasticsearch that is older than they are.
const VERSION: &str = "8.19.0";

/// Clients that ask `GET /` without saying that they want JSON.
const CLIENTS: [&str; 4] = ["elastic", "logstash", "beat", "vector"];

/// Its paths.
pub fn routes(routes: &mut ServiceConfig) {
    for path in ["/_bulk", "/{index}/_bulk"] {
        let resource = web::resource(path).route(web::post().to(bulk)).route(web::put().to(bulk));
        routes.service(others(resource, "POST, PUT"));
    }
    for (path, answer) in [
        ("/_license", license as fn() -> Value),
        ("/_xpack", xpack),
        ("/_nodes/http", nodes),
        ("/_nodes/_all/http", nodes),
        ("/_cluster/health", health),
    ] {
        let answer = move || async move { elastic(Answer::json(200, &answer())) };
        let resource = web::resource(path).route(web::get().to(answer)).route(web::head().to(answer));
        routes.service(others(resource, "GET, HEAD"));
    }
    for path in [
        "/_ilm/policy/{name}",
        "/_template/{name}",
        "/_index_template/{name}",
        "/_component_template/{name}",
        "/_ingest/pipeline/{name}",
        "/_data_stream/{name}",
        "/_alias/{name}",
        "/logstash", // Logstash's rollover alias
    ] {
        routes.service(set_up(path));
    }
    for path in ["/_ilm/policy", "/_index_template", "/_component_template", "/_ingest/pipeline"] {
        let nothing = || async { elastic(Answer::json(200, &json!({}))) };
        let resource = web::resource(path).route(web::get().to(nothing)).route(web::head().to(nothing));
        routes.service(others(resource, "GET, HEAD"));
    }
    let empty = || async { elastic(Answer::text("text/plain; charset=utf-8", String::new())) };
    routes.service(others(web::resource("/_cat/{what:.*}").route(web::get().to(empty)), "GET"));
}

/// Something that a client sets up once, and is told is there.
fn set_up(path: &'static str) -> Resource {
    let there = || async { elastic(Answer::json(200, &json!({}))) };
    let done = || async { elastic(Answer::json(200, &json!({ "acknowledged": true }))) };
    let resource = web::resource(path)
        .route(web::get().to(there))
        .route(web::head().to(there))
        .route(web::put().to(done))
        .route(web::post().to(done));
    others(resource, "GET, HEAD, PUT, POST")
}

/// The answer to any other method.
fn others(resource: Resource, methods: &'static str) -> Resource {
    resource.default_service(web::to(move |request: HttpRequest| async move {
        let refused = Refused::new(405, "method_not_allowed", format!("{} takes {methods}", request.path()));
        refusal(refused, request.headers()).with_header("Allow", methods)
    }))
}

/// Whether `GET /` comes from a client of Elasticsearch rather than from a person.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let agent = text("user-agent");
    text("accept").contains("json") || CLIENTS.iter().any(|client| agent.contains(client))
}

/// What `GET /` says to Elasticsearch's clients.
pub async fn product() -> Answer {
    elastic(Answer::json(
        200,
        &json!({
            "name": "logweir",
            "cluster_name": "logweir",
            "cluster_uuid": "logweir",
            "version": {
                "number": VERSION,
                "build_flavor": "default",
                "build_type": "logweir",
                "lucene_version": "9.12.0",
                "minimum_wire_compatibility_version": "7.17.0",
                "minimum_index_compatibility_version": "7.0.0",
            },
            "tagline": "You Know, for Search",
        }),
    ))
}

fn license() -> Value {
    json!({ "license": { "status": "active", "uid": "logweir", "type": "basic", "mode": "basic" } })
}

fn xpack() -> Value {
    let off = json!({ "available": false, "enabled": false });
    json!({
        "license": { "uid": "logweir", "type": "basic", "mode": "basic", "status": "active" },
        "features": { "ilm": off, "monitoring": off, "security": off },
    })
}

fn nodes() -> Value {
    json!({ "_nodes": { "total": 0, "successful": 0, "failed": 0 }, "cluster_name": "logweir", "nodes": {} })
}

fn health() -> Value {
    json!({
        "cluster_name": "logweir", "status": "green", "timed_out": false,
        "number_of_nodes": 1, "number_of_data_nodes": 1, "active_shards": 0, "unassigned_shards": 0,
    })
}

async fn bulk(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    let start = Instant::now();
    match stored(&shared, &request, payload).await {
        Ok(report) => elastic(Answer::body(200, "application/json", account(&report.items, start))),
        Err(refused) => refusal(refused.counted(), request.headers()),
    }
}

async fn stored(shared: &Shared, request: &HttpRequest, payload: web::Payload) -> Result<ParseReport, Refused> {
    let (mut parameters, _) = Parameters::read(request, &shared.config)?;
    parameters.format = Format::ElasticBulk;
    if let Some(index) = request.match_info().get("index") {
        parameters.defaults.index = Some(sender_name("the index", index)?);
    }
    take(shared, request, payload, parameters).await.map(|receipt| receipt.report)
}

/// What became of each item, in the order of the request.
fn account(items: &[BulkItem], start: Instant) -> String {
    let errors = items.iter().any(|item| item.outcome != ItemOutcome::Stored);
    let took = start.elapsed().as_millis();
    let mut text = format!(r#"{{"took":{took},"errors":{errors},"items":["#);
    for (nth, BulkItem { action, index, outcome }) in items.iter().enumerate() {
        let comma = if nth > 0 { "," } else { "" };
        let _ = write!(text, r#"{comma}{{"{action}":{{"_index":"#);
        push_json_string(&mut text, index);
        text.push_str(match outcome {
            ItemOutcome::Stored => r#","result":"created","status":201}}"#,
            ItemOutcome::Unsupported => concat!(
                r#","status":400,"error":{"type":"illegal_argument_exception","#,
                r#""reason":"only create and index are taken: a log record is not changed"}}}"#
            ),
            ItemOutcome::TooLong => concat!(
                r#","status":413,"error":{"type":"illegal_argument_exception","#,
                r#""reason":"discarded: the document is above http.line_bytes_max"}}}"#
            ),
        });
    }
    text.push_str("]}");
    text
}

/// A refusal as Elasticsearch writes them.
pub fn refusal(mut refused: Refused, _: &HeaderMap) -> Answer {
    if refused.status == 408 {
        refused.status = 503; // clients try 429, 502, 503 and 504 again
    }
    let kind = match refused.status {
        401 => "security_exception",
        413 => "content_too_long_exception",
        429 => "es_rejected_execution_exception",
        503 => "unavailable_shards_exception",
        _ => "illegal_argument_exception",
    };
    let cause = json!({ "type": kind, "reason": format!("{}: {}", refused.reason, refused.detail) });
    let mut error = cause.clone();
    error["root_cause"] = json!([cause]);
    let status = refused.status;
    elastic(Answer::json(status, &json!({ "error": error, "status": status })).of(&refused))
}

/// The header by which Elastic's clients know whom they talk to.
fn elastic(answer: Answer) -> Answer {
    answer.with_header("X-Elastic-Product", "Elasticsearch")
}
