//! Messages between the stages. A message is a chunk or a batch, never a single record.

use bytes::Bytes;
use logweir_engine::journal::{AppendError, DedupKey, LaneId, OnDurable, PAYLOAD_BYTES_MAX};
use logweir_engine::mailbox::Message;
use logweir_formats::{Defaults, Format, ParseError, ParseErrorKind, ParseReport};
use logweir_record::chunk::Chunk;
use logweir_record::codec;
use tokio::sync::oneshot;

// Whatever the codec encodes fits into a frame.
const _: () = assert!(codec::PAYLOAD_BYTES_MAX == PAYLOAD_BYTES_MAX);

/// When a chunk is acknowledged to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AckLevel {
    /// Once it is in the journal's queue: survives SIGTERM, but not a crash.
    Received,
    /// Once a completed fsync covers it.
    #[default]
    Journal,
    /// Once the database has committed it.
    Committed,
}

/// Compression of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Encoding {
    /// Uncompressed.
    #[default]
    Identity,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// zlib, or raw deflate.
    Deflate,
    /// A Snappy block or a framed Snappy stream.
    Snappy,
}

/// A body as a source received it. The producer's message.
#[derive(Debug)]
#[non_exhaustive]
pub struct Delivery {
    /// Deliveries of one stream (a connection, a file, stdin) stay in one lane, in order.
    pub stream: u64,
    /// The body, still compressed.
    pub body: Bytes,
    /// Compression of the body.
    pub encoding: Encoding,
    /// Format of the body.
    pub format: Format,
    /// The sender's defaults.
    pub defaults: Defaults,
    /// Time of arrival in microseconds since 1970.
    pub received_us: i64,
    /// Deduplication key: a body with the same key is stored once.
    pub dedup_key: Option<DedupKey>,
    /// When to acknowledge.
    pub ack: AckLevel,
    /// Where the result is sent. Dropping it unsent (a panic) counts as a `Rejection` "lost in a restart".
    pub reply: Reply,
}

/// A decompressed body; the parser's message.
#[derive(Debug)]
pub(crate) struct RawChunk {
    /// The body, uncompressed.
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

/// A parsed chunk; the batcher's message.
#[derive(Debug)]
pub(crate) struct ParsedChunk {
    /// The records.
    pub chunk: Chunk,
    /// The parser's report to the sender.
    pub report: ParseReport,
    /// As in [`Delivery`].
    pub dedup_key: Option<DedupKey>,
    /// As in [`Delivery`].
    pub ack: AckLevel,
    /// As in [`Delivery`].
    pub reply: Reply,
}

/// Where the result of a delivery is sent.
///
/// The journal sends the outcome of an append, not a receipt. So there are two channels: the receiver waits for the
/// second one, and is woken once.
#[derive(Debug)]
pub struct Reply {
    result: oneshot::Sender<Result<Receipt, Rejection>>,
    durable: oneshot::Sender<Result<u64, AppendError>>,
}

impl Reply {
    /// Answers the sender, who may have disconnected.
    pub fn send(self, result: Result<Receipt, Rejection>) {
        let Self { result: sender, durable } = self;
        let _ = sender.send(result);
        drop(durable); // wakes the receiver
    }

    /// Answers the sender with `receipt` once its frame is durable, and with the reason if it will never be.
    #[must_use]
    pub fn when_durable(self, receipt: Receipt) -> OnDurable {
        let Self { result, durable } = self;
        let _ = result.send(Ok(receipt));
        OnDurable::send_to(durable)
    }
}

/// Receives the answer to one delivery.
#[derive(Debug)]
pub struct Answer {
    result: oneshot::Receiver<Result<Receipt, Rejection>>,
    durable: oneshot::Receiver<Result<u64, AppendError>>,
}

/// A reply handle for one delivery, and its receiver.
#[must_use]
pub(crate) fn answer_channel() -> (Reply, Answer) {
    let (result_sender, result) = oneshot::channel();
    let (durable_sender, durable) = oneshot::channel();
    (Reply { result: result_sender, durable: durable_sender }, Answer { result, durable })
}

impl Answer {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The rejection; its reason is `restarted` if a stage was restarted while it held the body.
    pub async fn wait(mut self) -> Result<Receipt, Rejection> {
        let outcome = self.durable.await;
        // Sent before the other one was sent or dropped.
        let result = self.result.try_recv().unwrap_or_else(|_| {
            Err(Rejection {
                kind: RejectionKind::Unavailable,
                reason: "restarted",
                detail:
                    "a stage was restarted while it held the body: the records may or may not be stored; without an \
                         Idempotency-Key, a retry may store them again"
                        .into(),
            })
        });
        match outcome {
            Ok(Ok(seq)) => result.map(|receipt| Receipt { seq, ..receipt }),
            Ok(Err(error)) => Err(Rejection::of_journal(&error)),
            Err(_) => result,
        }
    }
}

/// A chunk has reached its [`AckLevel`] (for `Committed`: it is in the journal, and the source then waits for the
/// lane's cursor to pass `seq`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Its lane.
    pub lane: LaneId,
    /// Its frame's sequence number; 0 if it had no records and was not written.
    pub seq: u64,
    /// Result of parsing it.
    pub report: ParseReport,
    /// Whether it is a duplicate: an earlier request with the same deduplication key stored it in this frame.
    pub repeated: bool,
}

/// A rejected chunk, or one that did not reach its [`AckLevel`]. None of it is stored unless `detail` states otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// Kind of rejection; determines the status code.
    pub kind: RejectionKind,
    /// Reason in snake case, as in the counter's label; for example `journal_quota`.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
}

impl std::error::Error for Rejection {}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl Rejection {
    /// The process is shutting down and accepts no more messages.
    #[must_use]
    pub fn draining() -> Self {
        let detail = "this process is shutting down: retry later, or with another process".to_owned();
        Self { kind: RejectionKind::Unavailable, reason: "draining", detail }
    }

    /// The idempotency key came with another body before.
    #[must_use]
    pub fn contradiction() -> Self {
        let detail = "the same Idempotency-Key came with another body before, which is stored; this one is not: send each \
                      body with a key of its own, and a body that is sent again unchanged";
        Self { kind: RejectionKind::Contradiction, reason: "idempotency_key_reused", detail: detail.to_owned() }
    }

    /// The commit did not happen in time.
    #[must_use]
    pub fn not_committed() -> Self {
        let detail = "the database did not commit the records in time: they are in the journal and will be committed; \
                      without an Idempotency-Key, a retry would store them again";
        Self { kind: RejectionKind::Unavailable, reason: "ack_timeout", detail: detail.to_owned() }
    }

    /// The journal rejects the chunk with this error.
    #[must_use]
    pub fn of_journal(error: &AppendError) -> Self {
        let (kind, reason, advice) = match error {
            AppendError::Quota => (
                RejectionKind::Unavailable,
                "journal_quota",
                "retry when the database has caught up, or increase journal.quota_bytes",
            ),
            AppendError::DiskFull => {
                (RejectionKind::Unavailable, "journal_disk_full", "retry when the volume has free space")
            }
            AppendError::TooLarge { .. } => (RejectionKind::TooLarge, "chunk_too_large", "send smaller bodies"),
            AppendError::Sealed | AppendError::NoAnswer { .. } => return Self::draining(),
            AppendError::Duplicate => (
                RejectionKind::Unavailable,
                "in_progress",
                "the first request with this key is still being written; retry",
            ),
            // `Poisoned`, and whatever a later engine adds: no acknowledgment without a reason to give one.
            _ => {
                (RejectionKind::Unavailable, "journal_failed", "records cannot be acknowledged until logweir restarts")
            }
        };
        Self { kind, reason, detail: format!("{error}: {advice}") }
    }
}

impl From<ParseError> for Rejection {
    fn from(error: ParseError) -> Self {
        let ParseError { kind, reason, detail, .. } = error;
        let kind = match kind {
            ParseErrorKind::TooLarge => RejectionKind::TooLarge,
            ParseErrorKind::MalformedItem(item) => RejectionKind::MalformedItem(item),
            _ => RejectionKind::Malformed,
        };
        Self { kind, reason, detail }
    }
}

/// Kind of rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectionKind {
    /// The mailboxes are full: 429.
    Busy,
    /// Draining, quota, disk: 503.
    Unavailable,
    /// Above a size limit: 413.
    TooLarge,
    /// Invalid; a retry cannot succeed: 400.
    Malformed,
    /// The same, because of this item of the body (from 0).
    MalformedItem(u32),
    /// The idempotency key came with another body before; a retry cannot succeed: 422.
    Contradiction,
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
