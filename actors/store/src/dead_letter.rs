//! A record that the database rejected.

use logweir_engine::journal::LaneId;
use uuid::Uuid;

/// A record that the database rejected.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadLetter {
    /// The id of the row that would have been inserted.
    pub id: i64,
    /// The writer.
    pub writer: Uuid,
    /// The lane.
    pub lane: LaneId,
    /// The frame.
    pub seq: u64,
    /// The record's index in the frame, from 0.
    pub row: u32,
    /// SQLSTATE.
    pub sqlstate: String,
    /// The server's error message.
    pub reason: String,
    /// The record as one JSON object (ts, severity, service, host, message, attributes as text).
    pub raw: String,
    /// Time of the rejection, in microseconds since 1970.
    pub at_us: i64,
}
