//! Which late records move. Pure.
//!
//! What a record costs must not be decided by its sender:
//! - A chunk is a table, and each query locks those of its range. So a chunk is made for many records only, those of
//!   the fullest ranges first, and only while one query over all chunks leaves locks for others.
//! - A record in a compressed chunk lets TimescaleDB compress the chunk again, as a whole before version 2.19. So
//!   records go there in large numbers, or once a day.

use super::super::chunk::{Chunk, ChunkState};

/// Records for which a chunk is made, or compressed again, at once.
pub(super) const ROWS_MIN: i64 = 10_000;

/// How long a few records wait until their chunk is compressed again for them.
pub(super) const WAIT_US: i64 = 86_400_000_000;

/// A range of times whose records belong together: in one chunk, or in one that would be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) from_us: i64,
    pub(super) to_us: i64,
    /// The state of its chunk, if there is one.
    pub(super) chunk: Option<ChunkState>,
}

/// The records of a slot that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// How many there are; those beyond a limit are not counted.
    pub(super) rows: i64,
    /// When the oldest of them was stored.
    pub(super) since_us: i64,
}

/// What happens with the records of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They move now; they should have since that time.
    Move { since_us: i64 },
    /// They move if there is room for one more chunk; those with the most rows first.
    MakeChunk,
    /// They stay.
    Stay,
}

/// The slot of the time `ts_us`, among `chunks` in their order. A chunk that is made ends where another begins.
pub(super) fn slot(ts_us: i64, chunks: &[Chunk], interval_us: i64) -> Slot {
    let after = chunks.partition_point(|chunk| chunk.from_us <= ts_us);
    let before = chunks[..after].last();
    if let Some(chunk) = before.filter(|chunk| ts_us < chunk.to_us) {
        return Slot { from_us: chunk.from_us, to_us: chunk.to_us, chunk: Some(chunk.state) };
    }
    let from_us = ts_us.div_euclid(interval_us).saturating_mul(interval_us);
    let to_us = from_us.saturating_add(interval_us);
    Slot {
        from_us: before.map_or(from_us, |before| from_us.max(before.to_us)),
        to_us: chunks.get(after).map_or(to_us, |next| to_us.min(next.from_us)),
        chunk: None,
    }
}

/// Decides about the records of a slot.
pub(super) fn decide(chunk: Option<ChunkState>, is_near: bool, waiting: Waiting, now_us: i64) -> Verdict {
    let Waiting { rows, since_us } = waiting;
    let due_us = since_us.saturating_add(WAIT_US);
    match chunk {
        Some(ChunkState::Closed) => Verdict::Stay,
        _ if is_near => Verdict::Move { since_us },
        Some(ChunkState::Open) => Verdict::Move { since_us },
        Some(ChunkState::Compressed { rows: compressed }) => match (rows >= ROWS_MIN.min(compressed / 100), now_us) {
            (true, _) => Verdict::Move { since_us },
            (false, now_us) if now_us >= due_us => Verdict::Move { since_us: due_us },
            (false, _) => Verdict::Stay,
        },
        None if rows >= ROWS_MIN => Verdict::MakeChunk,
        None => Verdict::Stay,
    }
}

/// The number of chunks up to which late records make more. A query locks a chunk, its compressed part and their
/// indexes: about four locks. So one over all chunks takes at most half of the server's lock table.
pub(super) fn chunks_max(locks_per_transaction: i64, connections: i64) -> i64 {
    locks_per_transaction.saturating_mul(connections) / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000;
    const HOUR: i64 = DAY / 24;

    #[test]
    fn records_move_at_once_where_that_costs_nothing_and_else_in_large_numbers_or_once_a_day() {
        use ChunkState::{Closed, Compressed, Open};
        const NOW: i64 = 20_000 * DAY;
        const FULL: ChunkState = Compressed { rows: 10_000_000 };
        let (since, due) = (Verdict::Move { since_us: NOW - HOUR }, Verdict::Move { since_us: NOW });
        for (chunk, is_near, rows, expected) in [
            // Near the present.
            (None, true, 1, since),
            (Some(Open), true, 1, since),
            (Some(FULL), true, 1, since),
            (Some(Closed), true, 1_000_000, Verdict::Stay),
            // A chunk that is not compressed.
            (Some(Open), false, 1, since),
            // A compressed one.
            (Some(FULL), false, 1, Verdict::Stay),
            (Some(FULL), false, ROWS_MIN - 1, Verdict::Stay),
            (Some(FULL), false, ROWS_MIN, since),
            (Some(Compressed { rows: 5_000 }), false, 49, Verdict::Stay),
            (Some(Compressed { rows: 5_000 }), false, 50, since),
            (Some(Compressed { rows: 99 }), false, 1, since),
            (Some(Closed), false, 1_000_000, Verdict::Stay),
            // None.
            (None, false, ROWS_MIN - 1, Verdict::Stay),
            (None, false, ROWS_MIN, Verdict::MakeChunk),
        ] {
            let waiting = Waiting { rows, since_us: NOW - HOUR };
            assert_eq!(decide(chunk, is_near, waiting, NOW), expected, "{chunk:?} {is_near} {rows}");
        }
        let oldest = |age| Waiting { rows: 1, since_us: NOW - age };
        assert_eq!(decide(Some(FULL), false, oldest(WAIT_US - 1), NOW), Verdict::Stay);
        assert_eq!(decide(Some(FULL), false, oldest(WAIT_US), NOW), due);
        assert_eq!(decide(Some(Closed), false, oldest(9 * WAIT_US), NOW), Verdict::Stay);
        assert_eq!(decide(None, false, oldest(9 * WAIT_US), NOW), Verdict::Stay);
    }

    #[test]
    fn an_hours_chunk_takes_the_records_of_its_hour_alone() {
        let chunk = |from_us, to_us| Chunk { from_us, to_us, state: ChunkState::Open };
        let chunks = [chunk(10 * HOUR, 11 * HOUR), chunk(2 * DAY, 3 * DAY)];
        let at = |ts_us, interval_us| {
            let Slot { from_us, to_us, chunk } = slot(ts_us, &chunks, interval_us);
            (from_us, to_us, chunk.is_some())
        };
        assert_eq!(at(10 * HOUR, HOUR), (10 * HOUR, 11 * HOUR, true));
        assert_eq!(at(11 * HOUR - 1, HOUR), (10 * HOUR, 11 * HOUR, true));
        assert_eq!(at(11 * HOUR, HOUR), (11 * HOUR, 12 * HOUR, false));
        assert_eq!(at(9 * HOUR, HOUR), (9 * HOUR, 10 * HOUR, false));
        // The interval was changed since: what would be made is cut where there are chunks.
        assert_eq!(at(9 * HOUR, DAY), (0, 10 * HOUR, false));
        assert_eq!(at(12 * HOUR, DAY), (11 * HOUR, DAY, false));
        assert_eq!(at(DAY, 7 * DAY), (11 * HOUR, 2 * DAY, false));
        assert_eq!(at(2 * DAY + 1, HOUR), (2 * DAY, 3 * DAY, true));
        assert_eq!(at(-1, DAY), (-DAY, 0, false));
        assert_eq!(at(5 * DAY, DAY), (5 * DAY, 6 * DAY, false));
    }

    #[test]
    fn the_number_of_chunks_depends_on_the_servers_lock_table() {
        assert_eq!(chunks_max(64, 100), 800);
        assert_eq!(chunks_max(1024, 100), 12_800);
        assert_eq!(chunks_max(i64::MAX, i64::MAX), i64::MAX / 8);
    }
}
