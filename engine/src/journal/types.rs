//! What callers and the journal's files pass to each other.

use std::collections::BTreeMap;

use uuid::Uuid;

/// Number of a lane: an ordered shard of the stream.
pub type LaneId = u16;

/// End of a lane: its last frame, and its record count up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneTail {
    /// Sequence number of the lane's last frame; 0 if it has none.
    pub seq: u64,
    /// Records of the lane up to and including that frame, since the journal was created.
    pub records: u64,
}

/// Bytes that cannot be read. They are reported, quarantined and counted, and never prevent an open. If no frame is
/// lost (a repaired header, a misnamed file), the sequence range is empty: 1 to 0.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Offset in the segment's file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// First lost sequence number.
    pub seq_first: u64,
    /// Last lost sequence number.
    pub seq_last: u64,
    /// Description of the damage.
    pub reason: String,
}

impl Damage {
    /// Whether both are damage of one place.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let is_same = self.segment == other.segment;
        is_same && self.offset < other.offset + other.bytes && other.offset < self.offset + self.bytes
    }

    pub(super) fn log(&self) {
        let Self { segment, offset, bytes, seq_first, seq_last, reason } = self;
        tracing::error!(
            segment,
            offset,
            bytes,
            seq_first,
            seq_last,
            reason,
            "the journal is damaged; unreadable bytes are kept in quarantine/"
        );
    }
}

/// Result of [`Journal::open`](super::Journal::open).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recovered {
    /// Identity of this journal, assigned when it was created. The database knows it as the writer.
    pub writer: Uuid,
    /// Identity of this run; on disk before `open` returns.
    pub run: Uuid,
    /// Previous runs, latest last (at most 1024). Of those that were never confirmed some may be missing.
    pub runs: Vec<Uuid>,
    /// The last run of which [`Journal::confirm_run`](super::Journal::confirm_run) was called; always among `runs`.
    pub confirmed: Option<Uuid>,
    /// Last sequence number used before this run.
    pub seq_last: u64,
    /// The end of every lane.
    pub lanes: BTreeMap<LaneId, LaneTail>,
    /// The lanes whose first frame ever is in the journal, and its sequence number: without a readable START, a lane that
    /// had frames before begins again.
    pub begins: BTreeMap<LaneId, u64>,
    /// Whether this open created the journal: the directory held no segment. `clean` is false then, too, and carries no
    /// information.
    pub created: bool,
    /// Whether the previous run ended with a seal.
    pub clean: bool,
    /// Bytes of a torn tail that were truncated and moved to the quarantine.
    pub torn_bytes: u64,
    /// Damage found.
    pub damage: Vec<Damage>,
}

/// What an accepted append was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The frame's sequence number.
    pub seq: u64,
    /// Sequence number of the lane's previous frame; 0 if there is none.
    pub lane_prev_seq: u64,
    /// Records of the lane up to and including this frame.
    pub lane_records: u64,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// [`Journal::generation`](super::Journal::generation) at the time of the append.
    pub generation: u64,
}
