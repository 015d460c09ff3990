//! The parameters of an intake request, from its query string and headers; the query string takes precedence.
//!
//! `/ingest` rejects unknown parameters: a misspelled `?ack=` must not weaken the guarantee. The endpoints of other
//! protocols ignore them, because their clients send parameters of their own.

use std::sync::Arc;

use actix_web::http::header::{HeaderMap, HeaderValue};
use actix_web::{HttpRequest, web};

use super::answer::HttpError;
use super::content_headers::encoding;
use crate::config::Config;
use crate::message::{AckLevel, Encoding};
use logweir_formats::{Defaults, FieldMap, Format};
use logweir_formats::{NAME_BYTES_MAX, push_member};

/// More names than this for one field are not a plausible mapping.
const NAMES_MAX: usize = 32;

/// The parameters of an intake request.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters {
    /// From `Content-Encoding`.
    pub encoding: Encoding,
    /// How to parse the body.
    pub format: Format,
    /// When to acknowledge.
    pub ack: AckLevel,
    /// Values for records that do not specify them.
    pub defaults: Defaults,
}

/// Parameters as pairs of name and value.
pub type Pairs = Vec<(String, String)>;

impl Parameters {
    /// Reads the parameters common to all endpoints; returns the remaining ones to the caller.
    pub fn read(request: &HttpRequest, config: &Config) -> Result<(Self, Pairs), HttpError> {
        let headers = request.headers();
        let mut parameters = Self {
            encoding: encoding(headers.get("content-encoding"))?,
            format: Format::Auto,
            ack: config.ack,
            defaults: Defaults {
                service: header_name(headers, "X-Logweir-Service")?,
                host: header_name(headers, "X-Logweir-Host")?,
                ..Defaults::default()
            },
        };
        let pairs = web::Query::<Pairs>::from_query(request.query_string())
            .map_err(|error| HttpError::new(400, "bad_parameter", format!("invalid query string: {error}")))?
            .into_inner();
        let mut fields = FieldMap::default();
        for (header, parameter) in MAPPING {
            if let Some(value) = headers.get(header) {
                parameters.map(&mut fields, parameter, header_text(header, value)?)?;
            }
        }
        let mut left = Pairs::new();
        for (name, value) in pairs {
            match &*name {
                "ack" => parameters.ack = ack(&value)?,
                "service" => parameters.defaults.service = Some(sender_name("service", &value)?),
                "host" => parameters.defaults.host = Some(sender_name("host", &value)?),
                _ if parameters.map(&mut fields, &name, &value)? => {}
                _ => left.push((name, value)),
            }
        }
        if fields != FieldMap::default() {
            parameters.defaults.fields = Some(Arc::new(fields));
        }
        Ok((parameters, left))
    }

    /// Reads a parameter of the field mapping; returns whether it is one.
    fn map(&mut self, fields: &mut FieldMap, name: &str, value: &str) -> Result<bool, HttpError> {
        let list = match name {
            "_time_field" => &mut fields.time,
            "_level_field" => &mut fields.level,
            "_msg_field" => &mut fields.message,
            "_service_field" => &mut fields.service,
            "_host_field" => &mut fields.host,
            "ignore_fields" => &mut fields.ignore,
            "extra_fields" => {
                self.defaults.attributes = members(value)?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        *list = value.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        if list.len() > NAMES_MAX {
            return Err(HttpError::new(
                400,
                "bad_parameter",
                format!("invalid {name}: expected at most {NAMES_MAX} field names"),
            ));
        }
        Ok(true)
    }
}

/// Headers equivalent to the parameters of the field mapping.
const MAPPING: [(&str, &str); 7] = [
    ("X-Logweir-Time-Field", "_time_field"),
    ("X-Logweir-Level-Field", "_level_field"),
    ("X-Logweir-Msg-Field", "_msg_field"),
    ("X-Logweir-Service-Field", "_service_field"),
    ("X-Logweir-Host-Field", "_host_field"),
    ("X-Logweir-Ignore-Fields", "ignore_fields"),
    ("X-Logweir-Extra-Fields", "extra_fields"),
];

/// `a=1,b=two` as members of a JSON object, without braces.
fn members(value: &str) -> Result<Option<Arc<str>>, HttpError> {
    let bad = |detail: String| HttpError::new(400, "bad_parameter", detail);
    let mut members = String::new();
    for pair in value.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| bad(format!("invalid extra_fields {pair:?}: expected name=value")))?;
        push_member(&mut members, name.trim(), value.trim());
    }
    if members.len() > EXTRA_BYTES_MAX {
        return Err(bad(format!("invalid extra_fields: expected at most {EXTRA_BYTES_MAX} bytes")));
    }
    Ok(Some(members).filter(|members| !members.is_empty()).map(Arc::from))
}

/// Attributes that are added to every record must not be larger than a record.
const EXTRA_BYTES_MAX: usize = 1024;

fn ack(value: &str) -> Result<AckLevel, HttpError> {
    match value {
        "received" => Ok(AckLevel::Received),
        "journal" => Ok(AckLevel::Journal),
        "committed" => Ok(AckLevel::Committed),
        _ => {
            let detail = format!("invalid ack {value:?}: expected one of received, journal, committed");
            Err(HttpError::new(400, "bad_parameter", detail))
        }
    }
}

/// `?format=`.
pub fn format(value: &str, config: &Config) -> Result<Format, HttpError> {
    config.parse.format_named(value).ok_or_else(|| {
        let detail = format!("invalid format {value:?}: expected one of {}", config.parse.format_names());
        HttpError::new(400, "bad_parameter", detail)
    })
}

fn header_name(headers: &HeaderMap, header: &'static str) -> Result<Option<Arc<str>>, HttpError> {
    let Some(value) = headers.get(header) else { return Ok(None) };
    sender_name(header, header_text(header, value)?).map(Some)
}

fn header_text<'h>(header: &str, value: &'h HeaderValue) -> Result<&'h str, HttpError> {
    std::str::from_utf8(value.as_bytes())
        .map_err(|_| HttpError::new(400, "bad_parameter", format!("invalid {header}: expected UTF-8")))
}

/// A service or host name from a sender, within what an index entry can hold and PostgreSQL accepts.
pub fn sender_name(parameter: &str, value: &str) -> Result<Arc<str>, HttpError> {
    let value = value.trim();
    if value.is_empty() || value.len() > NAME_BYTES_MAX || value.contains('\0') {
        let detail = format!("invalid {parameter}: expected 1 to {NAME_BYTES_MAX} bytes without NUL");
        return Err(HttpError::new(400, "bad_parameter", detail));
    }
    Ok(value.into())
}
