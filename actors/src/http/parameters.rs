//! What a request says besides its body, by query and by header; the query counts.
//!
//! `/ingest` refuses what it does not know: a misspelt `?ack=` must not be a weaker promise. The routes of other
//! protocols pass over it: their clients send parameters of their own.

use std::sync::Arc;

use actix_web::http::header::{HeaderMap, HeaderValue};
use actix_web::{HttpRequest, web};

use super::answer::Refused;
use super::intake::encoding;
use crate::config::Config;
use crate::message::{AckLevel, Defaults, Encoding, FieldMap, Format};
use crate::parser::{NAME_BYTES_MAX, push_member};

/// More names than these for a field are no mapping but an attempt at something else.
const NAMES_MAX: usize = 32;

/// What a request says besides its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters {
    /// As `Content-Encoding` says.
    pub encoding: Encoding,
    /// How the body is understood.
    pub format: Format,
    /// When it is answered.
    pub ack: AckLevel,
    /// What the sender says of its records.
    pub defaults: Defaults,
}

/// The parameters of a request as names and values.
pub type Pairs = Vec<(String, String)>;

impl Parameters {
    /// Reads what every route understands; the parameters that are left are the caller's.
    pub fn read(request: &HttpRequest, config: &Config) -> Result<(Self, Pairs), Refused> {
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
            .map_err(|error| Refused::new(400, "bad_query", format!("the query cannot be read: {error}")))?
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

    /// Takes a parameter of the field mapping; says whether it is one.
    fn map(&mut self, fields: &mut FieldMap, name: &str, value: &str) -> Result<bool, Refused> {
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
            return Err(Refused::new(400, "bad_parameter", format!("{name} names more than {NAMES_MAX} fields")));
        }
        Ok(true)
    }
}

/// The headers that say the same as a parameter of the field mapping.
const MAPPING: [(&str, &str); 7] = [
    ("X-Logweir-Time-Field", "_time_field"),
    ("X-Logweir-Level-Field", "_level_field"),
    ("X-Logweir-Msg-Field", "_msg_field"),
    ("X-Logweir-Service-Field", "_service_field"),
    ("X-Logweir-Host-Field", "_host_field"),
    ("X-Logweir-Ignore-Fields", "ignore_fields"),
    ("X-Logweir-Extra-Fields", "extra_fields"),
];

/// `a=1,b=two` as members of a JSON object.
fn members(value: &str) -> Result<Option<Arc<str>>, Refused> {
    let bad = |detail: String| Refused::new(400, "bad_parameter", detail);
    let mut members = String::new();
    for pair in value.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| bad(format!("extra_fields has {pair:?}, which is no name=value")))?;
        push_member(&mut members, name.trim(), value.trim());
    }
    if members.len() > EXTRA_BYTES_MAX {
        return Err(bad(format!("extra_fields has more than {EXTRA_BYTES_MAX} bytes")));
    }
    Ok(Some(members).filter(|members| !members.is_empty()).map(Arc::from))
}

/// What is added to each record must not be larger than a record.
const EXTRA_BYTES_MAX: usize = 1024;

fn ack(value: &str) -> Result<AckLevel, Refused> {
    match value {
        "received" => Ok(AckLevel::Received),
        "journal" => Ok(AckLevel::Journal),
        "committed" => Ok(AckLevel::Committed),
        _ => {
            let detail = format!("ack={value:?} is not understood; there are received, journal, committed");
            Err(Refused::new(400, "bad_parameter", detail))
        }
    }
}

/// `?format=`.
pub fn format(value: &str, config: &Config) -> Result<Format, Refused> {
    config.parse.format_named(value).ok_or_else(|| {
        let detail = format!("format={value:?} is not understood; there are {}", config.parse.format_names());
        Refused::new(400, "bad_parameter", detail)
    })
}

fn header_name(headers: &HeaderMap, header: &'static str) -> Result<Option<Arc<str>>, Refused> {
    let Some(value) = headers.get(header) else { return Ok(None) };
    sender_name(header, header_text(header, value)?).map(Some)
}

fn header_text<'h>(header: &str, value: &'h HeaderValue) -> Result<&'h str, Refused> {
    std::str::from_utf8(value.as_bytes())
        .map_err(|_| Refused::new(400, "bad_parameter", format!("{header} is no UTF-8")))
}

/// A service or host that a sender names: what an index can hold and PostgreSQL takes.
pub fn sender_name(parameter: &str, value: &str) -> Result<Arc<str>, Refused> {
    let value = value.trim();
    if value.is_empty() || value.len() > NAME_BYTES_MAX || value.contains('\0') {
        let detail = format!("{parameter} must have 1 to {NAME_BYTES_MAX} bytes and no NUL");
        return Err(Refused::new(400, "bad_parameter", detail));
    }
    Ok(value.into())
}
