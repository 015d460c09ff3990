//! Resources that also answer unknown paths and methods.

use actix_web::HttpRequest;
use actix_web::web;

use super::answer::{Answer, HttpError};
use super::shared::Shared;

/// A resource that accepts GET and HEAD.
pub fn get_or_head<H, F>(path: &'static str, handler: H) -> actix_web::Resource
where
    H: Fn(web::Data<Shared>) -> F + Clone + 'static,
    F: Future<Output = Answer> + 'static,
{
    with_methods(path, &["GET", "HEAD"]).route(web::get().to(handler.clone())).route(web::head().to(handler))
}

/// A resource that answers any other method with 405 and the allowed ones.
pub fn with_methods(path: &'static str, methods: &'static [&'static str]) -> actix_web::Resource {
    web::resource(path).default_service(web::to(move |request: HttpRequest| async move {
        let methods = methods.join(", ");
        Answer::from(HttpError::method_not_allowed(&request, &methods)).with_header("Allow", methods)
    }))
}

/// 404, with the paths that exist.
pub async fn not_found(request: HttpRequest, endpoints: &'static str) -> Answer {
    Answer::error(404, "not_found", format!("unknown path {:?}: expected one of {endpoints}", request.path()))
}
