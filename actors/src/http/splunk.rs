//! Splunk's HTTP Event Collector: `/services/collector`, its events, its raw lines and its health.
//!
//! - Answers have Splunk's own codes and texts; what is wrong in detail stands beside them, where a Splunk client does not
//!   look and a person does.
//! - Tokens are those of `auth.ingest_tokens`. There are no acknowledgement ids: 200 means what `?ack=` says.
//! - A body with an event that cannot be read is refused as a whole, and nothing of it is stored.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::Method;
use actix_web::http::header::HeaderMap;
use actix_web::web::{self, ServiceConfig};
use serde_json::{Value, json};

use super::answer::{Answer, Refused};
use super::intake::take;
use super::parameters::{Parameters, sender_name};
use super::{Shared, auth, only};
use crate::message::{Format, ParseReport};
use crate::parser::push_member;

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

/// Its paths.
pub fn routes(routes: &mut ServiceConfig) {
    for path in ["/services/collector", "/services/collector/event", "/services/collector/event/1.0"] {
        let resource = only(path, &["POST", "OPTIONS"]).route(web::post().to(events));
        routes.service(resource.route(web::method(Method::OPTIONS).to(is_there)));
    }
    for path in ["/services/collector/raw", "/services/collector/raw/1.0"] {
        routes.service(only(path, &["POST"]).route(web::post().to(raw)));
    }
    for path in ["/services/collector/health", "/services/collector/health/1.0"] {
        routes.service(only(path, &["GET", "HEAD"]).route(web::get().to(health)).route(web::head().to(health)));
    }
    routes.service(only("/services/collector/ack", &["POST"]).route(web::post().to(ack)));
}

async fn events(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    collected(&shared, &request, payload, Format::SplunkEvents).await
}

/// Docker's log driver asks so whether somebody is there, before it brings its token.
async fn is_there() -> Answer {
    Answer::empty(200).with_header("Allow", "POST, OPTIONS")
}

async fn raw(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    collected(&shared, &request, payload, Format::Lines).await
}

async fn collected(shared: &Shared, request: &HttpRequest, payload: web::Payload, format: Format) -> Answer {
    match stored(shared, request, payload, format).await {
        Ok(report) if report.accepted + report.rejected == 0 => say(400, NO_DATA, json!({})),
        Ok(report) if report.rejected > 0 => say(200, SUCCESS, json!({ "discarded": report.rejected })),
        Ok(_) => say(200, SUCCESS, json!({})),
        Err(refused) => refusal(refused.counted(), request.headers()),
    }
}

async fn stored(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    format: Format,
) -> Result<ParseReport, Refused> {
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
    take(shared, request, payload, parameters).await.map(|receipt| receipt.report)
}

async fn health(shared: web::Data<Shared>) -> Answer {
    match shared.takes_bodies() {
        true => say(200, HEALTHY, json!({})),
        false => say(503, UNHEALTHY, json!({})),
    }
}

async fn ack() -> Answer {
    say(400, ACK_DISABLED, json!({}))
}

/// A refusal with the code that Splunk has for it.
pub fn refusal(refused: Refused, headers: &HeaderMap) -> Answer {
    let given = headers.get("authorization").map(|value| value.as_bytes());
    let (status, code) = match (refused.status, refused.reason, given) {
        (401, _, None) => (401, TOKEN_REQUIRED),
        (401, _, Some(given)) if auth::token(given).is_none() => (401, INVALID_AUTHORIZATION),
        (401, ..) => (403, INVALID_TOKEN),
        // Splunk knows no other answer that means "again, later"; some of its clients drop what gets a 429.
        (408 | 429 | 503, ..) => (503, BUSY),
        (400, "event_required", _) => (400, EVENT_REQUIRED),
        (400, "event_blank", _) => (400, EVENT_BLANK),
        (status, ..) => (status, INVALID_FORMAT),
    };
    let mut more = json!({ "error": refused.reason, "detail": refused.detail });
    if let Some(number) = refused.item {
        more["invalid-event-number"] = number.into();
    }
    say(status, code, more).of(&Refused { status, ..refused })
}

fn say(status: u16, (code, text): Code, mut more: Value) -> Answer {
    more["text"] = text.into();
    more["code"] = code.into();
    Answer::json(status, &more)
}
