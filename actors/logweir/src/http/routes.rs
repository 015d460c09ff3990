//! The routes of both listeners.

use actix_web::HttpRequest;
use actix_web::web::{self, ServiceConfig};

use super::answer::{Answer, HttpError};
use super::routing::{get_or_head, not_found, with_methods};
use super::shared::Shared;
use super::{admin, alerts, api, dead_letters, elastic, ingest, loki, otlp, pipeline, splunk, status, tail, ui};

/// The routes of the data listener.
pub fn data_routes(routes: &mut ServiceConfig) {
    routes
        .configure(ui::routes)
        .service(with_methods("/ingest", &["POST"]).route(web::post().to(ingest::ingest)))
        .service(get_or_head("/api/v1/status", status::status))
        .service(get_or_head("/api/v1/pipeline", pipeline::pipeline))
        .service(with_methods("/api/v1/alerts", &["GET"]).route(web::get().to(alerts::alerts)))
        .configure(dead_letters::routes)
        .service(with_methods("/api/v1/tail", &["GET"]).route(web::get().to(tail::tail)))
        .service(get_or_head("/ready", ready))
        .configure(api::routes)
        .configure(loki::routes)
        .service(with_methods("/v1/logs", &["POST"]).route(web::post().to(otlp::export)))
        .configure(splunk::routes)
        .configure(elastic::routes)
        .default_service(web::to(|request: HttpRequest| not_found(request, DATA_ENDPOINTS)));
}

/// The routes of the admin listener.
pub fn admin_routes(routes: &mut ServiceConfig) {
    for path in ["/livez", "/healthz", "/health"] {
        routes.service(get_or_head(path, admin::livez));
    }
    for path in ["/readyz", "/ready"] {
        routes.service(get_or_head(path, admin::readyz));
    }
    routes
        .service(get_or_head("/startupz", admin::startupz))
        .service(get_or_head("/metrics", admin::metrics))
        .service(get_or_head("/api/v1/status", status::status))
        .service(with_methods("/drain", &["POST"]).route(web::post().to(admin::drain)))
        .service(with_methods("/flush", &["POST"]).route(web::post().to(admin::flush)))
        .default_service(web::to(|request: HttpRequest| not_found(request, ADMIN_ENDPOINTS)));
}

/// Endpoints of the data listener, as listed for an unknown path.
const DATA_ENDPOINTS: &str = "GET /, POST /ingest, POST /loki/api/v1/push, POST /v1/logs, POST /_bulk, \
                              POST /services/collector, GET /api/v1/query, GET /api/v1/hits, GET /api/v1/facets, \
                              GET /api/v1/context, GET /api/v1/fields, GET /api/v1/services, GET /api/v1/tail, \
                              GET /api/v1/alerts, GET /api/v1/pipeline, GET /api/v1/status, \
                              GET /api/v1/dead-letters, GET /api/v1/docs, GET /ready";

/// Endpoints of the admin listener, as listed for an unknown path.
const ADMIN_ENDPOINTS: &str = "GET /livez, GET /readyz, GET /startupz, GET /metrics, GET /api/v1/status, \
                               POST /drain, POST /flush";

/// Readiness as log shippers and, on a gateway, Grafana query it: 200 if a request would be answered now.
async fn ready(shared: web::Data<Shared>) -> Answer {
    if shared.is_ready() {
        Answer::text("text/plain; charset=utf-8", "ready\n".to_owned())
    } else {
        HttpError::new(503, "not_ready", "not ready for requests: see /readyz on the admin port for the reason").into()
    }
}
