//! A record as the API gives it.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::query::page::Found;
use crate::store::time_text;

/// A record as one JSON object.
pub struct RecordBody<'a>(pub &'a Found);

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Record)]
pub(super) struct Body<'a> {
    /// Text: it has more digits than a double holds.
    id: String,
    ts: String,
    severity: u8,
    severity_text: &'static str,
    service: &'a str,
    host: &'a str,
    message: &'a str,
    #[schema(value_type = Object)]
    attributes: &'a RawValue,
}

impl Serialize for RecordBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let found = self.0;
        let attributes = if found.attributes.is_empty() { "{}" } else { &found.attributes };
        Body {
            id: found.id.to_string(),
            ts: time_text(found.ts_us),
            severity: found.severity.number(),
            severity_text: found.severity.name(),
            service: &found.service,
            host: &found.host,
            message: &found.message,
            attributes: serde_json::from_str(attributes).map_err(serde::ser::Error::custom)?,
        }
        .serialize(serializer)
    }
}

/// The first line of a CSV file.
pub const CSV_HEADER: &str = "id,ts,severity,severity_text,service,host,message,attributes\r\n";

/// A record as one line of CSV (RFC 4180).
pub fn csv(out: &mut String, found: &Found) {
    let (id, ts, severity) = (found.id.to_string(), time_text(found.ts_us), found.severity.number().to_string());
    let values =
        [&*id, &ts, &severity, found.severity.name(), &found.service, &found.host, &found.message, &found.attributes];
    for (nth, value) in values.into_iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        if value.contains([',', '"', '\r', '\n']) {
            out.push('"');
            out.push_str(&value.replace('"', "\"\""));
            out.push('"');
        } else {
            out.push_str(value);
        }
    }
    out.push_str("\r\n");
}
