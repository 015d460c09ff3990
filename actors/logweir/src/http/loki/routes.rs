//! The routes.

use actix_web::web::{self, ServiceConfig};

use super::super::answer::Answer;
use super::super::routing::with_methods;
use super::answer::text;
use super::{labels, push, query, tail};

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
