//! The bulk API of Elasticsearch, and the requests that log shippers make before they use it.
//!
//! - `create` and `index` are stored; `update` and `delete` are rejected item by item, because log records are
//!   immutable.
//! - Every response carries `X-Elastic-Product`, without which Elastic's clients disconnect.
//! - Requests that set up an index (templates, policies, pipelines) are acknowledged and have no effect: there are no
//!   indices.

use actix_web::http::header::HeaderMap;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, Resource};
use serde_json::{Value, json};
use std::fmt::Write as _;
use tokio::time::Instant;

use super::answer::{Answer, HttpError};
use super::intake::accept;
use super::parameters::{Parameters, sender_name};
use super::shared::Shared;
use logweir_formats::push_json_string;
use logweir_formats::{BulkItem, Format, ItemOutcome, ParseReport};

/// The Elasticsearch version that is reported: Beats reject a version older than their own.
const VERSION: &str = "8.19.0";

/// User agents that send `GET /` without requesting JSON.
const CLIENTS: [&str; 4] = ["elastic", "logstash", "beat", "vector"];

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    for path in ["/_bulk", "/{index}/_bulk"] {
        let resource = web::resource(path).route(web::post().to(bulk)).route(web::put().to(bulk));
        routes.service(with_method_not_allowed(resource, "POST, PUT"));
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
        routes.service(with_method_not_allowed(resource, "GET, HEAD"));
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
        routes.service(setup_resource(path));
    }
    for path in ["/_ilm/policy", "/_index_template", "/_component_template", "/_ingest/pipeline"] {
        let empty = || async { elastic(Answer::json(200, &json!({}))) };
        let resource = web::resource(path).route(web::get().to(empty)).route(web::head().to(empty));
        routes.service(with_method_not_allowed(resource, "GET, HEAD"));
    }
    let empty = || async { elastic(Answer::text("text/plain; charset=utf-8", String::new())) };
    routes.service(with_method_not_allowed(web::resource("/_cat/{what:.*}").route(web::get().to(empty)), "GET"));
}

/// A resource that a client sets up once and then finds.
fn setup_resource(path: &'static str) -> Resource {
    let found = || async { elastic(Answer::json(200, &json!({}))) };
    let acknowledged = || async { elastic(Answer::json(200, &json!({ "acknowledged": true }))) };
    let resource = web::resource(path)
        .route(web::get().to(found))
        .route(web::head().to(found))
        .route(web::put().to(acknowledged))
        .route(web::post().to(acknowledged));
    with_method_not_allowed(resource, "GET, HEAD, PUT, POST")
}

/// Answers every other method.
fn with_method_not_allowed(resource: Resource, methods: &'static str) -> Resource {
    resource.default_service(web::to(move |request: HttpRequest| async move {
        let rejection = HttpError::method_not_allowed(&request, methods);
        error_response(rejection, request.headers()).with_header("Allow", methods)
    }))
}

/// Whether `GET /` comes from an Elasticsearch client rather than from a browser.
pub fn is_elastic_client(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let agent = text("user-agent");
    text("accept").contains("json") || CLIENTS.iter().any(|client| agent.contains(client))
}

/// The response to `GET /` for Elasticsearch clients.
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
    match store_body(&shared, &request, payload).await {
        Ok(report) => elastic(Answer::body(200, "application/json", bulk_response(&report.items, start) + "\n")),
        Err(rejection) => error_response(rejection.counted(), request.headers()),
    }
}

async fn store_body(shared: &Shared, request: &HttpRequest, payload: web::Payload) -> Result<ParseReport, HttpError> {
    let (mut parameters, _) = Parameters::read(request, &shared.config)?;
    parameters.format = Format::ElasticBulk;
    if let Some(index) = request.match_info().get("index") {
        parameters.defaults.index = Some(sender_name("index", index)?);
    }
    accept(shared, request, payload, parameters).await.map(|receipt| receipt.report)
}

/// The outcome of each item, in the order of the request.
fn bulk_response(items: &[BulkItem], start: Instant) -> String {
    let errors = items.iter().any(|item| item.outcome != ItemOutcome::Stored);
    let took = start.elapsed().as_millis();
    let mut text = format!(r#"{{"took":{took},"errors":{errors},"items":["#);
    for (nth, BulkItem { action, index, outcome, .. }) in items.iter().enumerate() {
        let comma = if nth > 0 { "," } else { "" };
        let _ = write!(text, r#"{comma}{{"{action}":{{"_index":"#);
        push_json_string(&mut text, index);
        text.push_str(match outcome {
            ItemOutcome::Stored => r#","result":"created","status":201}}"#,
            ItemOutcome::Unsupported => concat!(
                r#","status":400,"error":{"type":"illegal_argument_exception","#,
                r#""reason":"unsupported action: expected create or index, because log records are immutable"}}}"#
            ),
            ItemOutcome::TooLong => concat!(
                r#","status":413,"error":{"type":"illegal_argument_exception","#,
                r#""reason":"discarded: the document exceeds http.line_bytes_max"}}}"#
            ),
        });
    }
    text.push_str("]}");
    text
}

/// A rejection in the shape of an Elasticsearch error.
pub fn error_response(mut rejection: HttpError, _: &HeaderMap) -> Answer {
    if rejection.status == 408 {
        rejection.status = 503; // clients retry 429, 502, 503 and 504
    }
    let kind = match rejection.status {
        401 => "security_exception",
        413 => "content_too_long_exception",
        429 => "es_rejected_execution_exception",
        503 => "unavailable_shards_exception",
        _ => "illegal_argument_exception",
    };
    let cause = json!({ "type": kind, "reason": format!("{}: {}", rejection.reason, rejection.detail) });
    let mut error = cause.clone();
    error["root_cause"] = json!([cause]);
    let status = rejection.status;
    elastic(Answer::json(status, &json!({ "error": error, "status": status })).of(&rejection))
}

/// Adds the header by which Elastic's clients identify the server.
fn elastic(answer: Answer) -> Answer {
    answer.with_header("X-Elastic-Product", "Elasticsearch")
}
