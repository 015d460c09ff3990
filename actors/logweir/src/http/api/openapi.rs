//! `GET /api/v1/openapi.json`, generated from the handlers, and `GET /api/v1/docs`, a page to try the API.

use actix_web::web;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::super::answer::{Answer, ErrorBody};
use super::super::shared::Shared;
use super::super::{alerts, dead_letters, loki, pipeline, status, tail};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "logweir",
        description = "Query API for logs. If auth.query_tokens is set, requests require a query token; requests that change dead letters require a token from auth.admin_tokens."
    ),
    security((), ("token" = [])),
    modifiers(&Token),
    components(schemas(ErrorBody<'_>)),
    paths(
        super::query::query,
        super::hits::hits,
        super::facets::facets,
        super::context::context,
        super::fields::fields,
        super::fields::services,
        tail::tail,
        alerts::alerts,
        pipeline::pipeline,
        status::status,
        dead_letters::list,
        dead_letters::replay,
        dead_letters::purge
    )
)]
struct Description;

/// Declares how a token is sent.
struct Token;

impl Modify for Token {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        description.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

fn description() -> utoipa::openapi::OpenApi {
    let mut description = Description::openapi().merge_from(loki::LokiApi::openapi());
    // Handlers of two protocols share names, and some paths have two methods, but an operation id must be unique.
    for (path, item) in &mut description.paths.paths {
        for (method, operation) in [("get", &mut item.get), ("post", &mut item.post)] {
            if let Some(operation) = operation {
                let name = path.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
                operation.operation_id = Some(format!("{method}{name}"));
            }
        }
    }
    description
}

/// Content security policy of the page: it may load only itself.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'";

/// The API description.
pub async fn openapi(_shared: web::Data<Shared>) -> Answer {
    Answer::json(200, &description())
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

/// Its style sheet.
pub async fn style(_shared: web::Data<Shared>) -> Answer {
    Answer::text("text/css; charset=utf-8", include_str!("docs.css").to_owned())
        .with_header("X-Content-Type-Options", "nosniff")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_described_with_its_parameters() {
        let text = serde_json::to_value(description()).unwrap();
        let paths = text["paths"].as_object().unwrap();
        let names = |prefix: &str| -> Vec<&str> { paths.keys().filter_map(|path| path.strip_prefix(prefix)).collect() };
        assert_eq!(
            names("/api/v1/"),
            [
                "alerts",
                "context",
                "dead-letters",
                "dead-letters/purge",
                "dead-letters/replay",
                "facets",
                "fields",
                "hits",
                "pipeline",
                "query",
                "services",
                "status",
                "tail"
            ]
        );
        assert_eq!(
            names("/loki/api/v1/"),
            [
                "index/stats",
                "index/volume",
                "index/volume_range",
                "label/{name}/values",
                "labels",
                "query",
                "query_range",
                "series",
                "tail"
            ]
        );
        let (mut schemas, mut operations) = (Vec::new(), std::collections::BTreeSet::new());
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().unwrap() {
                let has_no_parameters =
                    ["alerts", "pipeline", "status", "labels"].iter().any(|name| path.ends_with(name));
                let parameters = operation["parameters"].as_array().map_or(0, Vec::len);
                assert!(has_no_parameters || parameters >= 1, "{method} {path}");
                assert!(operation["summary"].as_str().is_some_and(|text| text.len() > 15), "{method} {path}");
                let responses = &operation["responses"];
                let upgraded = path == "/loki/api/v1/tail" && responses["101"].is_object();
                assert!(upgraded || responses["200"]["content"].is_object(), "{method} {path}");
                assert!(responses["401"]["content"].is_object() && responses["503"].is_object(), "{method} {path}");
                assert!(
                    operations.insert(operation["operationId"].to_string()),
                    "the operation id of {method} {path} is not unique"
                );
                schemas.push(operation.to_string());
            }
        }
        for reference in schemas.iter().flat_map(|text| text.split("#/components/schemas/").skip(1)) {
            let name = reference.split('"').next().unwrap();
            assert!(text["components"]["schemas"][name].is_object(), "{name} is not described");
        }
    }
}
