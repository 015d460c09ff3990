//! Splunk's HTTP Event Collector under `/services/collector`: events, raw lines and health.
//!
//! - Responses use Splunk's own codes and texts; the specific error is in additional members, which a Splunk client
//!   ignores.
//! - Tokens are those of `auth.ingest_tokens`. There are no acknowledgment ids: 200 means what `?ack=` requests.
//! - A body with an invalid event is rejected as a whole, and nothing of it is stored.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::Method;
use actix_web::http::header::HeaderMap;
use actix_web::web::{self, ServiceConfig};
use serde_json::{Value, json};

use super::answer::{Answer, HttpError};
use super::intake::accept;
use super::parameters::{Parameters, sender_name};
use super::routing::with_methods;
use super::shared::Shared;
use super::token::token;
use logweir_formats::push_member;
use logweir_formats::{Format, ParseReport};

/// A code and its text.
type Code = (u16, &'static str);

const SUCCESS: Code = (0, "Success");
const TOKEN_REQUIRED: Code = (2, "Token is required");
const INVALID_AUTHORIZATION: Code = (3, "Invalid authorization");
const INVALID_TOKEN: Code = (4, "Invalid token");
const NO_DATA: Code = (5, "No data");
const INVALID_FORMAT: Code = (6, "Invalid data format");
const BUSY: Code = (9, "Server is busy");
const EVENT_REQUIRED: Code = (12, "Event field is required");
const EVENT_BLANK: Code = (13, "Event field cannot be blank");
const ACK_DISABLED: Code = (14, "ACK is disabled");
const HEALTHY: Code = (17, "HEC is healthy");
const UNHEALTHY: Code = (18, "HEC is unhealthy, queues are full");

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    for path in ["/services/collector", "/services/collector/event", "/services/collector/event/1.0"] {
        let resource = with_methods(path, &["POST", "OPTIONS"]).route(web::post().to(events));
        routes.service(resource.route(web::method(Method::OPTIONS).to(options)));
    }
    for path in ["/services/collector/raw", "/services/collector/raw/1.0"] {
        routes.service(with_methods(path, &["POST"]).route(web::post().to(raw)));
    }
    for path in ["/services/collector/health", "/services/collector/health/1.0"] {
        routes.service(with_methods(path, &["GET", "HEAD"]).route(web::get().to(health)).route(web::head().to(health)));
    }
    routes.service(with_methods("/services/collector/ack", &["POST"]).route(web::post().to(ack)));
}

async fn events(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    collect(&shared, &request, payload, Format::SplunkEvents).await
}

/// Docker's log driver checks with OPTIONS, without its token, whether the endpoint exists.
async fn options() -> Answer {
    Answer::empty(200).with_header("Allow", "POST, OPTIONS")
}

async fn raw(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    collect(&shared, &request, payload, Format::Lines).await
}

async fn collect(shared: &Shared, request: &HttpRequest, payload: web::Payload, format: Format) -> Answer {
    match store_body(shared, request, payload, format).await {
        Ok(report) if report.accepted + report.rejected == 0 => respond(400, NO_DATA, json!({})),
        Ok(report) if report.rejected > 0 => respond(200, SUCCESS, json!({ "discarded": report.rejected })),
        Ok(_) => respond(200, SUCCESS, json!({})),
        Err(rejection) => error_response(rejection.counted(), request.headers()),
    }
}

async fn store_body(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    format: Format,
) -> Result<ParseReport, HttpError> {
    let (mut parameters, others) = Parameters::read(request, &shared.config)?;
    parameters.format = format;
    let defaults = &mut parameters.defaults;
    let mut attributes = defaults.attributes.as_deref().unwrap_or_default().to_owned();
    for (name, value) in others {
        if matches!(&*name, "source" | "sourcetype" | "index") {
            if name == "sourcetype" && defaults.service.is_none() {
                defaults.service = Some(sender_name("sourcetype", &value)?);
            }
            push_member(&mut attributes, &name, &value);
        }
    }
    defaults.attributes = Some(Arc::from(attributes)).filter(|attributes: &Arc<str>| !attributes.is_empty());
    accept(shared, request, payload, parameters).await.map(|receipt| receipt.report)
}

async fn health(shared: web::Data<Shared>) -> Answer {
    match shared.accepts_bodies() {
        true => respond(200, HEALTHY, json!({})),
        false => respond(503, UNHEALTHY, json!({})),
    }
}

async fn ack() -> Answer {
    respond(400, ACK_DISABLED, json!({}))
}

/// A rejection with the matching Splunk code.
pub fn error_response(rejection: HttpError, headers: &HeaderMap) -> Answer {
    let authorization = headers.get("authorization").map(|value| value.as_bytes());
    let (status, code) = match (rejection.status, rejection.reason, authorization) {
        (401, _, None) => (401, TOKEN_REQUIRED),
        (401, _, Some(authorization)) if token(authorization).is_none() => (401, INVALID_AUTHORIZATION),
        (401, ..) => (403, INVALID_TOKEN),
        // 503 is Splunk's only response that means "retry later"; some of its clients drop events on a 429.
        (408 | 429 | 503, ..) => (503, BUSY),
        (400, "event_required", _) => (400, EVENT_REQUIRED),
        (400, "event_blank", _) => (400, EVENT_BLANK),
        (status, ..) => (status, INVALID_FORMAT),
    };
    let mut body = json!({ "error": rejection.reason, "detail": rejection.detail });
    if let Some(number) = rejection.item {
        body["invalid-event-number"] = number.into();
    }
    respond(status, code, body).of(&HttpError { status, ..rejection })
}

fn respond(status: u16, (code, text): Code, mut body: Value) -> Answer {
    body["text"] = text.into();
    body["code"] = code.into();
    Answer::json(status, &body)
}
