//! What travels between the stages. A message is a chunk or a batch, never a single record.

use std::sync::Arc;

use bytes::Bytes;
use logweir_engine::chunk::Chunk;
use logweir_engine::journal::{AppendError, DedupKey, Journal, LaneId};
use logweir_engine::mailbox::Message;
use tokio::sync::oneshot;

/// How far a chunk must have come before its sender is told that it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckLevel {
    /// Admitted to the journal's queue: survives SIGTERM, not a crash.
    Received,
    /// Covered by a completed fsync.
    #[default]
    Journal,
    /// Committed by the database.
    Committed,
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Encoding {
    /// Not at all.
    #[default]
    Identity,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// zlib, or raw deflate.
    Deflate,
    /// A snappy block, or a stream of snappy frames.
    Snappy,
}

/// What ends a record of [`Format::Records`]: ASCII's record separator. Sources write U+241E where a record holds it.
pub const RECORD_END: u8 = 0x1E;

/// How the lines of a body are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// By looking at the body and at each line.
    #[default]
    Auto,
    /// By looking at each line: for sources whose bodies are cut anywhere between two lines.
    Lines,
    /// Records that each end with [`RECORD_END`] and may have many lines, each then looked at like a line. For sources
    /// that know where a record ends; not for `?format=`.
    Records,
    /// One JSON object per line.
    Ndjson,
    /// One JSON array of objects, or one object.
    Json,
    /// Each line is a message.
    Plain,
    /// Apache/nginx common or combined access log.
    AccessLog,
    /// The JSON of Loki's push API.
    LokiJson,
    /// The protobuf of Loki's push API.
    LokiProtobuf,
    /// `ExportLogsServiceRequest` as JSON.
    OtlpJson,
    /// `ExportLogsServiceRequest` as protobuf.
    OtlpProtobuf,
    /// Elasticsearch's bulk API: a line that says what to do, and a document.
    ElasticBulk,
    /// Events of Splunk's HTTP Event Collector: JSON objects one after the other.
    SplunkEvents,
    /// The parser's line format of this name.
    Line(&'static str),
    /// The configured format with this number.
    Custom(u16),
}

/// What the sender says of its records, for those that do not say it themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Service name; `unknown_service` where nobody gives one.
    pub service: Option<Arc<str>>,
    /// Host name; empty where nobody gives one.
    pub host: Option<Arc<str>>,
    /// Members of a JSON object that each record gets, without braces: where the source found it.
    pub attributes: Option<Arc<str>>,
    /// Elasticsearch's index, for documents that name none.
    pub index: Option<Arc<str>>,
    /// Which of their fields means what, where the usual names do not fit.
    pub fields: Option<Arc<FieldMap>>,
}

/// Which fields of a JSON record mean what; names that are named here come before the usual ones.
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
    /// Fields that are left out; a `*` at the end stands for any rest.
    pub ignore: Vec<String>,
}

/// One body as a source received it. The producer's message.
#[derive(Debug)]
pub struct Delivery {
    /// Deliveries of one stream (a connection, a file, stdin) stay in one lane, in order.
    pub stream: u64,
    /// The body, still compressed.
    pub body: Bytes,
    /// How it is compressed.
    pub encoding: Encoding,
    /// How its lines are to be understood.
    pub format: Format,
    /// What the sender says of its records.
    pub defaults: Defaults,
    /// Time of arrival in microseconds since 1970.
    pub received_us: i64,
    /// What tells it from a repetition: it is stored once.
    pub dedup_key: Option<DedupKey>,
    /// When to answer.
    pub ack: AckLevel,
    /// Where the answer goes. Dropping it unanswered (a panic) reads as `Rejection` "lost in a restart".
    pub reply: Reply,
}

/// A body decompressed, on its way to the parser.
#[derive(Debug)]
pub struct RawChunk {
    /// The body, plain.
    pub body: Bytes,
    /// As in [`Delivery`].
    pub format: Format,
    /// As in [`Delivery`].
    pub defaults: Defaults,
    /// As in [`Delivery`].
    pub received_us: i64,
    /// As in [`Delivery`].
    pub dedup_key: Option<DedupKey>,
    /// As in [`Delivery`].
    pub ack: AckLevel,
    /// As in [`Delivery`].
    pub reply: Reply,
}

/// A chunk on its way to the batcher.
#[derive(Debug)]
pub struct ParsedChunk {
    /// The records.
    pub chunk: Chunk,
    /// What the parser has to say to the sender.
    pub report: ParseReport,
    /// As in [`Delivery`].
    pub dedup_key: Option<DedupKey>,
    /// As in [`Delivery`].
    pub ack: AckLevel,
    /// As in [`Delivery`].
    pub reply: Reply,
}

/// What became of the lines of one body.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ParseReport {
    /// Lines that became records.
    pub accepted: u32,
    /// Lines that were discarded (and why is in `errors`, up to ten).
    pub rejected: u32,
    /// Records that were kept whole as plain text because their format was not understood.
    pub parse_errors: u32,
    /// The first errors.
    pub errors: Vec<LineError>,
    /// What became of each item of a bulk request; empty for every other format.
    #[serde(skip)]
    pub items: Vec<BulkItem>,
}

/// One item of an Elasticsearch bulk request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkItem {
    /// `create`, `index`, `update` or `delete`.
    pub action: &'static str,
    /// The index it was for; empty where neither it nor the path names one.
    pub index: Arc<str>,
    /// What became of it.
    pub outcome: ItemOutcome,
}

/// What became of one item of a bulk request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemOutcome {
    /// It is a record.
    Stored,
    /// It asks to change what is stored, which a log does not do.
    Unsupported,
    /// Its document is above the limit of a line.
    TooLong,
}

/// One line's error.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LineError {
    /// Line number in the body, from 1 (in a JSON array: the element's number).
    pub line: u32,
    /// What is wrong with it and what became of it.
    pub error: String,
}

/// One frame's records in memory, shared by the flusher and the cache-writer.
#[derive(Clone, Debug)]
pub struct BatchFrame {
    /// Sequence number of the frame.
    pub seq: u64,
    /// Records of the lane up to and including it.
    pub lane_records: u64,
    /// CRC-32C of the frame's payload.
    pub payload_crc: u32,
    /// The records. The first has the ordinal `lane_records - chunk.len() + 1`.
    pub chunk: Arc<Chunk>,
}

/// Records of a lane that must be in the journal and are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    /// The first sequence number that they can have had.
    pub seq_first: u64,
    /// The last one.
    pub seq_last: u64,
    /// How many.
    pub records: u64,
}

/// Consecutive chunks of one lane that enter the database in one transaction: the range `(from_seq, to_seq]`.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The lane.
    pub lane: LaneId,
    /// The cursor before it.
    pub from_seq: u64,
    /// Records of the lane up to and including `from_seq`.
    pub from_records: u64,
    /// The journal's generation in which its numbers were given.
    pub generation: u64,
    /// Its frames, in order; not empty.
    pub frames: Vec<BatchFrame>,
}

impl Batch {
    /// Waits for the fsync that covers it. False when that never comes: the disk was full and its numbers were taken
    /// back, so that other records have (or will have) them.
    pub async fn is_durable(&self, journal: &Journal) -> bool {
        journal.durable(self.to_seq()).await.is_ok() && journal.generation() == self.generation
    }

    /// The cursor after it.
    #[must_use]
    pub fn to_seq(&self) -> u64 {
        self.frames.last().map_or(self.from_seq, |frame| frame.seq)
    }

    /// Records of the lane up to and including the last frame.
    #[must_use]
    pub fn to_records(&self) -> u64 {
        self.frames.last().map_or(self.from_records, |frame| frame.lane_records)
    }

    /// Records in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.frames.iter().map(|frame| frame.chunk.len() as u64).sum()
    }

    /// Where records should lie in the range and do not.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let (mut seq, mut records) = (self.from_seq, self.from_records);
        let mut gaps = Vec::new();
        for frame in &self.frames {
            let here = frame.chunk.len() as u64;
            let missing = frame.lane_records.saturating_sub(here).saturating_sub(records);
            if missing > 0 {
                // A frame without records stands for one that cannot be read itself.
                let seq_last = if here > 0 { frame.seq - 1 } else { frame.seq };
                gaps.push(Gap { seq_first: seq + 1, seq_last, records: missing });
            }
            (seq, records) = (frame.seq, frame.lane_records);
        }
        gaps
    }

    /// Records that should lie in the range and do not: damaged in the journal, or gone from it.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.to_records().saturating_sub(self.from_records).saturating_sub(self.records())
    }

    /// What the database keeps beside the cursor, to notice a sequence number that was used twice:
    /// CRC, records and length of the last frame.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        if let Some(last) = self.frames.last() {
            digest[..4].copy_from_slice(&last.payload_crc.to_le_bytes());
            digest[4..8].copy_from_slice(&u32::try_from(last.chunk.len()).unwrap_or(u32::MAX).to_le_bytes());
            digest[8..].copy_from_slice(&last.lane_records.to_le_bytes());
        }
        digest
    }
}

/// The answer's way back to the source.
pub type Reply = oneshot::Sender<Result<Receipt, Rejection>>;

/// A chunk is stored as far as its [`AckLevel`] asks (for `Committed`: it is in the journal, the
/// source then waits for the lane's cursor to pass `seq`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The lane it went to.
    pub lane: LaneId,
    /// Its frame's sequence number; 0 if it held no record and was not written.
    pub seq: u64,
    /// What became of its lines.
    pub report: ParseReport,
    /// It was stored by an earlier request with the same mark, whose frame this is; not again.
    pub repeated: bool,
}

/// A chunk was not taken, or not as far as was asked. Nothing of it is stored, unless `detail` says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What kind of refusal, which decides the status code.
    pub kind: RejectionKind,
    /// Snake-case reason, the label of the counter, e.g. `journal_quota`.
    pub reason: &'static str,
    /// One sentence for a person.
    pub detail: String,
}

impl std::error::Error for Rejection {}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl Rejection {
    /// The mailboxes do not take anything more: the process is on its way down.
    #[must_use]
    pub fn draining() -> Self {
        let detail = "this process is shutting down: send to another one, or again in a while".to_owned();
        Self { kind: RejectionKind::Unavailable, reason: "draining", detail }
    }

    /// The commit did not come in time.
    #[must_use]
    pub fn not_committed() -> Self {
        let detail = "the database has not committed it in time: it is in the journal and will be committed; a re-send \
                      without an Idempotency-Key would be a new record";
        Self { kind: RejectionKind::Unavailable, reason: "ack_timeout", detail: detail.to_owned() }
    }

    /// The journal takes nothing, for this reason.
    #[must_use]
    pub fn of_journal(error: &AppendError) -> Self {
        let (kind, reason, advice) = match error {
            AppendError::Quota => (
                RejectionKind::Unavailable,
                "journal_quota",
                "it goes on when the database has taken what waits, or with a larger journal.quota_bytes",
            ),
            AppendError::DiskFull => {
                (RejectionKind::Unavailable, "journal_disk_full", "it goes on when there is room on the volume")
            }
            AppendError::TooLarge { .. } => (RejectionKind::TooLarge, "chunk_too_large", "send smaller bodies"),
            AppendError::Poisoned(_) => {
                (RejectionKind::Unavailable, "journal_failed", "nothing can be promised before a restart")
            }
            AppendError::Sealed => return Self::draining(),
            AppendError::Repeated => {
                (RejectionKind::Unavailable, "in_progress", "its first sending is on its way to the disk, ask again")
            }
        };
        Self { kind, reason, detail: format!("{error}: {advice}") }
    }
}

/// What kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionKind {
    /// The mailboxes are full: 429.
    Busy,
    /// Draining, quota, disk: 503.
    Unavailable,
    /// Above a size limit: 413.
    TooLarge,
    /// No retry mends it: 400.
    Malformed,
    /// The same, and this item of the body (from 0) is to blame.
    MalformedItem(u32),
}

impl Message for Delivery {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.body.len()
    }
}

impl Message for RawChunk {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.body.len()
    }
}

impl Message for ParsedChunk {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.chunk.bytes()
    }
}

impl Message for Batch {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.frames.iter().map(|frame| frame.chunk.bytes()).sum::<usize>()
    }
}
