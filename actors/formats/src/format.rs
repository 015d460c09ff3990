//! What a caller says about a body: its format, and defaults for what its records leave out.

use std::sync::Arc;

/// Terminator of a record of [`Format::Records`]: the ASCII record separator. Sources replace it by U+241E inside a
/// record.
pub const RECORD_END: u8 = 0x1E;

/// Format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// Detected from the body and from each line.
    #[default]
    Auto,
    /// Detected from each line: for sources whose bodies can start and end at any line.
    Lines,
    /// Records that each end with [`RECORD_END`] and can span lines; each is parsed like a line. For sources that know
    /// where a record ends; not available as `?format=`.
    Records,
    /// One JSON object per line.
    Ndjson,
    /// A JSON array of objects, or one object.
    Json,
    /// Plain text: each line is a message.
    Plain,
    /// Apache/nginx common or combined access log.
    AccessLog,
    /// Loki's push API, JSON.
    LokiJson,
    /// Loki's push API, protobuf.
    LokiProtobuf,
    /// `ExportLogsServiceRequest` as JSON.
    OtlpJson,
    /// `ExportLogsServiceRequest` as protobuf.
    OtlpProtobuf,
    /// Elasticsearch's bulk API: pairs of an action line and a document.
    ElasticBulk,
    /// Events of Splunk's HTTP Event Collector: concatenated JSON objects.
    SplunkEvents,
    /// The line format with this name, as returned by [`format_named`](crate::format_named). If the name is unknown,
    /// the format of each line is detected.
    Line(&'static str),
    /// The custom format at this index of [`Rules::custom`](crate::Rules::custom). If there is none, the format of each
    /// line is detected.
    Custom(u16),
}

/// The sender's defaults for fields that a record does not set.
///
/// Fields may be added in a minor version: construct it with `..Defaults::default()`. It is not `non_exhaustive`, which
/// would forbid that syntax in other crates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Service name; `unknown_service` if unset.
    pub service: Option<Arc<str>>,
    /// Host name; empty if unset.
    pub host: Option<Arc<str>>,
    /// JSON object members, without braces, that are added to each record; describes the origin, such as the file.
    /// Written with [`push_member`](crate::push_member).
    pub attributes: Option<Arc<str>>,
    /// Elasticsearch index for documents without one.
    pub index: Option<Arc<str>>,
    /// Field mapping for records with unusual field names.
    pub fields: Option<Arc<FieldMap>>,
}

/// Maps fields of JSON records; these names take precedence over the usual ones. A name with dots is that of a member of
/// a nested object.
///
/// Fields may be added in a minor version: construct it with `..FieldMap::default()`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldMap {
    /// The event time.
    pub time: Vec<String>,
    /// The severity.
    pub level: Vec<String>,
    /// The message.
    pub message: Vec<String>,
    /// The service.
    pub service: Vec<String>,
    /// The host.
    pub host: Vec<String>,
    /// Fields to drop; a trailing `*` matches any suffix.
    pub ignore: Vec<String>,
}
