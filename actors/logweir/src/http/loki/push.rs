//! `POST /loki/api/v1/push`: 204 for what is stored.
//!
//! - A body of type `application/json` is JSON; anything else is protobuf in a snappy block, as in Loki.
//! - Errors are plain text, as Loki's are. A line above the limit is discarded and reported with 400; the other lines
//!   of the body are stored, and the text states this.

use actix_web::{HttpRequest, web};

use super::super::answer::{Answer, HttpError};
use super::super::content_headers::is_json;
use super::super::intake::accept;
use super::super::parameters::Parameters;
use super::super::shared::Shared;
use super::answer::{error_response, text};
use crate::message::Encoding;
use logweir_formats::{Format, ParseReport};

/// Handles `POST /loki/api/v1/push`.
pub async fn push(shared: web::Data<Shared>, request: HttpRequest, payload: web::Payload) -> Answer {
    match store_body(&shared, &request, payload).await {
        Ok(report) if report.rejected == 0 => Answer::empty(204),
        Ok(report) => {
            let first = report.errors.iter().find(|error| error.error.starts_with("discarded"));
            let detail = first.map_or(String::new(), |error| format!("; entry {}: {}", error.line, error.error));
            text(400, format!("stored {} lines, discarded {}{detail}", report.accepted, report.rejected))
        }
        Err(rejection) => error_response(rejection.counted(), request.headers()),
    }
}

async fn store_body(shared: &Shared, request: &HttpRequest, payload: web::Payload) -> Result<ParseReport, HttpError> {
    let (mut parameters, _) = Parameters::read(request, &shared.config)?;
    if is_json(request.headers()) {
        parameters.format = Format::LokiJson;
    } else {
        parameters.format = Format::LokiProtobuf;
        if parameters.encoding == Encoding::Identity {
            parameters.encoding = Encoding::Snappy;
        }
    }
    accept(shared, request, payload, parameters).await.map(|receipt| receipt.report)
}
