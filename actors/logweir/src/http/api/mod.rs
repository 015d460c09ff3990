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

use super::answer::HttpError;
use super::{get_or_head, with_methods};
use crate::search::SearchError;
use logweir_store::read::ReadError;

pub use self::record::RecordBody;

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

impl From<SearchError> for HttpError {
    fn from(error: SearchError) -> Self {
        let detail = error.to_string();
        match error {
            SearchError::TooManyQueries(..) | SearchError::TooManyStreams(_) => {
                Self::new(429, "too_many_queries", detail)
            }
            SearchError::InvalidRequest(_) => Self::new(400, "bad_parameter", detail),
            SearchError::NotSearchable => Self::new(501, "not_searchable", detail),
            SearchError::Read(ReadError::Timeout(_) | ReadError::Preempted) => Self::new(504, "query_timeout", detail),
            SearchError::Read(ReadError::Unavailable(_) | ReadError::NoSchema) => {
                Self::new(503, "database_unavailable", detail)
            }
            SearchError::Read(ReadError::Failed(_)) => Self::new(500, "query_failed", detail),
        }
    }
}
