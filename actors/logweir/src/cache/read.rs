//! Parsing of cached records, and the id that a record's row has or will have.

use std::borrow::Cow;

use logweir_record::record::Severity;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use logweir_query::page::Found;
use logweir_record::timestamp;
use logweir_store::id_of;
use logweir_store::read::LaneCursor;

/// A [`RecentRecord`](super::RecentRecord), parsed, borrowing from its text.
#[derive(Deserialize)]
pub struct Cached<'a> {
    /// The run that produced it.
    pub run: Uuid,
    /// Its lane.
    pub lane: u16,
    /// Its number in the lane, from 1.
    pub ordinal: u64,
    #[serde(borrow)]
    ts: Cow<'a, str>,
    severity: u8,
    #[serde(borrow)]
    service: Cow<'a, str>,
    #[serde(borrow)]
    host: Cow<'a, str>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    attributes: &'a RawValue,
}

impl<'a> Cached<'a> {
    /// Parses a cached record; `None` if another version of the program wrote it.
    #[must_use]
    pub fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns its lane if the lane still belongs to the run that produced it: a frame of an earlier run may have been
    /// lost, and the numbers of its records reused.
    #[must_use]
    pub fn lane<'l>(&self, lanes: &'l [LaneCursor]) -> Option<&'l LaneCursor> {
        lanes.iter().find(|lane| lane.run == self.run && lane.lane == self.lane)
    }

    /// Returns the record with its id in the lane `lane_id`.
    #[must_use]
    pub fn found(&self, lane_id: i64) -> Option<Found> {
        let attributes = match self.attributes.get() {
            "{}" => String::new(),
            text => text.to_owned(),
        };
        Some(Found {
            id: id_of(lane_id, i64::try_from(self.ordinal).ok()?),
            ts_us: timestamp::parse(&self.ts)?,
            severity: Severity::from_number(self.severity)?,
            service: self.service.clone().into_owned(),
            host: self.host.clone().into_owned(),
            message: self.message.clone().into_owned(),
            attributes,
        })
    }
}
