//! A record as the query API returns it: its id, and the [one shape](logweir_record::json) of a record.

use serde::{Serialize, Serializer};

use logweir_query::page::Found;
use logweir_record::json::RecordJson;
use logweir_record::timestamp;

/// A record as one JSON object.
pub struct RecordBody<'a>(pub &'a Found);

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Record)]
pub(super) struct Body<'a> {
    /// Text, because it exceeds the precision of a double.
    id: String,
    #[serde(flatten)]
    record: RecordJson<'a>,
}

impl Serialize for RecordBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Body { id: self.0.id.to_string(), record: self.0.json() }.serialize(serializer)
    }
}

/// The first line of a CSV file.
pub const CSV_HEADER: &str = "id,ts,severity,severity_text,service,host,message,attributes\r\n";

/// A record as one line of CSV (RFC 4180).
pub fn csv(out: &mut String, found: &Found) {
    let (id, ts, severity) = (found.id.to_string(), timestamp::text(found.ts_us), found.severity.number().to_string());
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
