//! The query API, `/api/v1/…` on the data listener.

pub(super) mod query_parameters;
mod context;
mod facets;
mod fields;
mod hits;
mod openapi;
mod query;
mod record;

use actix_web::web::{self, ServiceConfig};

use super::routing::{get_or_head, with_methods};

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    let get = &["GET"];
    routes
        .service(with_methods("/api/v1/query", get).route(web::get().to(query::query)))
        .service(with_methods("/api/v1/hits", get).route(web::get().to(hits::hits)))
        .service(with_methods("/api/v1/facets", get).route(web::get().to(facets::facets)))
        .service(with_methods("/api/v1/context", get).route(web::get().to(context::context)))
        .service(with_methods("/api/v1/fields", get).route(web::get().to(fields::fields)))
        .service(with_methods("/api/v1/services", get).route(web::get().to(fields::services)))
        .service(get_or_head("/api/v1/openapi.json", openapi::openapi))
        .service(get_or_head("/api/v1/docs", openapi::docs))
        .service(get_or_head("/api/v1/docs.js", openapi::script))
        .service(get_or_head("/api/v1/docs.css", openapi::style));
}
