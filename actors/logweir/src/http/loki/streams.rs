//! Records as Loki streams.

use std::collections::BTreeMap;

use actix_web::http::header::HeaderMap;
use logweir_record::record::Severity;
use serde::Serialize;
use serde_json::Value;

use logweir_query::logql::label_name;
use logweir_query::page::Found;

/// The labels of a stream.
pub(super) type Labels = BTreeMap<String, String>;

/// The flag that keeps structured metadata separate from labels.
pub(super) const CATEGORIZE_LABELS: &str = "categorize-labels";

#[derive(Serialize)]
pub(super) struct Stream {
    stream: Labels,
    values: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Entry {
    Line(String, String),
    EntryMetadata(String, String, EntryMetadata),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryMetadata {
    structured_metadata: Labels,
}

/// Whether the client distinguishes structured metadata from labels.
pub(super) fn categorize(headers: &HeaderMap) -> bool {
    let flags = headers.get("x-loki-response-encoding-flags").and_then(|flags| flags.to_str().ok()).unwrap_or_default();
    flags.split(',').any(|flag| flag.trim() == CATEGORIZE_LABELS)
}

/// `records` grouped by stream, in their order.
pub(super) fn streams<'a>(records: impl IntoIterator<Item = &'a Found>, categorize: bool) -> Vec<Stream> {
    let mut streams: BTreeMap<Labels, Vec<Entry>> = BTreeMap::new();
    for found in records {
        let (ts_ns, line) = ((i128::from(found.ts_us) * 1_000).to_string(), found.message.clone());
        let mut labels = labels(found);
        let metadata = metadata(&found.attributes);
        let entry = if categorize {
            Entry::EntryMetadata(ts_ns, line, EntryMetadata { structured_metadata: metadata })
        } else {
            for (name, value) in metadata {
                labels.entry(name).or_insert(value);
            }
            Entry::Line(ts_ns, line)
        };
        streams.entry(labels).or_default().push(entry);
    }
    streams.into_iter().map(|(stream, values)| Stream { stream, values }).collect()
}

fn labels(found: &Found) -> Labels {
    let labels = [("service_name", &*found.service), ("host", &*found.host), ("level", level(found.severity.name()))];
    let present = labels.into_iter().filter(|(_, value)| !value.is_empty());
    present.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The level for the name of a severity.
pub(super) fn level(severity: &str) -> &'static str {
    match severity {
        "FATAL" => "fatal",
        "ERROR" => "error",
        "WARN" => "warn",
        "INFO" => "info",
        "DEBUG" => "debug",
        "TRACE" => "trace",
        name => {
            debug_assert_eq!(name, Severity::UNSPECIFIED.name());
            "unknown"
        }
    }
}

/// Attributes as text; members of nested objects get names with underscores, as Loki flattens them.
fn metadata(attributes: &str) -> Labels {
    let mut metadata = Labels::new();
    // The store guarantees that this is an object.
    if let Ok(Value::Object(members)) = serde_json::from_str(attributes) {
        members.iter().for_each(|(name, value)| add(&mut metadata, name.clone(), value));
    }
    metadata
}

fn add(metadata: &mut Labels, name: String, value: &Value) {
    let text = match value {
        Value::Null => return,
        Value::Object(members) => {
            return members.iter().for_each(|(inner, value)| add(metadata, format!("{name}.{inner}"), value));
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    metadata.insert(label_name(&name), text);
}
