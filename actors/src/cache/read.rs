//! A cached record taken apart again, and the id that its row has or will have.

use std::borrow::Cow;

use logweir_engine::record::Severity;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::query::page::Found;
use crate::store::cursor::ORDINAL_BITS;
use crate::store::read::LaneCursor;
use crate::store::time_of;

/// A record as [`RecentRecord`](super::RecentRecord) holds it, borrowed from its text.
#[derive(Deserialize)]
pub struct Cached<'a> {
    run: Uuid,
    lane: u16,
    /// Its frame.
    pub seq: u64,
    ordinal: i64,
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
    /// Reads one; none where another version wrote it.
    #[must_use]
    pub fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Its lane, if that is still the run's that made it: a frame of an earlier run may have been taken back.
    #[must_use]
    pub fn lane<'l>(&self, lanes: &'l [LaneCursor]) -> Option<&'l LaneCursor> {
        lanes.iter().find(|lane| lane.run == self.run && lane.lane == self.lane)
    }

    /// The record, with its id in `lane`.
    #[must_use]
    pub fn found(&self, lane: &LaneCursor) -> Option<Found> {
        let attributes = match self.attributes.get() {
            "null" => String::new(),
            text => text.to_owned(),
        };
        Some(Found {
            id: lane.lane_id << ORDINAL_BITS | self.ordinal,
            ts_us: time_of(&self.ts)?,
            severity: Severity::from_number(self.severity)?,
            service: self.service.clone().into_owned(),
            host: self.host.clone().into_owned(),
            message: self.message.clone().into_owned(),
            attributes,
        })
    }
}
