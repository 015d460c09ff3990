//! `GET /api/v1/openapi.json`, made from the handlers, and `GET /api/v1/docs`, a page to try it.

use actix_web::web;
use utoipa::OpenApi;

use super::super::Shared;
use super::super::answer::Answer;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "logweir",
        description = "Reading logs. Requests need a query token as soon as auth.query_tokens are set."
    ),
    paths(
        super::query::query,
        super::hits::hits,
        super::facets::facets,
        super::context::context,
        super::fields::fields,
        super::fields::services
    )
)]
struct Description;

/// What the page may load: only itself.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'";

/// The description.
pub async fn openapi(_shared: web::Data<Shared>) -> Answer {
    Answer::json(200, &Description::openapi())
}

/// The page.
pub async fn docs(_shared: web::Data<Shared>) -> Answer {
    Answer::text("text/html; charset=utf-8", include_str!("docs.html").to_owned())
        .with_header("Content-Security-Policy", POLICY)
}

/// Its script.
pub async fn script(_shared: web::Data<Shared>) -> Answer {
    Answer::text("text/javascript; charset=utf-8", include_str!("docs.js").to_owned())
        .with_header("X-Content-Type-Options", "nosniff")
}

/// Its style.
pub async fn style(_shared: web::Data<Shared>) -> Answer {
    Answer::text("text/css; charset=utf-8", include_str!("docs.css").to_owned())
        .with_header("X-Content-Type-Options", "nosniff")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_described_with_its_parameters() {
        let text = serde_json::to_value(Description::openapi()).unwrap();
        let paths = text["paths"].as_object().unwrap();
        let names: Vec<_> = paths.keys().map(|path| path.trim_start_matches("/api/v1/")).collect();
        assert_eq!(names, ["context", "facets", "fields", "hits", "query", "services"]);
        for (path, described) in paths {
            assert!(described["get"]["parameters"].as_array().is_some_and(|all| all.len() >= 2), "{path}");
            assert!(described["get"]["responses"]["200"]["content"].is_object(), "{path}");
        }
    }
}
