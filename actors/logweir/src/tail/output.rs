//! The two forms in which a client's events are delivered: typed, and rendered as server-sent events.

use bytes::Bytes;
use logweir_record::record::{Record, Severity};
use uuid::Uuid;

use super::event;
use crate::follow::Position;

/// One event of a live tail.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TailEvent {
    /// A record that matches.
    Record(TailRecord),
    /// Records that were not delivered, because they exceeded `tail.records_per_s` or the client was too slow.
    Dropped {
        /// Number of records since the last event of this kind.
        records: u64,
        /// Number of records since the stream started.
        total: u64,
    },
    /// The stream cannot continue at the position of its resume token; records may be missing here.
    Gap {
        /// Number of missing records, where known.
        missing: Option<u64>,
        /// Why.
        reason: GapReason,
    },
    /// The position of the stream before its first record.
    Position {
        /// Resumes here.
        token: String,
    },
}

/// Why a stream has a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// The token belongs to another journal, or to a state of this one that was since undone by a restore.
    OtherJournal,
    /// The journal no longer retains the records after the token.
    NotRetained,
}

impl GapReason {
    /// The `reason` of `event: gap`: `other_journal` or `not_retained`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OtherJournal => "other_journal",
            Self::NotRetained => "not_retained",
        }
    }
}

/// A record of a live tail, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TailRecord {
    /// Resumes after this record.
    pub token: String,
    /// The id of its row; `None` until the database has assigned a number to its lane.
    pub id: Option<i64>,
    /// Microseconds since 1970.
    pub ts_us: i64,
    /// Severity.
    pub severity: Severity,
    /// Service, or empty.
    pub service: String,
    /// Host, or empty.
    pub host: String,
    /// Message.
    pub message: String,
    /// Attributes as the text of a JSON object, or empty.
    pub attributes: String,
}

impl TailRecord {
    /// Borrows the record itself.
    #[must_use]
    pub fn as_record(&self) -> Record<'_> {
        Record {
            ts_us: self.ts_us,
            severity: self.severity,
            service: &self.service,
            host: &self.host,
            message: &self.message,
            attributes: &self.attributes,
        }
    }
}

/// Collects events until they are sent as one piece.
pub(super) trait Output: Default + Send + 'static {
    /// What is sent: any number of events.
    type Piece: Send + 'static;

    /// Adds a record at `position`.
    fn record(&mut self, writer: Uuid, position: &Position, id: Option<i64>, record: &Record<'_>);
    /// Adds the number of dropped records.
    fn dropped(&mut self, records: u64, total: u64);
    /// Adds a gap.
    fn gap(&mut self, missing: Option<u64>, reason: GapReason);
    /// Adds the position of the stream.
    fn position(&mut self, writer: Uuid, position: &Position);
    /// Adds what keeps an idle connection open, if the form needs it.
    fn keep_alive(&mut self);
    /// Size of what was collected, in bytes.
    fn bytes(&self) -> usize;
    /// Takes what was collected.
    fn take(&mut self) -> Self::Piece;
}

/// Reconnection delay of browsers, in milliseconds.
const RETRY_MS: u64 = 1000;

/// Server-sent events, rendered from borrowed records without an allocation per record.
pub(super) struct Sse(String);

impl Default for Sse {
    fn default() -> Self {
        let mut text = String::new();
        event::retry(&mut text, RETRY_MS);
        Self(text)
    }
}

impl Output for Sse {
    type Piece = Bytes;

    fn record(&mut self, writer: Uuid, position: &Position, id: Option<i64>, record: &Record<'_>) {
        event::record(&mut self.0, writer, position, id, record);
    }

    fn dropped(&mut self, records: u64, total: u64) {
        event::dropped(&mut self.0, records, total);
    }

    fn gap(&mut self, missing: Option<u64>, reason: GapReason) {
        event::gap(&mut self.0, missing, reason.name());
    }

    fn position(&mut self, writer: Uuid, position: &Position) {
        event::position(&mut self.0, writer, position);
    }

    fn keep_alive(&mut self) {
        event::keep_alive(&mut self.0);
    }

    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }
}

/// Typed events.
#[derive(Default)]
pub(super) struct Events {
    events: Vec<TailEvent>,
    bytes: usize,
}

impl Events {
    fn push(&mut self, event: TailEvent) {
        self.bytes += size_of::<TailEvent>();
        self.events.push(event);
    }
}

fn token(writer: Uuid, position: &Position) -> String {
    let mut token = String::new();
    position.write_token(writer, &mut token);
    token
}

impl Output for Events {
    type Piece = Vec<TailEvent>;

    fn record(&mut self, writer: Uuid, position: &Position, id: Option<i64>, record: &Record<'_>) {
        let record = TailRecord {
            token: token(writer, position),
            id,
            ts_us: record.ts_us,
            severity: record.severity,
            service: record.service.to_owned(),
            host: record.host.to_owned(),
            message: record.message.to_owned(),
            attributes: record.attributes.to_owned(),
        };
        self.bytes += record.token.len() + record.service.len() + record.host.len();
        self.bytes += record.message.len() + record.attributes.len();
        self.push(TailEvent::Record(record));
    }

    fn dropped(&mut self, records: u64, total: u64) {
        self.push(TailEvent::Dropped { records, total });
    }

    fn gap(&mut self, missing: Option<u64>, reason: GapReason) {
        self.push(TailEvent::Gap { missing, reason });
    }

    fn position(&mut self, writer: Uuid, position: &Position) {
        self.push(TailEvent::Position { token: token(writer, position) });
    }

    fn keep_alive(&mut self) {}

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn take(&mut self) -> Vec<TailEvent> {
        self.bytes = 0;
        std::mem::take(&mut self.events)
    }
}
