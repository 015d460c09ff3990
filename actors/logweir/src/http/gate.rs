//! The gate that every request passes: it authorizes the request, and counts the response.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::HeaderMap;
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpResponse, web};
use tokio::time::Instant;

use super::answer::{Answer, HttpError};
use super::auth::Listener;
use super::shared::Shared;
use super::{auth, elastic, loki, otlp, role, splunk};

/// Authorizes every request and counts every response.
pub async fn gate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let start = Instant::now();
    let response = match check_token(&request) {
        Err(denied) => {
            let answer = error_shape(request.path())(denied.counted(), request.headers());
            request.into_response(HttpResponse::from(answer)).map_into_right_body()
        }
        Ok(()) => next.call(request).await?.map_into_left_body(),
    };
    let route = response.request().match_pattern().unwrap_or_else(|| "other".to_owned());
    let seconds = start.elapsed().as_secs_f64();
    metrics::histogram!("logweir_http_request_duration_seconds", "route" => route.clone()).record(seconds);
    let status = response.status().as_u16().to_string();
    metrics::counter!("logweir_http_requests_total", "route" => route, "status" => status).increment(1);
    Ok(response)
}

/// Returns the function that shapes rejections for the protocol that owns `path`.
fn error_shape(path: &str) -> fn(HttpError, &HeaderMap) -> Answer {
    match path {
        "/v1/logs" => otlp::error_response,
        _ if path.starts_with("/loki/") => loki::error_response,
        _ if path.starts_with("/services/collector") => splunk::error_response,
        _ if path.starts_with("/_") || path.ends_with("/_bulk") => elastic::error_response,
        _ => |rejection, _| rejection.into(),
    }
}

fn check_token(request: &ServiceRequest) -> Result<(), HttpError> {
    let (Some(shared), Some(&listener)) = (request.app_data::<web::Data<Shared>>(), request.app_data::<Listener>())
    else {
        return Err(HttpError::new(500, "internal", "internal error: the listener has no shared state"));
    };
    // The allowed methods of a path are not secret, and Docker's log driver requests them without its token.
    if request.method() == Method::OPTIONS && request.path().starts_with("/services/collector") {
        return Ok(());
    }
    if listener == Listener::Data {
        role::check(shared.config.role, request.path())?;
    }
    let authorization = request.headers().get("authorization").map(|value| value.as_bytes());
    let sender = auth::check(&shared.config.auth, auth::required_access(listener, request.path()), authorization)?;
    request.extensions_mut().insert(sender);
    Ok(())
}
