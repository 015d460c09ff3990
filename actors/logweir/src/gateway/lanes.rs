//! The lanes of all processors, as they reported them last. Pure.
//!
//! A processor that does not respond keeps the lanes that it had: what it had committed remains committed. It is forgotten
//! after [`KEEP_US`], because a processor that was removed looks the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logweir_engine::journal::LaneId;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::progress::LaneSnapshot;
use crate::progress::arrivals::Arrivals;
use crate::search::completeness::LaneState;

/// How long a processor that does not respond is remembered, in microseconds.
const KEEP_US: i64 = 600_000_000;

/// The part of a processor's status that is about its lanes.
#[derive(Deserialize)]
struct Status {
    writer: Option<Uuid>,
    #[serde(default)]
    run: Option<Uuid>,
    #[serde(default)]
    linger_ms: u64,
    #[serde(default)]
    lanes: Vec<LaneSnapshot>,
}

/// Known lanes by writer.
#[derive(Debug, Default)]
pub struct KnownLanes(BTreeMap<Uuid, Writer>);

#[derive(Debug, Default)]
struct Writer {
    reported_us: i64,
    states: Vec<LaneState>,
    arrivals: BTreeMap<LaneId, Arrivals>,
}

impl KnownLanes {
    /// Adds the `status` of `processor`, which was requested at `requested_us` (microseconds since 1970). One that has no
    /// journal open, or that this version does not understand, is ignored.
    pub fn report(&mut self, processor: &str, status: &Value, requested_us: i64) {
        self.0.retain(|_, writer| writer.reported_us >= requested_us - KEEP_US);
        let Ok(Status { writer: Some(id), run, linger_ms, lanes }) = Status::deserialize(status) else { return };
        let writer = self.0.entry(id).or_default();
        writer.reported_us = requested_us;
        let linger = Duration::from_millis(linger_ms);
        let name: Arc<str> = processor.into();
        writer.states = lanes.iter().map(|lane| LaneState::of(Arc::clone(&name), id, run, linger, lane)).collect();
        for state in &writer.states {
            // No record beyond these had arrived when the status was requested.
            writer.arrivals.entry(state.lane).or_default().sample(state.accepted, requested_us);
        }
    }

    /// The state of every lane.
    #[must_use]
    pub fn states(&self) -> Vec<LaneState> {
        self.0.values().flat_map(|writer| writer.states.clone()).collect()
    }

    /// See [`Lanes::arrived_until`](crate::search::completeness::Lanes::arrived_until).
    #[must_use]
    pub fn arrived_until(&self, writer: Uuid, lane: LaneId, records: u64) -> Option<i64> {
        self.0.get(&writer)?.arrivals.get(&lane)?.until(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Progress, StoreState};
    use logweir_engine::journal::LaneTail;
    use logweir_store::LaneRow;

    const WRITER: Uuid = Uuid::from_u128(7);

    fn status(rows: u64, records: u64) -> Value {
        let progress = Progress::default();
        progress.lane_row_updated(LaneRow { lane: 1, lane_id: 5, rows, inherited: 40, ..LaneRow::default() });
        progress.lane_store_state(1, StoreState::Stopped("no permission".to_owned()));
        let tails = BTreeMap::from([(1, LaneTail { seq: 9, records })]);
        let mut status = serde_json::to_value(progress.snapshot(&tails)).unwrap();
        status["writer"] = WRITER.to_string().into();
        status["run"] = Uuid::from_u128(8).to_string().into();
        status["linger_ms"] = 3_000.into();
        status
    }

    #[test]
    fn a_status_is_read_back_and_kept_for_a_while() {
        let mut lanes = KnownLanes::default();
        lanes.report("p", &status(10, 60), 1);
        lanes.report("p", &status(20, 70), 2);
        lanes.report("p", &serde_json::json!({ "writer": null, "lanes": [] }), 3);
        lanes.report("p", &Value::Null, 3);
        let states = lanes.states();
        assert_eq!(states.len(), 1);
        let state = &states[0];
        assert_eq!((state.writer, state.run, state.lane_id), (WRITER, Some(Uuid::from_u128(8)), Some(5)));
        assert_eq!(&*state.processor, "p");
        assert_eq!((state.inherited, state.committed, state.accepted), (40, 60, 70));
        assert_eq!(state.linger, Duration::from_secs(3));
        assert_eq!(state.problem.as_deref(), Some("lane 1 is stopped: no permission"));
        assert_eq!(
            [50, 60, 69, 70].map(|records| lanes.arrived_until(WRITER, 1, records)),
            [None, Some(1), Some(1), Some(2)]
        );
        lanes.report("p", &Value::Null, 3 + KEEP_US);
        assert_eq!(lanes.states(), []);
    }
}
