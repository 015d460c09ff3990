//! The subset of Loki's and OpenTelemetry's protobuf that a sender needs.

use prost::Message;

/// `logproto.PushRequest`.
#[derive(Message)]
pub struct PushRequest {
    /// Streams of entries.
    #[prost(message, repeated, tag = "1")]
    pub streams: Vec<Stream>,
}

/// `logproto.Stream`.
#[derive(Message)]
pub struct Stream {
    /// `{name="value", …}`.
    #[prost(string, tag = "1")]
    pub labels: String,
    /// The lines.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<Entry>,
}

/// `logproto.Entry`.
#[derive(Message)]
pub struct Entry {
    /// Timestamp.
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    /// Text.
    #[prost(string, tag = "2")]
    pub line: String,
}

/// `google.protobuf.Timestamp`.
#[derive(Message)]
pub struct Timestamp {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
}

/// `ExportLogsServiceRequest`.
#[derive(Message)]
pub struct ExportLogs {
    /// Records by resource.
    #[prost(message, repeated, tag = "1")]
    pub resource_logs: Vec<ResourceLogs>,
}

/// `ResourceLogs`.
#[derive(Message)]
pub struct ResourceLogs {
    /// The resource.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// Records by instrumentation scope.
    #[prost(message, repeated, tag = "2")]
    pub scope_logs: Vec<ScopeLogs>,
}

/// `Resource`.
#[derive(Message)]
pub struct Resource {
    /// Attributes.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// `ScopeLogs`.
#[derive(Message)]
pub struct ScopeLogs {
    /// The records.
    #[prost(message, repeated, tag = "2")]
    pub log_records: Vec<LogRecord>,
}

/// `LogRecord`.
#[derive(Message)]
pub struct LogRecord {
    /// Nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    pub time: u64,
    /// `SeverityNumber`.
    #[prost(int32, tag = "2")]
    pub severity: i32,
    /// Severity text.
    #[prost(string, tag = "3")]
    pub severity_text: String,
    /// Text.
    #[prost(message, optional, tag = "5")]
    pub body: Option<Text>,
    /// Attributes.
    #[prost(message, repeated, tag = "6")]
    pub attributes: Vec<KeyValue>,
    /// 16 bytes, or empty.
    #[prost(bytes = "vec", tag = "9")]
    pub trace_id: Vec<u8>,
}

/// `KeyValue`.
#[derive(Message)]
pub struct KeyValue {
    /// Key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Text>,
}

/// `AnyValue` that is a string.
#[derive(Message)]
pub struct Text {
    /// The string.
    #[prost(string, tag = "1")]
    pub text: String,
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned() }
    }
}
