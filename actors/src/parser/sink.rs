//! Where the formats put what they understood, and what they did not.

use logweir_engine::chunk::Chunk;
use logweir_engine::codec::PAYLOAD_BYTES_MAX;
use logweir_engine::record::{Record, Severity};

use super::SERVICE_UNKNOWN;
use super::rules::Rules;
use super::text::Sanitised;
use super::time::EventTime;
use crate::message::{Defaults, FieldMap, LineError, ParseReport};

/// A longer service or host name is no name: an index entry must hold it together with a time.
pub const NAME_BYTES_MAX: usize = 255;

/// Errors that are told to the sender; the others are counted.
const ERRORS_MAX: usize = 10;

/// What stands around a record and says something of it: a Loki stream, an OTLP resource, a container runtime's line.
/// A format that opens one sets it before the inner text is parsed, and clears it afterwards.
#[derive(Debug, Default)]
pub struct Envelope {
    /// The time of records that say none.
    pub ts_us: Option<i64>,
    /// The protocol's own time: it counts whatever the inner text says.
    pub ts_is_fixed: bool,
    /// The severity of records that say none.
    pub severity: Severity,
    /// The service of records that name none; empty for none.
    pub service: String,
    /// The host of records that name none; empty for none.
    pub host: String,
    /// Members of a JSON object that come before the record's own, without braces.
    pub attributes: String,
}

impl Envelope {
    /// Says nothing, and keeps its memory.
    #[allow(dead_code)] // for protocols
    pub fn clear(&mut self) {
        self.ts_us = None;
        self.ts_is_fixed = false;
        self.severity = Severity::UNSPECIFIED;
        self.service.clear();
        self.host.clear();
        self.attributes.clear();
    }
}

/// The chunk under construction and the report on it.
pub struct Sink<'d> {
    chunk: Chunk,
    /// What the sender is told.
    pub report: ParseReport,
    /// What was mended.
    pub sanitised: Sanitised,
    /// Lines that were discarded because they are too long.
    pub too_long: u64,
    /// Lines kept whole because their format was not understood, and the format of the newest.
    pub parse_errors: Vec<(&'static str, u64)>,
    /// When the body arrived: the time of records that have none.
    received_us: i64,
    /// The service of records that name none.
    service: &'d str,
    /// The host of records that name none.
    host: &'d str,
    /// Members of a JSON object that each record gets, without braces; empty for none.
    attributes: &'d str,
    /// What stands around the record that is being parsed.
    pub envelope: Envelope,
    /// What the configuration says of times and formats.
    pub rules: &'d Rules,
    /// For attributes that are put together.
    joined: String,
    /// Which fields of a JSON record mean what, where the sender says so.
    pub fields: Option<&'d FieldMap>,
    /// Elasticsearch's index of documents that name none.
    index: &'d str,
    /// Whether the body may hold escapes that PostgreSQL refuses.
    pub bad_escapes: bool,
    /// The line (or array element) that is being parsed, from 1.
    pub line: u32,
    full: bool,
}

impl<'d> Sink<'d> {
    /// An empty chunk for `records` records with `text_bytes` of text (a guess, which is capped).
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
            sanitised: Sanitised::default(),
            too_long: 0,
            parse_errors: Vec::new(),
            received_us,
            service,
            host,
            attributes,
            envelope: Envelope::default(),
            rules: Rules::built_in(),
            joined: String::new(),
            fields: defaults.fields.as_deref(),
            index: defaults.index.as_deref().unwrap_or_default(),
            bad_escapes: false,
            line: 0,
            full: false,
        }
    }

    /// When the body arrived.
    pub fn received_us(&self) -> i64 {
        self.received_us
    }

    /// Elasticsearch's index of documents that name none; empty for none.
    pub fn index(&self) -> &'d str {
        self.index
    }

    /// The time of a record that says none.
    pub fn ts_us(&self) -> i64 {
        self.envelope.ts_us.unwrap_or(self.received_us)
    }

    /// The instant that a record's own time means, in the configured time zone where it names none.
    pub fn instant(&self, time: EventTime) -> i64 {
        time.in_zone(&self.rules.time_zone)
    }

    /// Appends a record, unless the chunk would no longer fit into a frame: then it is [full](Self::is_full).
    ///
    /// An empty service or host and an unspecified severity are those of the envelope, or of the sender.
    pub fn push(&mut self, record: Record<'_>) {
        const ROW: usize = 8 + 1 + 4 * size_of::<u32>();
        let Self { envelope, joined, sanitised, .. } = self;
        let record = Record {
            ts_us: envelope.ts_us.filter(|_| envelope.ts_is_fixed).unwrap_or(record.ts_us),
            severity: if record.severity == Severity::UNSPECIFIED { envelope.severity } else { record.severity },
            service: cut(or(record.service, or(&envelope.service, self.service)), sanitised),
            host: cut(or(record.host, or(&envelope.host, self.host)), sanitised),
            message: record.message,
            attributes: join(joined, [self.attributes, &envelope.attributes], record.attributes),
        };
        let texts = record.service.len() + record.host.len() + record.message.len() + record.attributes.len();
        if self.chunk.bytes() + ROW + texts > PAYLOAD_BYTES_MAX {
            self.full = true;
            return;
        }
        self.chunk.push(record);
        self.report.accepted += 1;
    }

    /// Appends a record of which nothing is known but its text.
    pub fn push_plain(&mut self, message: &str) {
        let (ts_us, severity) = (self.ts_us(), Severity::UNSPECIFIED);
        self.push(Record { ts_us, severity, service: "", host: "", message, attributes: "" });
    }

    /// Keeps a line that `format` could not read whole, and reports why.
    pub fn push_not_understood(&mut self, line: &str, format: &'static str, error: String) {
        match self.parse_errors.iter_mut().find(|(of, _)| *of == format) {
            Some((_, count)) => *count += 1,
            None => self.parse_errors.push((format, 1)),
        }
        self.report.parse_errors += 1;
        self.tell(|| format!("kept as plain text: {error}"));
        self.push_plain(line);
    }

    /// Discards a line of `bytes`, and reports it.
    pub fn discard_too_long(&mut self, bytes: usize, bytes_max: usize) {
        self.too_long += 1;
        self.report.rejected += 1;
        self.tell(|| format!("discarded: {bytes} bytes, above http.line_bytes_max of {bytes_max}"));
    }

    /// Whether the chunk has outgrown a frame.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The chunk.
    pub fn into_chunk(self) -> (Chunk, ParseReport) {
        (self.chunk, self.report)
    }

    fn tell(&mut self, error: impl FnOnce() -> String) {
        if self.report.errors.len() < ERRORS_MAX {
            self.report.errors.push(LineError { line: self.line, error: error() });
        }
    }
}

/// The first, if it says something; else the second.
fn or<'n>(first: &'n str, second: &'n str) -> &'n str {
    if first.is_empty() { second } else { first }
}

/// What an index can hold of a name. Whoever has somewhere else to put a long name does so before.
fn cut<'n>(name: &'n str, counts: &mut Sanitised) -> &'n str {
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    counts.name_too_long += 1;
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

/// One JSON object of `members` and then those of the object `own`; nothing for nothing. Where a name comes twice the
/// later one counts, as in `jsonb`.
fn join<'a>(joined: &'a mut String, members: [&str; 2], own: &'a str) -> &'a str {
    if members == ["", ""] {
        return own;
    }
    join_some(joined, members, own)
}

/// Not in line: records without either, which are most, shall not carry it.
#[inline(never)]
fn join_some<'a>(joined: &'a mut String, members: [&str; 2], own: &str) -> &'a str {
    joined.clear();
    let own = own.strip_prefix('{').and_then(|own| own.strip_suffix('}')).unwrap_or_default();
    for members in [members[0], members[1], own].into_iter().filter(|members| !members.is_empty()) {
        joined.push(if joined.is_empty() { '{' } else { ',' });
        joined.push_str(members);
    }
    joined.push('}');
    joined
}
