//! Collects what the formats parsed, and what they could not.

use logweir_record::chunk::Chunk;
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use logweir_record::record::{Record, Severity};

use crate::format::{Defaults, FieldMap};
use crate::report::{LineError, ParseReport};
use crate::rules::Rules;
use crate::text::Sanitized;
use crate::time::EventTime;

/// Maximum length of a service or host name, in bytes: an index entry must hold it together with a time.
pub const NAME_BYTES_MAX: usize = 255;

/// Service of records that have none.
pub const SERVICE_UNKNOWN: &str = "unknown_service";

/// Errors that are reported to the sender; further ones are only counted.
const ERRORS_MAX: usize = 10;

/// Defaults around a record: a Loki stream, an OTLP resource, a container runtime's line. A format sets it before the
/// inner text is parsed, and clears it afterwards.
#[derive(Debug, Default)]
pub struct Envelope {
    /// Time of records without one.
    pub ts_us: Option<i64>,
    /// The protocol's own time takes precedence over the inner text.
    pub ts_is_fixed: bool,
    /// Severity of records without one.
    pub severity: Severity,
    /// Service of records without one; empty for none.
    pub service: String,
    /// Host of records without one; empty for none.
    pub host: String,
    /// Members of a JSON object that precede the record's own, without braces.
    pub attributes: String,
}

impl Envelope {
    /// Clears it, keeping the memory.
    pub fn clear(&mut self) {
        self.ts_us = None;
        self.ts_is_fixed = false;
        self.severity = Severity::UNSPECIFIED;
        self.service.clear();
        self.host.clear();
        self.attributes.clear();
    }
}

/// The chunk under construction and its report.
pub struct Sink<'d> {
    chunk: Chunk,
    /// The report for the sender.
    pub report: ParseReport,
    /// What was sanitized.
    pub sanitized: Sanitized,
    /// Lines that were discarded because they are too long.
    pub too_long: u64,
    /// Unparsed lines by format, the latest format last.
    pub parse_errors: Vec<(&'static str, u64)>,
    /// Time of arrival: the time of records without one.
    received_us: i64,
    /// Service of records without one.
    service: &'d str,
    /// Host of records without one.
    host: &'d str,
    /// Members of a JSON object that each record gets, without braces; empty for none.
    attributes: &'d str,
    /// Envelope of the record that is being parsed.
    pub envelope: Envelope,
    /// Configured rules for times and formats.
    pub rules: &'d Rules,
    /// Buffer for merged attributes.
    merged: String,
    /// The sender's mapping of JSON fields, if any.
    pub fields: Option<&'d FieldMap>,
    /// Elasticsearch's default index.
    index: &'d str,
    /// Whether the body may contain escapes that PostgreSQL rejects.
    pub bad_escapes: bool,
    /// Number of the line (or array element) that is being parsed, from 1.
    pub line: u32,
    full: bool,
}

impl<'d> Sink<'d> {
    /// An empty chunk for `records` records with `text_bytes` of text (an estimate, which is capped).
    pub fn new(received_us: i64, defaults: &'d Defaults, records: usize, text_bytes: usize) -> Self {
        let service = defaults.service.as_deref().unwrap_or(SERVICE_UNKNOWN);
        let host = defaults.host.as_deref().unwrap_or_default();
        let attributes = defaults.attributes.as_deref().unwrap_or_default();
        let records = records.min(PAYLOAD_BYTES_MAX / 64);
        let each = service.len() + host.len() + attributes.len();
        let text_bytes = (text_bytes + records * each).min(PAYLOAD_BYTES_MAX);
        Self {
            chunk: Chunk::with_capacity(received_us, records, text_bytes),
            report: ParseReport::default(),
            sanitized: Sanitized::default(),
            too_long: 0,
            parse_errors: Vec::new(),
            received_us,
            service,
            host,
            attributes,
            envelope: Envelope::default(),
            rules: Rules::built_in(),
            merged: String::new(),
            fields: defaults.fields.as_deref(),
            index: defaults.index.as_deref().unwrap_or_default(),
            bad_escapes: false,
            line: 0,
            full: false,
        }
    }

    /// Returns the time of arrival.
    pub fn received_us(&self) -> i64 {
        self.received_us
    }

    /// Returns Elasticsearch's default index; empty for none.
    pub fn index(&self) -> &'d str {
        self.index
    }

    /// Returns the time of a record without one.
    pub fn ts_us(&self) -> i64 {
        self.envelope.ts_us.unwrap_or(self.received_us)
    }

    /// Returns the instant of a record's own time, in the configured time zone if it has none.
    pub fn instant(&self, time: EventTime) -> i64 {
        time.in_zone(&self.rules.time_zone)
    }

    /// Appends a record, unless the chunk would no longer fit into a frame: then it is [full](Self::is_full).
    ///
    /// An empty service or host and an unspecified severity default to those of the envelope, then of the sender.
    pub fn push(&mut self, record: Record<'_>) {
        const ROW: usize = 8 + 1 + 4 * size_of::<u32>();
        let Self { envelope, merged, sanitized, .. } = self;
        let record = Record {
            ts_us: envelope.ts_us.filter(|_| envelope.ts_is_fixed).unwrap_or(record.ts_us),
            severity: if record.severity == Severity::UNSPECIFIED { envelope.severity } else { record.severity },
            service: truncate_name(
                non_empty_or(record.service, non_empty_or(&envelope.service, self.service)),
                sanitized,
            ),
            host: truncate_name(non_empty_or(record.host, non_empty_or(&envelope.host, self.host)), sanitized),
            message: record.message,
            attributes: merge(merged, [self.attributes, &envelope.attributes], record.attributes),
        };
        let texts = record.service.len() + record.host.len() + record.message.len() + record.attributes.len();
        if self.chunk.bytes() + ROW + texts > PAYLOAD_BYTES_MAX {
            self.full = true;
            return;
        }
        self.chunk.push(record);
        self.report.accepted += 1;
    }

    /// Appends a record that has only a message.
    pub fn push_plain(&mut self, message: &str) {
        let (ts_us, severity) = (self.ts_us(), Severity::UNSPECIFIED);
        self.push(Record { ts_us, severity, service: "", host: "", message, attributes: "" });
    }

    /// Keeps a line that `format` could not parse, and reports why.
    pub fn push_unparsed(&mut self, line: &str, format: &'static str, error: String) {
        match self.parse_errors.iter_mut().find(|(of, _)| *of == format) {
            Some((_, count)) => *count += 1,
            None => self.parse_errors.push((format, 1)),
        }
        self.report.parse_errors += 1;
        self.report_error(|| format!("kept as plain text: {error}"));
        self.push_plain(line);
    }

    /// Discards a line of `bytes`, and reports it.
    pub fn discard_too_long(&mut self, bytes: usize, bytes_max: usize) {
        self.too_long += 1;
        self.report.rejected += 1;
        self.report_error(|| format!("discarded: {bytes} bytes exceed http.line_bytes_max ({bytes_max} bytes)"));
    }

    /// Whether the chunk has outgrown a frame.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Fails if the chunk is full, so that nothing more is parsed; the caller detects that by itself.
    pub fn check_full(&self) -> Result<(), String> {
        if self.is_full() { Err("the chunk is full".to_owned()) } else { Ok(()) }
    }

    /// Returns the chunk and its report.
    pub fn into_chunk(self) -> (Chunk, ParseReport) {
        (self.chunk, self.report)
    }

    fn report_error(&mut self, error: impl FnOnce() -> String) {
        if self.report.errors.len() < ERRORS_MAX {
            self.report.errors.push(LineError { line: self.line, error: error() });
        }
    }
}

/// Whether `text` can be a service or host: not empty, and not too long for an index.
#[inline]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
}

/// The first, unless it is empty; else the second.
fn non_empty_or<'n>(first: &'n str, second: &'n str) -> &'n str {
    if first.is_empty() { second } else { first }
}

/// Cuts a name to what an index can hold. Callers that can store a long name elsewhere do so before.
fn truncate_name<'n>(name: &'n str, counts: &mut Sanitized) -> &'n str {
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    counts.name_too_long += 1;
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

/// Merges `members` and the object `own` into one JSON object; empty if all are. Of duplicate names the later one wins,
/// as in `jsonb`.
fn merge<'a>(merged: &'a mut String, members: [&str; 2], own: &'a str) -> &'a str {
    if members == ["", ""] {
        return own;
    }
    merge_some(merged, members, own)
}

/// Not inlined: most records have neither and should not carry this code.
#[inline(never)]
fn merge_some<'a>(merged: &'a mut String, members: [&str; 2], own: &str) -> &'a str {
    merged.clear();
    let own = own.strip_prefix('{').and_then(|own| own.strip_suffix('}')).unwrap_or_default();
    for members in [members[0], members[1], own].into_iter().filter(|members| !members.is_empty()) {
        merged.push(if merged.is_empty() { '{' } else { ',' });
        merged.push_str(members);
    }
    merged.push('}');
    merged
}
