//! The query API, `/api/v1/…` on the data listener.

pub(super) mod asked;
mod context;
mod facets;
mod fields;
mod hits;
mod openapi;
mod query;
mod record;

use actix_web::web::{self, ServiceConfig};

use super::answer::Refused;
use super::{only, readable};
use crate::search::SearchError;
use crate::store::read::ReadError;

pub use self::record::RecordBody;

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    let get = &["GET"];
    routes
        .service(only("/api/v1/query", get).route(web::get().to(query::query)))
        .service(only("/api/v1/hits", get).route(web::get().to(hits::hits)))
        .service(only("/api/v1/facets", get).route(web::get().to(facets::facets)))
        .service(only("/api/v1/context", get).route(web::get().to(context::context)))
        .service(only("/api/v1/fields", get).route(web::get().to(fields::fields)))
        .service(only("/api/v1/services", get).route(web::get().to(fields::services)))
        .service(readable("/api/v1/openapi.json", openapi::openapi))
        .service(readable("/api/v1/docs", openapi::docs))
        .service(readable("/api/v1/docs.js", openapi::script))
        .service(readable("/api/v1/docs.css", openapi::style));
}

impl From<SearchError> for Refused {
    fn from(error: SearchError) -> Self {
        let detail = error.to_string();
        match error {
            SearchError::Busy(..) | SearchError::Streams(_) => Self::new(429, "too_many_queries", detail),
            SearchError::Wrong(_) => Self::new(400, "bad_parameter", detail),
            SearchError::NothingKept => Self::new(501, "nothing_kept", detail),
            SearchError::Read(ReadError::Timeout(_) | ReadError::MadeRoom) => Self::new(504, "query_timeout", detail),
            SearchError::Read(ReadError::Unavailable(_) | ReadError::Unprepared) => {
                Self::new(503, "database_unavailable", detail)
            }
            SearchError::Read(ReadError::Failed(_)) => Self::new(500, "query_failed", detail),
        }
    }
}
