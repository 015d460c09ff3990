//! The tests.

// Test helpers unwrap like tests, and a test's name says what it tests.
#![allow(clippy::unwrap_used, missing_docs)]

use logweir_engine::clock::wall_us;
use logweir_record::record::{Record, Severity};
use logweir_store::{
    self as store, Batch, BatchFrame, Claim, Digest, Flushed, ForkLane, LaneRow, Rejection, StoreError,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::feed::{Feed, Frames, NOON_US, claim, claim_at, flushed, lane, record, started};
use super::subject::Subject;
use crate::maintenance::maintain;

pub async fn rows_cursor_and_counters_move_together(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    assert_eq!(lease.epoch, 1);
    let (mut flusher, row) = on.store().open_lane(&lease, 3).await.unwrap();
    assert_eq!((row.lane, row.last_seq, row.accounted(), row.epoch), (3, 0, 0, 1));

    let big = "x".repeat(1 << 20);
    let mut feed = Feed::new(3);
    let batch = feed.batch(&[
        &[record("one"), Record { service: "", host: "", attributes: "", ..record("") }],
        &[Record { service: "zwölf ✓", ..record("𝕦nicode\n\t\"quoted\" \\") }, record(&big)],
        &[Record { ts_us: i64::MAX, ..record("end of time") }, Record { ts_us: i64::MIN, ..record("its start") }],
    ]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(6, 0));
    let batch = feed.plain(5_000);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(5_000, 0));

    let stored = on.store().lanes(writer).await.unwrap();
    assert_eq!((stored[0].last_seq, stored[0].rows, &stored[0].digest), (4, 5_006, &batch.digest()));
    on.assert_whole(writer, 5_006).await;
    let first = row.lane_id << 44;
    assert_eq!(on.number("SELECT min(id) FROM logs").await, first + 1);
    assert_eq!(on.number("SELECT max(id) FROM logs").await, first + 5_006);
    assert_eq!(on.number("SELECT max(length(message)) FROM logs").await, 1 << 20);
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE attributes IS NULL").await, 1);
    // Times as far as these are beside the table on TimescaleDB.
    let far = if on.late().await > 0 { "logweir_late" } else { "logs" };
    let year = |what: &str| format!("SELECT {} FROM {far}", on.sql().year.replace("$ts", &format!("{what}(ts)")));
    assert_eq!((on.number(&year("min")).await, on.number(&year("max")).await), (1, 9999));
    assert_eq!(
        on.number("SELECT id FROM logs WHERE message LIKE '𝕦nicode%\\' ESCAPE '!' AND service = 'zwölf ✓'").await,
        first + 3
    );
}

pub async fn flushing_a_batch_twice_stores_it_once(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut first = lane(on.store(), &lease, 0).await;
    let mut second = lane(on.store(), &lease, 0).await;
    let batch = Feed::new(0).plain(10);
    assert_eq!(first.flush(&batch).await.unwrap(), flushed(10, 0));
    assert_eq!(first.flush(&batch).await.unwrap(), flushed(0, 0));
    // The other connection does not know that it was committed: it gets the batch's counts.
    assert_eq!(second.flush(&batch).await.unwrap(), flushed(10, 0));
    on.assert_whole(writer, 10).await;
}

pub async fn an_older_epoch_is_fenced(on: impl Subject) {
    let writer = Uuid::new_v4();
    let (old_store, new_store) = (on.other(), on.other());
    let old = old_store.acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut old_lane = lane(&old_store, &old, 0).await;
    let mut feed = Feed::new(0);
    old_lane.flush(&feed.plain(5)).await.unwrap();

    let new = new_store.acquire_lease(&claim_at(&feed, writer, &[1], 2)).await.unwrap();
    let row = &new_store.lanes(writer).await.unwrap()[0];
    assert_eq!((new.epoch, row.last_seq, row.epoch), (2, 1, 2));
    let zombie = feed.clone().plain(7);
    match old_lane.flush(&zombie).await.unwrap_err() {
        StoreError::Fenced { epoch: 2, mine: 1, owner, .. } => assert_eq!(owner, "run 2"),
        other => panic!("{other}"),
    }
    let rejected = old_store.open_lane(&old, 1).await.err().expect("a superseded lease must not open a lane");
    assert!(matches!(rejected, StoreError::Fenced { .. }), "{rejected}");
    let mut new_lane = lane(&new_store, &new, 0).await;
    assert_eq!(new_lane.flush(&feed.plain(3)).await.unwrap(), flushed(3, 0));
    on.assert_whole(writer, 8).await;
}

pub async fn a_writer_continues_through_its_own_runs_and_rejects_a_copy(on: impl Subject) {
    let writer = Uuid::new_v4();
    let take = async |runs: &[u128], run| on.store().acquire_lease(&claim(writer, runs, run)).await;
    assert_eq!(take(&[], 1).await.unwrap().epoch, 1);
    assert_eq!(take(&[], 1).await.unwrap().epoch, 1, "the same run again");
    assert_eq!(take(&[1], 2).await.unwrap().epoch, 2);
    assert_eq!(take(&[1, 2, 3, 4], 5).await.unwrap().epoch, 3, "runs 3 and 4 did not reach the database");
    match take(&[1, 2, 30], 31).await.unwrap_err() {
        StoreError::StaleCopy { epoch: 3, owner, .. } => assert_eq!(owner, "run 5"),
        other => panic!("{other}"),
    }
    assert_eq!(on.number("SELECT count(*) FROM logweir_takeover").await, 3);
    assert_eq!(take(&[1, 2, 3, 4, 5], 6).await.unwrap().epoch, 4, "the rejected copy must not change anything");
}

pub async fn own_frames_of_a_stale_copy_are_stored_once(on: impl Subject) {
    let writer = Uuid::new_v4();
    // Run 1 flushes 10 of 30 records. Then the volume is copied; the copy acquires the lease as run 20 and flushes 25.
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut common = Feed::new(0);
    lane(on.store(), &lease, 0).await.flush(&common.plain(10)).await.unwrap();
    let inherited = common.plain(20);
    let mut theirs = claim_at(&common, writer, &[1], 20);
    let lease = on.store().acquire_lease(&theirs).await.unwrap();
    let mut copy = lane(on.store(), &lease, 0).await;
    copy.flush(&inherited).await.unwrap();
    copy.flush(&common.clone().plain(5)).await.unwrap();

    // This copy, run 2, has 7 records of its own after the shared 30.
    let mine = claim(writer, &[1], 2);
    assert!(matches!(on.store().acquire_lease(&mine).await.unwrap_err(), StoreError::StaleCopy { .. }));
    let found = on.store().fork_point(&mine).await.unwrap().unwrap();
    assert_eq!((found.writer, found.exact), (Uuid::from_u128(2), true));
    assert_eq!(found.lanes, [ForkLane { lane: 0, seq: common.seq, digest: Digest::default() }]);
    let own = common.plain(7);
    let starts = [found.lanes[0].start(own.from_records)];
    for run in [2, 3] {
        // The second round is a retry of the command: another run, the same writer.
        let adopted = Claim { writer: found.writer, ..claim(writer, &[1, 2], run) };
        let lease = on.store().fork(&adopted, &starts).await.unwrap();
        assert_eq!(lease.epoch, i64::try_from(run).unwrap() - 1);
        lane(on.store(), &lease, 0).await.flush(&own).await.unwrap();
    }
    let again = on.store().fork_point(&claim(writer, &[1, 2, 3], 4)).await.unwrap().unwrap();
    assert_eq!(again.writer, found.writer);
    on.assert_whole(writer, 35).await;
    on.assert_whole(found.writer, 37).await;
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 42);
    theirs.runs.push(theirs.run);
    theirs.run = Uuid::from_u128(21);
    assert_eq!(on.store().fork_point(&theirs).await.unwrap(), None, "the other copy is not stale");
}

pub async fn a_journal_older_than_the_database_gets_its_lanes_reset(on: impl Subject) {
    let writer = Uuid::new_v4();
    // Run 1 flushes 10 records of lane 0; then its volume is snapshotted. It flushes 25 more, and 4 of a new lane 1.
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let (mut flusher, old) = on.store().open_lane(&lease, 0).await.unwrap();
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(10)).await.unwrap();
    let mut restored = feed.clone();
    for _ in 0..5 {
        flusher.flush(&feed.plain(5)).await.unwrap();
    }
    let (mut flusher, old_second) = on.store().open_lane(&lease, 1).await.unwrap();
    flusher.flush(&Feed::new(1).plain(4)).await.unwrap();

    // The snapshot is restored; run 2 has none of the later frames.
    let older = claim_at(&restored, writer, &[1], 2);
    let lease = on.store().acquire_lease(&older).await.unwrap();
    let (mut flusher, row) = on.store().open_lane(&lease, 0).await.unwrap();
    assert_eq!((row.last_seq, row.inherited, row.accounted(), row.epoch), (1, 10, 10, 2));
    assert!(row.digest == Digest::default() && row.lane_id > old_second.lane_id, "{row:?}");
    let (mut second, row_second) = on.store().open_lane(&lease, 1).await.unwrap();
    assert_eq!((row_second.last_seq, row_second.accounted()), (0, 0), "the journal never had this lane");
    assert!(row_second.lane_id > old_second.lane_id && row_second.lane_id != row.lane_id);

    // New frames have sequence numbers that the database has already seen: below its old cursor, at it, and above.
    for _ in 0..6 {
        let batch = restored.plain(7);
        assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(7, 0));
        assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0), "once");
    }
    let mut restored_second = Feed::new(1);
    assert_eq!(second.flush(&restored_second.plain(3)).await.unwrap(), flushed(3, 0));
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 35 + 4 + 42 + 3);
    assert_eq!(on.number("SELECT count(DISTINCT id) FROM logs").await, 35 + 4 + 42 + 3);
    on.assert_whole(writer, 10 + 42 + 3).await;
    for (row, rows) in [(&old, 35), (&old_second, 4), (&row, 42), (&row_second, 3)] {
        assert_eq!(on.store().count_stored(row).await.unwrap().rows, rows, "{row:?}");
    }

    // The same run again, as after a lost connection: its cursor is past the tail that it opened with, and is kept.
    let lease = on.store().acquire_lease(&older).await.unwrap();
    let again = on.store().open_lane(&lease, 0).await.unwrap().1;
    assert_eq!((lease.epoch, again.last_seq, again.lane_id), (2, 7, row.lane_id));
    // The next run, with the whole journal, continues where it was.
    let tails = vec![restored.tail(), restored_second.tail()];
    let lease = on.store().acquire_lease(&Claim { tails, ..claim(writer, &[1, 2], 3) }).await.unwrap();
    let next = on.store().open_lane(&lease, 0).await.unwrap().1;
    assert_eq!((next.last_seq, next.rows, next.lane_id), (7, 42, row.lane_id));
}

pub async fn a_newer_journal_that_reappears_forks_only_what_was_not_stored(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut feed = Feed::new(0);
    let mut flusher = lane(on.store(), &lease, 0).await;
    flusher.flush(&feed.plain(10)).await.unwrap();
    let snapshot = feed.clone();
    flusher.flush(&feed.plain(20)).await.unwrap();
    on.store().acquire_lease(&claim_at(&snapshot, writer, &[1], 20)).await.unwrap();
    // The relevant cursor is the one before the lane was reset.
    let found = on.store().fork_point(&claim(writer, &[1], 2)).await.unwrap().unwrap();
    assert_eq!((found.lanes, found.exact), (vec![ForkLane { lane: 0, seq: 2, digest: Digest::default() }], true));
}

/// A run stores a part of a frame after its volume was copied; then the copy is used, and later that run's volume.
pub async fn a_fork_inside_of_a_frame_stores_only_the_rest_of_it(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut feed = Feed::new(0);
    let mut flusher = lane(on.store(), &lease, 0).await;
    flusher.flush(&feed.plain(10)).await.unwrap();
    let copied = feed.clone();
    flusher.flush(&feed.plain(20)).await.unwrap();
    let whole = feed.batch(&[&[record("own"); 9], &[record("own"); 2]]);
    flusher.flush(&whole.prefix(4)).await.unwrap();
    on.store().acquire_lease(&claim_at(&copied, writer, &[1], 20)).await.unwrap();

    let found = on.store().fork_point(&claim_at(&feed, writer, &[1], 2)).await.unwrap().unwrap();
    let starts: Vec<_> = found.lanes.iter().map(|lane| lane.start(30)).collect();
    let adopted = Claim { writer: found.writer, ..claim_at(&feed, writer, &[1], 2) };
    // The second time as after an interruption: the lane is where it was.
    for _ in 0..2 {
        let lease = on.store().fork(&adopted, &starts).await.unwrap();
        let (mut flusher, row) = on.store().open_lane(&lease, 0).await.unwrap();
        if row.rows == 0 {
            assert_eq!(row.position(), store::Position { seq: 2, records: 34, partial: 4 });
            match flusher.flush(&whole).await.unwrap_err() {
                StoreError::CursorMoved(row) => assert_eq!(row.partial(), 4),
                other => panic!("{other}"),
            }
            let another = BatchFrame { payload_crc: 1, ..whole.frames()[0].clone() };
            let rest = whole.clone().after(row.position()).unwrap();
            let error = flusher.flush(&Feed::instead(&rest, vec![another])).await.unwrap_err();
            assert!(matches!(error, StoreError::SequenceReused { .. }), "{error}");
            assert_eq!(flusher.flush(&rest).await.unwrap(), flushed(7, 0));
        } else {
            assert!(whole.clone().after(row.position()).is_none(), "{row:?}");
        }
    }
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message = 'own'").await, 11);
    on.assert_whole(found.writer, 41).await;
}

pub async fn after_a_restore_to_before_the_takeover_the_lease_is_reacquired(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut feed = Feed::new(0);
    lane(on.store(), &lease, 0).await.flush(&feed.plain(10)).await.unwrap();
    let lost = feed.clone();
    let second = claim_at(&feed, writer, &[1], 2);
    let lease = on.store().acquire_lease(&second).await.unwrap();
    let mut flusher = lane(on.store(), &lease, 0).await;
    let batch = feed.plain(5);
    flusher.flush(&batch).await.unwrap();

    let run = on.sql().first_run;
    on.execute(&format!(
        "UPDATE logweir_writer SET epoch = 1, run_id = {run}; DELETE FROM logweir_takeover WHERE epoch = 2; \
         UPDATE logweir_lane SET epoch = 1, last_seq = {}, rows = 10; \
         DELETE FROM logs WHERE id % 17592186044416 > 10; UPDATE log_volume SET records = 5",
        lost.seq
    ))
    .await;
    let error = on.store().open_lane(&lease, 0).await.err().expect("the restored database does not know the lease");
    assert!(matches!(error, StoreError::LeaseLost { mine: 2, .. }), "{error}");
    let error = flusher.flush(&feed.clone().plain(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost { .. }), "{error}");

    let lease = on.store().acquire_lease(&second).await.unwrap();
    let (mut flusher, row) = on.store().open_lane(&lease, 0).await.unwrap();
    assert_eq!((row.last_seq, row.rows), (lost.seq, 10), "it must continue, not be reset");
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(5, 0));
    on.assert_whole(writer, 15).await;
}

pub async fn a_lane_that_is_reset_under_an_open_connection_is_reopened(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(on.store(), &lease, 0).await;
    // As after a restore in which the new takeover got the same epoch: only the lane_id differs.
    on.execute(on.sql().new_lane_id).await;
    let batch = Feed::new(0).plain(5);
    let error = flusher.flush(&batch).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost { .. }), "{error}");
    assert_eq!(lane(on.store(), &lease, 0).await.flush(&batch).await.unwrap(), flushed(5, 0));
    on.assert_whole(writer, 5).await;
}

pub async fn a_moved_cursor_is_reported_and_a_reused_sequence_number_stops_the_lane(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(on.store(), &lease, 0).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    let start = feed.clone();
    flusher.flush(&feed.plain(6)).await.unwrap();

    // Different boundaries: frames 2 and 3 in one batch, of which 2 is committed.
    let mut wide = start.clone();
    let batch = wide.batch(&[&[record("x"); 6], &[record("y")]]);
    match flusher.flush(&batch).await.unwrap_err() {
        StoreError::CursorMoved(row) => assert_eq!((row.last_seq, row.rows), (2, 11)),
        other => panic!("{other}"),
    }
    let same = start.clone().plain(6);
    let other = BatchFrame { payload_crc: 1, ..same.frames()[0].clone() };
    let other = Feed::instead(&same, vec![other]);
    assert!(matches!(flusher.flush(&other).await.unwrap_err(), StoreError::SequenceReused { lane: 0, seq: 2 }));
    on.assert_whole(writer, 11).await;
}

pub async fn inconsistent_counts_are_rejected_with_their_numbers(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(on.store(), &lease, 0).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    let good = feed.plain(3);
    // Somebody else counts as well.
    let [meddle, stop] = on.sql().count_too_many;
    on.execute(meddle).await;
    let error = flusher.flush(&good).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Systemic(_)) && text.contains("9 records") && text.contains("has 8"), "{text}");
    on.execute(stop).await;
    // The number of accounted records is part of the cursor.
    let frame = BatchFrame { lane_records: good.to_records() + 1, ..good.frames()[0].clone() };
    let bad = Batch::new(0, good.from_seq, good.from_records + 1, 0, vec![frame]);
    match flusher.flush(&bad).await.unwrap_err() {
        StoreError::CursorMoved(row) => assert_eq!((row.last_seq, row.accounted()), (1, 5)),
        other => panic!("{other}"),
    }
    on.assert_whole(writer, 5).await;
    flusher.flush(&good).await.unwrap();
    on.assert_whole(writer, 8).await;
}

pub async fn records_that_the_journal_lost_are_counted(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(on.store(), &lease, 0).await;
    let mut feed = Feed::new(0);
    let batch = feed.batch(&[&[record("a"); 2], &[record("damaged"); 4], &[record("c"); 3]]);
    let [first, _, last] = batch.frames() else { unreachable!() };
    let batch = Feed::instead(&batch, vec![first.clone(), last.clone()]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(5, 0));
    let row = &on.store().lanes(writer).await.unwrap()[0];
    assert_eq!((row.rows, row.lost, row.accounted()), (5, 4, 9));
    let first = row.lane_id << 44;
    assert_eq!(on.number(&format!("SELECT count(*) FROM logs WHERE id - {first} IN (1, 2, 7, 8, 9)")).await, 5);
}

pub async fn the_histogram_equals_a_group_by_over_the_rows(on: impl Subject) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    for number in 0..2 {
        let mut flusher = lane(on.store(), &lease, number).await;
        let mut feed = Feed::new(number);
        for round in 0..3_i64 {
            let records: Vec<Record<'_>> = (0..200)
                .map(|n| Record {
                    ts_us: NOON_US + (n * 7 + round) * 1_000_000,
                    service: ["a", "b", "c\u{fffd}"][usize::try_from(n % 3).unwrap()],
                    severity: if n % 5 == 0 { Severity::WARN } else { Severity::INFO },
                    ..record("m")
                })
                .collect();
            flusher.flush(&feed.batch(&[&records])).await.unwrap();
        }
    }
    let minute = on.sql().minute;
    let differing = format!(
        "SELECT count(*) FROM (SELECT {minute} AS m, service, severity, id / 17592186044416 AS l, count(*) AS n FROM logs \
         GROUP BY 1, 2, 3, 4) AS g FULL JOIN log_volume AS v ON v.minute = g.m AND v.service = g.service \
         AND v.severity = g.severity AND v.lane_id = g.l WHERE g.n IS NULL OR v.records IS NULL OR g.n <> v.records"
    );
    assert_eq!(on.number(&differing).await, 0);
    assert!(on.number("SELECT count(*) FROM log_volume").await > 100);
    on.assert_whole(writer, 1_200).await;
}

pub async fn a_row_that_violates_a_users_constraint_is_dead_lettered_and_can_be_replayed(on: impl Subject) {
    let [on_rule, off_rule] = on.sql().refuse_rude;
    on.execute(on_rule).await;
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let (mut flusher, row) = on.store().open_lane(&lease, 0).await.unwrap();
    let mut feed = Feed::new(0);
    let batch = feed.batch(&[&[record("a")], &[record("b"), record("rude"), record("c")]]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(3, 1));
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0));
    on.assert_whole(writer, 4).await;
    let letters = on.store().dead_letters(10).await.unwrap();
    let letter = &letters[0];
    assert_eq!((letters.len(), letter.lane, letter.seq, letter.row), (1, 0, 2, 1));
    assert_eq!(letter.id, (row.lane_id << 44) + 3);
    assert!(letter.reason.contains("polite") && letter.raw.contains("rude"), "{letter:?}");

    let error = on.store().replay_dead_letter(letter).await.unwrap_err().to_string();
    assert!(error.contains("polite"), "the constraint still exists: {error}");
    assert_eq!(on.store().dead_letters(10).await.unwrap().len(), 1);
    on.execute(off_rule).await;
    on.store().replay_dead_letter(letter).await.unwrap();
    let error = on.store().replay_dead_letter(letter).await.unwrap_err().to_string();
    assert!(error.contains("unknown dead letter"), "it was already replayed: {error}");
    on.assert_whole(writer, 4).await;
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message = 'rude'").await, 1);
}

pub async fn old_dead_letters_are_purged(on: impl Subject) {
    on.execute(on.sql().old_dead_letter).await;
    assert_eq!(on.store().purge_dead_letters(1_000_000_000).await.unwrap(), 0);
    assert_eq!(on.store().purge_dead_letters(1_000_000_001).await.unwrap(), 1);
}

async fn row_of(on: &impl Subject, writer: Uuid) -> LaneRow {
    on.store().lanes(writer).await.unwrap().remove(0)
}

/// Seeded divisions, each batch flushed once or twice, on this connection or on another one, or by the next run.
pub async fn a_batch_divided_in_any_way_with_unknown_outcomes_is_stored_once(on: impl Subject) {
    for seed in 0..8 {
        let mut random = StdRng::seed_from_u64(seed);
        let (writer, mut lease, mut flusher) = started(&on).await;
        let (mut feed, mut frames) = (Feed::new(0), Frames::default());
        let mut runs = vec![1];
        let messages: Vec<String> = (0..random.random_range(20..60)).map(|n| format!("{seed}/{n}")).collect();
        let mut rest: &[String] = &messages;
        while !rest.is_empty() {
            let (here, later) = rest.split_at(random.random_range(1..=rest.len().min(7)));
            frames.0.push(feed.frame(&here.iter().map(|text| record(text)).collect::<Vec<_>>()));
            rest = later;
        }
        let mut row = row_of(&on, writer).await;
        while let Some(batch) = frames.after(&row, random.random_range(1..4), random.random_range(0..5)) {
            flusher.flush(&batch).await.unwrap();
            match random.random_range(0..5) {
                0 => assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0), "seed {seed}: {batch:?}"),
                1 => {
                    flusher = lane(on.store(), &lease, 0).await;
                    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0), "seed {seed}: {batch:?}");
                }
                2 => {
                    let run = runs.len() as u128 + 1;
                    lease = on.store().acquire_lease(&claim_at(&feed, writer, &runs, run)).await.unwrap();
                    runs.push(run);
                    flusher = lane(on.store(), &lease, 0).await;
                }
                3 => {
                    // As after a lost response and a smaller division.
                    if let Some(other) = frames.after(&row, 1, random.random_range(0..5)) {
                        match flusher.flush(&other).await {
                            Ok(again) => assert_eq!(again, flushed(0, 0), "seed {seed}: {other:?}"),
                            Err(StoreError::CursorMoved(_)) => {}
                            Err(error) => panic!("seed {seed}: {other:?}: {error}"),
                        }
                    }
                }
                _ => {}
            }
            row = row_of(&on, writer).await;
            assert_eq!((row.last_seq, row.accounted()), (batch.to_seq(), batch.to_records()), "seed {seed}");
        }
        let records = messages.len() as u64;
        assert_eq!((row.last_seq, row.rows, row.partial()), (feed.seq, records, 0), "seed {seed}");
        let stored = on.store().count_stored(&row).await.unwrap();
        assert_eq!((stored.rows, stored.distinct), (records, records), "seed {seed}");
        let distinct = format!("SELECT count(DISTINCT message) FROM logs WHERE message LIKE '{seed}/%'");
        assert_eq!(on.number(&distinct).await, records.cast_signed(), "seed {seed}");
    }
}

pub async fn a_frame_that_is_committed_in_part_goes_on_only_with_the_same_frame(on: impl Subject) {
    let (writer, lease, mut flusher) = started(&on).await;
    let mut second = lane(on.store(), &lease, 0).await;
    let mut feed = Feed::new(0);
    let whole = feed.plain(10);
    let part = whole.prefix(4);
    assert_eq!(flusher.flush(&part).await.unwrap(), flushed(4, 0));
    assert_eq!(flusher.flush(&part).await.unwrap(), flushed(0, 0));
    assert_eq!(second.flush(&part).await.unwrap(), flushed(4, 0), "it learns the counts");
    let row = row_of(&on, writer).await;
    assert_eq!((row.last_seq, row.partial(), row.accounted()), (0, 4, 4));

    for moved in [whole.clone(), whole.prefix(7), whole.prefix(2)] {
        match flusher.flush(&moved).await.unwrap_err() {
            StoreError::CursorMoved(row) => assert_eq!((row.last_seq, row.partial()), (0, 4)),
            other => panic!("{other}"),
        }
    }
    let rest = whole.clone().after(part.end()).unwrap();
    for batch in [&part, &rest, &rest.prefix(4)] {
        let frame = BatchFrame { payload_crc: 1, ..whole.frames()[0].clone() };
        let another = Feed::instead(batch, vec![frame]).prefix(usize::try_from(batch.records()).unwrap());
        let error = flusher.flush(&another).await.unwrap_err();
        assert!(matches!(error, StoreError::SequenceReused { lane: 0, seq: 1 }), "{batch:?}: {error}");
    }
    // A shorter frame under the same number.
    let short = BatchFrame { lane_records: 3, ..Feed::new(0).frame(&[record("short"); 3]) };
    let error = flusher.flush(&Feed::instead(&rest, vec![short])).await.unwrap_err();
    assert!(matches!(error, StoreError::SequenceReused { lane: 0, seq: 1 }), "{error}");
    // The rest, with a part of the next frame.
    let next = feed.plain(5);
    let both = Feed::instead(&rest, [rest.frames(), next.frames()].concat()).prefix(9);
    assert_eq!(flusher.flush(&both).await.unwrap(), flushed(9, 0));
    let row = row_of(&on, writer).await;
    assert_eq!((row.last_seq, row.partial(), row.accounted()), (1, 3, 13));
    match flusher.flush(&rest).await.unwrap_err() {
        StoreError::CursorMoved(row) => assert_eq!((row.last_seq, row.partial()), (1, 3)),
        other => panic!("{other}"),
    }
    let last = next.after(both.end()).unwrap();
    assert_eq!(flusher.flush(&last).await.unwrap(), flushed(2, 0));
    on.assert_whole(writer, 15).await;
}

pub async fn a_journal_without_the_rest_of_a_frame_that_is_committed_in_part_gets_its_lane_reset(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    let older = feed.clone();
    let whole = feed.plain(10);
    flusher.flush(&whole.prefix(4)).await.unwrap();
    // A journal that has the frame goes on with it.
    let lease = on.store().acquire_lease(&claim_at(&feed, writer, &[1], 2)).await.unwrap();
    let row = on.store().open_lane(&lease, 0).await.unwrap().1;
    assert_eq!((row.last_seq, row.accounted(), row.partial()), (1, 9, 4));
    // One that ends before it uses its number for another frame.
    let lease = on.store().acquire_lease(&claim_at(&older, writer, &[1, 2], 3)).await.unwrap();
    let (mut flusher, reset) = on.store().open_lane(&lease, 0).await.unwrap();
    assert_eq!((reset.last_seq, reset.accounted(), reset.partial()), (1, 5, 0));
    assert_ne!(reset.lane_id, row.lane_id);
    assert_eq!(flusher.flush(&older.clone().plain(3)).await.unwrap(), flushed(3, 0));
    assert_eq!(on.number("SELECT count(DISTINCT id) FROM logs").await, 9 + 3);
    on.assert_whole(writer, 8).await;
}

pub async fn fifty_opens_use_one_lane_id(on: impl Subject) {
    let (_, lease, _) = started(&on).await;
    let first = on.store().open_lane(&lease, 0).await.unwrap().1;
    for _ in 0..50 {
        assert_eq!(on.store().open_lane(&lease, 0).await.unwrap().1.lane_id, first.lane_id);
    }
    assert_eq!(on.store().open_lane(&lease, 1).await.unwrap().1.lane_id, first.lane_id + 1);
}

pub async fn a_constraint_that_refuses_many_rows_does_not_stop_the_lane(on: impl Subject) {
    on.execute(on.sql().refuse_rude[0]).await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    // A whole batch before the table took any record of the lane; then of each hundred 5, 60, 100 and none.
    let (mut rows, mut dead) = (0, 0);
    for (records, refused) in [(150, 100), (1, 100), (1_000, 5), (1_000, 60), (300, 100), (100, 0), (1, 100), (1, 0)] {
        let texts: Vec<&str> = (0..records).map(|n| if n % 100 < refused { "rude" } else { "plain" }).collect();
        let batch = feed.batch(&[&texts.iter().map(|text| record(text)).collect::<Vec<_>>()]);
        let rude = texts.iter().filter(|text| **text == "rude").count() as u64;
        assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(records - rude, rude), "{refused} of 100");
        assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0), "{refused} of 100, again");
        (rows, dead) = (rows + records - rude, dead + rude);
    }
    on.assert_whole(writer, rows + dead).await;
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message = 'rude'").await, 0);
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, dead.cast_signed());
}

pub async fn a_row_that_is_refused_after_it_was_inserted_is_a_dead_letter_and_not_stored(on: impl Subject) {
    on.execute(on.sql().refuse_afterwards).await;
    let (writer, _, mut flusher) = started(&on).await;
    let (mut feed, mut expected) = (Feed::new(0), 0);
    for refused in ["after", "late"] {
        for (good, bad) in [(98, 2), (0, 1), (10, 20), (0, 20), (3, 0)] {
            let mut records = vec![record("plain"); good];
            (0..bad).for_each(|n| records.insert(n * good / bad.max(1), record(refused)));
            let batch = feed.batch(&[&records]);
            let (good, bad) = (good as u64, bad as u64);
            assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(good, bad), "{refused}");
            assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0), "{refused}, again");
            expected += good + bad;
            on.assert_whole(writer, expected).await;
        }
    }
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message <> 'plain'").await, 0);
    // Refused alone by the flusher's count.
    let rejection = Rejection { code: "57014".to_owned(), reason: "too slow".to_owned() };
    let batch = feed.batch(&[&[record("late")]]);
    assert_eq!(flusher.dead_letter(&batch, &rejection).await.unwrap(), flushed(0, 1));
    on.assert_whole(writer, expected + 1).await;
}

pub async fn a_table_that_refuses_every_row_stops_the_lane_until_it_is_fixed(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    for ([close, open], reason) in [(on.sql().refuse_all, "closed"), (on.sql().drop_all, "trigger")] {
        on.execute(close).await;
        for records in [1, 20, 500] {
            let error = flusher.flush(&feed.clone().plain(records)).await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, StoreError::Systemic(_)), "{text}");
            assert!(text.contains("refuses every record") && text.contains(reason), "{text}");
        }
        assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, 0);
        on.execute(open).await;
        assert_eq!(flusher.flush(&feed.plain(500)).await.unwrap(), flushed(500, 0));
    }
    on.assert_whole(writer, 1_005).await;
}

pub async fn records_that_a_trigger_drops_are_dead_letters(on: impl Subject) {
    let [quieten, undo] = on.sql().drop_noise;
    on.execute(quieten).await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let texts: Vec<String> = (0..300).map(|n| format!("{} {n}", if n % 3 == 0 { "noise" } else { "plain" })).collect();
    let records: Vec<Record<'_>> = texts.iter().map(|text| record(text)).collect();
    let batch = feed.batch(&[&records[..100], &records[100..]]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(200, 100));
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0));
    let noise = [record("noise a"), record("noise b")];
    assert_eq!(flusher.flush(&feed.batch(&[&noise])).await.unwrap(), flushed(0, 2));
    assert_eq!(flusher.flush(&feed.plain(3)).await.unwrap(), flushed(3, 0));
    on.assert_whole(writer, 305).await;
    let letters = on.store().dead_letters(200).await.unwrap();
    assert_eq!(letters.len(), 102);
    for letter in &letters {
        assert!(letter.sqlstate == "filtered" && letter.reason.contains("trigger") && letter.raw.contains("noise"));
    }
    // Together with rows that are refused.
    let [refuse, _] = on.sql().refuse_rude;
    on.execute(refuse).await;
    let mixed = [record("noise"), record("rude"), record("plain"), record("noise"), record("plain")];
    assert_eq!(flusher.flush(&feed.batch(&[&mixed])).await.unwrap(), flushed(2, 3));
    on.assert_whole(writer, 310).await;

    let error = on.store().replay_dead_letter(&letters[0]).await.unwrap_err().to_string();
    assert!(error.contains("trigger on table logs dropped"), "it still does: {error}");
    on.assert_whole(writer, 310).await;
    on.execute(undo).await;
    on.store().replay_dead_letter(&letters[0]).await.unwrap();
    on.assert_whole(writer, 310).await;
}

pub async fn a_dead_letter_is_the_record_that_was_refused(on: impl Subject) {
    const RECORDS: usize = 60;
    on.execute(on.sql().refuse_rude[0]).await;
    on.execute(on.sql().drop_noise[0]).await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let thirds: Vec<usize> = (0..RECORDS).step_by(3).collect();
    // Records that are refused, and those that are dropped, of even and odd places: a store may keep the two kinds in
    // different places. After the first ones that are dropped, all are inserted in another way. Many are tried one by one.
    let cases: [(&[usize], &[usize]); 14] = [
        (&[4], &[]),
        (&[7], &[]),
        (&[0, 7, 59], &[]),
        (&thirds, &[]),
        (&[], &[4]),
        (&[], &[7]),
        (&[4], &[7]),
        (&[7], &[4]),
        (&[4], &[]),
        (&[7], &[]),
        (&thirds, &[1, 4, 8]),
        (&[], &thirds),
        (&[1], &thirds),
        (&[], &[]),
    ];
    for (nth, (rude, noise)) in cases.into_iter().enumerate() {
        let word = |index: &usize| match (rude.contains(index), noise.contains(index)) {
            (true, _) => "rude",
            (_, true) => "noise",
            _ => "plain",
        };
        let texts: Vec<String> = (0..RECORDS).map(|index| format!("{} {nth}-{index}", word(&index))).collect();
        let records: Vec<Record<'_>> = texts.iter().map(|text| record(text)).collect();
        let batch = feed.batch(&[&records]);
        let mut bad: Vec<usize> = (0..RECORDS).filter(|index| word(index) != "plain").collect();
        let dead = bad.len() as u64;
        assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(RECORDS as u64 - dead, dead), "case {nth}");
        let letters = on.store().dead_letters(1_000).await.unwrap();
        for letter in letters.iter().filter(|letter| letter.seq == feed.seq) {
            let index = letter.row as usize;
            assert!(letter.raw.contains(&format!("{:?}", texts[index])), "case {nth}, record {index}: {}", letter.raw);
            let known = bad.iter().position(|bad| *bad == index);
            bad.remove(known.unwrap_or_else(|| panic!("case {nth}: record {index} is a dead letter")));
        }
        assert!(bad.is_empty(), "case {nth}: {bad:?} are no dead letters");
        let stored = format!("SELECT count(DISTINCT message) FROM logs WHERE message LIKE 'plain {nth}-%'");
        assert_eq!(on.number(&stored).await.unsigned_abs(), RECORDS as u64 - dead, "case {nth}");
    }
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message NOT LIKE 'plain%'").await, 0);
    on.assert_whole(writer, (14 * RECORDS) as u64).await;
}

pub async fn a_record_refused_alone_is_dead_lettered_only_if_the_table_takes_another(on: impl Subject) {
    let (writer, lease, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    let one = feed.plain(1);
    let rejection = Rejection { code: "57014".to_owned(), reason: "too slow".to_owned() };
    let [close, open] = on.sql().refuse_all;
    on.execute(close).await;
    let mut fresh = lane(on.store(), &lease, 0).await;
    for flusher in [&mut flusher, &mut fresh] {
        let error = flusher.dead_letter(&one, &rejection).await.unwrap_err();
        assert!(matches!(error, StoreError::Systemic(_)) && error.to_string().contains("too slow"), "{error}");
    }
    on.assert_whole(writer, 5).await;
    on.execute(open).await;
    assert_eq!(flusher.dead_letter(&one, &rejection).await.unwrap(), flushed(1, 0), "it is taken now");
    assert_eq!(fresh.flush(&one).await.unwrap(), flushed(1, 0), "it learns the counts");
    on.execute(on.sql().refuse_rude[0]).await;
    let one = feed.batch(&[&[record("rude")]]);
    assert_eq!(flusher.dead_letter(&one, &rejection).await.unwrap(), flushed(0, 1));
    assert_eq!(flusher.dead_letter(&one, &rejection).await.unwrap(), flushed(0, 0));
    assert_eq!(fresh.flush(&one).await.unwrap(), flushed(0, 1), "it learns the counts");
    let letter = &on.store().dead_letters(2).await.unwrap()[0];
    assert_eq!((letter.sqlstate.as_str(), letter.reason.as_str()), ("57014", "too slow"));
    on.assert_whole(writer, 7).await;
}

pub async fn a_repeated_request_is_stored_once_whichever_writer_gets_it(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let (other_writer, _, mut other_flusher) = started(&on).await;
    let (mut feed, mut other) = (Feed::new(0), Feed::new(0));
    let repeated = |rows, repeated| Flushed { repeated, ..flushed(rows, 0) };

    let batch = feed.requests(&[(1, 10), (2, 20)]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(4, 0));
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0), "the same frames again");
    // One that the other writer has stored, a new one, and one with the same key and another body.
    let batch = other.requests(&[(1, 10), (3, 30), (2, 21)]);
    assert_eq!(other_flusher.flush(&batch).await.unwrap(), repeated(4, 2));
    // Nothing but repetitions, one of a frame in the same batch.
    let batch = feed.requests(&[(3, 30), (4, 40), (4, 40)]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), repeated(2, 4));
    let batch = other.requests(&[(4, 40)]);
    assert_eq!(other_flusher.flush(&batch).await.unwrap(), repeated(0, 2));
    assert_eq!(other_flusher.flush(&other.plain(1)).await.unwrap(), flushed(1, 0), "and it goes on");

    on.assert_whole(writer, 10).await;
    on.assert_whole(other_writer, 9).await;
    let row = &on.store().lanes(other_writer).await.unwrap()[0];
    assert_eq!((row.rows, row.repeated, row.inherited), (5, 4, 4));
    for key in 1..=4 {
        let stored = on.number(&format!("SELECT count(*) FROM logs WHERE message = 'first of {key}'")).await;
        assert_eq!(stored, if key == 2 { 2 } else { 1 }, "key {key}");
    }
}

/// The body is a part of the key: what is repeated is a request, not its key.
pub async fn a_key_with_two_bodies_is_two_requests(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let (other_writer, _, mut other_flusher) = started(&on).await;
    let (mut feed, mut other) = (Feed::new(0), Feed::new(0));
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10)])).await.unwrap(), flushed(2, 0));
    assert_eq!(other_flusher.flush(&other.requests(&[(1, 11)])).await.unwrap(), flushed(2, 0));
    for (flusher, feed) in [(&mut flusher, &mut feed), (&mut other_flusher, &mut other)] {
        assert_eq!(flusher.flush(&feed.requests(&[(1, 11), (1, 10)])).await.unwrap().repeated, 4);
    }
    on.assert_whole(writer, 6).await;
    on.assert_whole(other_writer, 6).await;
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 4);
}

/// How often each record of the request `key` is stored.
async fn stored(on: &impl Subject, key: u8) -> [i64; 2] {
    let count = async |which| on.number(&format!("SELECT count(*) FROM logs WHERE message = '{which} of {key}'")).await;
    [count("first").await, count("second").await]
}

/// The process that stored a part of a request can stay away for ever, or come back.
pub async fn the_rest_of_a_request_is_stored_by_the_next_frame_that_has_it(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let (other_writer, _, mut other_flusher) = started(&on).await;
    let (mut feed, mut other) = (Feed::new(0), Feed::new(0));
    let one = |rows, repeated| Flushed { rows, dead_lettered: 0, repeated };

    let whole = feed.requests(&[(1, 10)]);
    assert_eq!(flusher.flush(&whole.prefix(1)).await.unwrap(), one(1, 0));
    on.execute(on.sql().old_keys).await;
    assert_maintained(&on).await;
    assert_eq!(on.number("SELECT count(*) FROM logweir_idempotency_key").await, 1, "the lane goes on with it");
    assert_eq!(other_flusher.flush(&other.requests(&[(1, 10)])).await.unwrap(), one(1, 1));
    assert_eq!(stored(&on, 1).await, [1, 1]);
    // It comes back.
    assert_eq!(flusher.flush(&whole.clone().after(whole.prefix(1).end()).unwrap()).await.unwrap(), one(0, 1));
    assert_eq!(stored(&on, 1).await, [1, 1]);

    // Nobody repeats it: the lane goes on, however late.
    let whole = feed.requests(&[(2, 20)]);
    assert_eq!(flusher.flush(&whole.prefix(1)).await.unwrap(), one(1, 0));
    on.execute(on.sql().old_keys).await;
    assert_maintained(&on).await;
    assert_eq!(flusher.flush(&whole.clone().after(whole.prefix(1).end()).unwrap()).await.unwrap(), one(1, 0));
    assert_maintained(&on).await;
    assert_eq!(other_flusher.flush(&other.requests(&[(2, 20), (1, 10)])).await.unwrap().repeated, 2, "the hour begins");
    assert_eq!(stored(&on, 2).await, [1, 1]);
    on.assert_whole(writer, 4).await;
    on.assert_whole(other_writer, 6).await;
}

/// A part of a request is stored; then the volume of a time before it is restored, and the sender tries again.
pub async fn a_lane_that_is_reset_stores_the_rest_of_a_request(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10), (1, 10)])).await.unwrap().repeated, 2);
    let mut older = feed.clone();
    flusher.flush(&feed.requests(&[(2, 20)]).prefix(1)).await.unwrap();
    let lease = on.store().acquire_lease(&claim_at(&older, writer, &[1], 2)).await.unwrap();
    let (mut flusher, row) = on.store().open_lane(&lease, 0).await.unwrap();
    assert_eq!((row.accounted(), row.inherited, row.repeated), (4, 4, 0), "what was repeated is inherited");
    let again = older.requests(&[(2, 20)]);
    assert_eq!(flusher.flush(&again).await.unwrap(), Flushed { repeated: 1, ..flushed(1, 0) });
    assert_eq!(stored(&on, 2).await, [1, 1]);
    on.assert_whole(writer, 6).await;
    // What no lane goes on with expires as a whole request does.
    flusher.flush(&older.requests(&[(3, 30)]).prefix(1)).await.unwrap();
    on.store().acquire_lease(&claim_at(&Feed { seq: 3, records: 6, ..older }, writer, &[1, 2], 3)).await.unwrap();
    on.execute(on.sql().old_keys).await;
    assert_maintained(&on).await;
    assert_eq!(on.number("SELECT count(*) FROM logweir_idempotency_key").await, 0);
}

/// Another writer goes on with a journal in the middle of a request.
pub async fn a_fork_inside_of_a_request_stores_the_rest_of_it(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(3)).await.unwrap();
    let copied = feed.clone();
    let whole = feed.requests(&[(1, 10), (2, 20)]);
    flusher.flush(&whole.prefix(1)).await.unwrap();
    on.store().acquire_lease(&claim_at(&copied, writer, &[1], 20)).await.unwrap();
    let mine = claim_at(&feed, writer, &[1], 2);
    let found = on.store().fork_point(&mine).await.unwrap().unwrap();
    let starts: Vec<_> = found.lanes.iter().map(|lane| lane.start(3)).collect();
    let lease = on.store().fork(&Claim { writer: found.writer, ..mine }, &starts).await.unwrap();
    let (mut flusher, row) = on.store().open_lane(&lease, 0).await.unwrap();
    assert_eq!(row.partial(), 1);
    assert_eq!(flusher.flush(&whole.after(row.position()).unwrap()).await.unwrap(), flushed(3, 0));
    assert_eq!((stored(&on, 1).await, stored(&on, 2).await), ([1, 1], [1, 1]));
    on.assert_whole(found.writer, 7).await;
}

pub async fn keys_expire_and_are_deleted(on: impl Subject) {
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let keys = "SELECT count(*) FROM logweir_idempotency_key";
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10), (2, 20)])).await.unwrap(), flushed(4, 0));
    on.execute(on.sql().keys_of_two_hours_ago).await;
    assert_maintained(&on).await;
    assert_eq!(on.number(keys).await, 2, "only the clock says that they are old");
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10)])).await.unwrap().repeated, 2);
    on.execute(on.sql().old_keys).await;
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10), (3, 30)])).await.unwrap().repeated, 2, "as long as it is there");
    assert_maintained(&on).await;
    assert_eq!(on.number(keys).await, 1, "the new one");
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10), (3, 30)])).await.unwrap().repeated, 2);
    on.assert_whole(writer, 14).await;
}

async fn assert_maintained(on: &impl Subject) {
    assert_eq!(maintain(on.store(), wall_us()).await, Vec::<String>::new());
}
