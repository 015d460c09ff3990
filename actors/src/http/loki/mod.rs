//! Loki's paths: what its clients push, and the part of its query API that Grafana's data source needs.
//!
//! - A query is LogQL (see [`crate::query::logql`]); it runs as every other query does, with the same limits.
//! - A stream is what has the same service, host and level. Attributes are structured metadata, or, for clients that do not
//!   tell the two apart, labels as well, as Loki itself does it.
//! - Volumes count records, where Loki counts bytes.
//! - Errors are plain text, as Loki's are.

mod asked;
mod labels;
mod metric;
mod push;
mod query;
mod streams;
mod tail;

use actix_web::http::header::HeaderMap;
use actix_web::web::{self, ServiceConfig};

use super::answer::{Answer, Refused};
use super::only;

/// What of it is read, described.
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
pub struct Described;

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    let both = &["GET", "POST"];
    macro_rules! read {
        ($path:literal, $handler:path) => {
            only(concat!("/loki/api/v1/", $path), both).route(web::get().to($handler)).route(web::post().to($handler))
        };
    }
    routes
        .service(only("/loki/api/v1/push", &["POST"]).route(web::post().to(push::push)))
        .service(read!("query", query::query))
        .service(read!("query_range", query::query_range))
        .service(read!("labels", labels::labels))
        .service(read!("label", labels::labels))
        .service(read!("label/{name}/values", labels::values))
        .service(read!("series", labels::series))
        .service(read!("index/stats", labels::stats))
        .service(read!("index/volume", labels::volume))
        .service(read!("index/volume_range", labels::volume_range))
        .service(only("/loki/api/v1/tail", &["GET"]).route(web::get().to(tail::tail)))
        .service(web::resource("/loki/{path:.*}").default_service(web::to(|| async { unknown() })));
}

fn unknown() -> Answer {
    text(
        404,
        "this part of Loki's API is not here; there are push, query, query_range, labels, label/NAME/values, series, \
         index/stats, index/volume, index/volume_range and tail under /loki/api/v1/"
            .to_owned(),
    )
}

/// A refusal as Loki writes them.
pub fn refusal(refused: Refused, _: &HeaderMap) -> Answer {
    text(refused.status, format!("{}: {}", refused.reason, refused.detail)).of(&refused)
}

fn text(status: u16, text: String) -> Answer {
    Answer::body(status, "text/plain; charset=utf-8", text + "\n")
}

/// Whether the body is announced as JSON.
pub use push::is_json;
