//! Where the formats put what they understood, and what they did not.

use logweir_engine::chunk::Chunk;
use logweir_engine::codec::PAYLOAD_BYTES_MAX;
use logweir_engine::record::{Record, Severity};

use super::text::Sanitised;
use crate::message::{LineError, ParseReport};

/// A longer service or host name is no name: an index entry must hold it together with a time.
pub const NAME_BYTES_MAX: usize = 255;

/// Errors that are told to the sender; the others are counted.
const ERRORS_MAX: usize = 10;

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
    pub received_us: i64,
    /// The service of records that name none.
    pub service: &'d str,
    /// The host of records that name none.
    pub host: &'d str,
    /// Whether the body may hold escapes that PostgreSQL refuses.
    pub bad_escapes: bool,
    /// The line (or array element) that is being parsed, from 1.
    pub line: u32,
    full: bool,
}

impl<'d> Sink<'d> {
    /// An empty chunk for `records` records with `text_bytes` of text (a guess, which is capped).
    pub fn new(received_us: i64, service: &'d str, host: &'d str, records: usize, text_bytes: usize) -> Self {
        let records = records.min(PAYLOAD_BYTES_MAX / 64);
        let text_bytes = (text_bytes + records * (service.len() + host.len())).min(PAYLOAD_BYTES_MAX);
        Self {
            chunk: Chunk::with_capacity(received_us, records, text_bytes),
            report: ParseReport::default(),
            sanitised: Sanitised::default(),
            too_long: 0,
            parse_errors: Vec::new(),
            received_us,
            service,
            host,
            bad_escapes: false,
            line: 0,
            full: false,
        }
    }

    /// Appends a record, unless the chunk would no longer fit into a frame: then it is [full](Self::is_full).
    pub fn push(&mut self, record: Record<'_>) {
        const ROW: usize = 8 + 1 + 4 * size_of::<u32>();
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
        let (service, host) = (self.service, self.host);
        let severity = Severity::UNSPECIFIED;
        self.push(Record { ts_us: self.received_us, severity, service, host, message, attributes: "" });
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
