//! The Loki API: push, and the part of its query API that Grafana's Loki data source needs.
//!
//! - A query is LogQL (see [`logweir_query::logql`]) and subject to the same limits as every other query.
//! - A stream is a combination of service, host and level. Attributes are structured metadata, or labels for clients
//!   that do not distinguish the two, as in Loki itself.
//! - Volumes are numbers of records, not of bytes as in Loki.
//! - Errors are plain text, as Loki's are.

mod loki_parameters;
mod labels;
mod metric;
mod push;
mod query;
mod streams;
mod tail;

use actix_web::http::header::HeaderMap;
use actix_web::web::{self, ServiceConfig};

use super::answer::{Answer, HttpError};
use super::with_methods;

/// The query endpoints, for the API description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(
    query::query,
    query::query_range,
    labels::labels,
    labels::values,
    labels::series,
    labels::stats,
    labels::volume,
    labels::volume_range,
    tail::tail
))]
pub struct LokiApi;

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    let both = &["GET", "POST"];
    macro_rules! read {
        ($path:literal, $handler:path) => {
            with_methods(concat!("/loki/api/v1/", $path), both)
                .route(web::get().to($handler))
                .route(web::post().to($handler))
        };
    }
    routes
        .service(with_methods("/loki/api/v1/push", &["POST"]).route(web::post().to(push::push)))
        .service(read!("query", query::query))
        .service(read!("query_range", query::query_range))
        .service(read!("labels", labels::labels))
        .service(read!("label", labels::labels))
        .service(read!("label/{name}/values", labels::values))
        .service(read!("series", labels::series))
        .service(read!("index/stats", labels::stats))
        .service(read!("index/volume", labels::volume))
        .service(read!("index/volume_range", labels::volume_range))
        .service(with_methods("/loki/api/v1/tail", &["GET"]).route(web::get().to(tail::tail)))
        .service(web::resource("/loki/{path:.*}").default_service(web::to(|| async { unknown() })));
}

fn unknown() -> Answer {
    text(
        404,
        "unsupported Loki endpoint: expected one of push, query, query_range, labels, label/NAME/values, series, \
         index/stats, index/volume, index/volume_range, tail under /loki/api/v1/"
            .to_owned(),
    )
}

/// A rejection in the shape of a Loki error.
pub fn error_response(rejection: HttpError, _: &HeaderMap) -> Answer {
    text(rejection.status, format!("{}: {}", rejection.reason, rejection.detail)).of(&rejection)
}

fn text(status: u16, text: String) -> Answer {
    Answer::body(status, "text/plain; charset=utf-8", text + "\n")
}

/// Whether the body is declared as JSON.
pub use push::is_json;
