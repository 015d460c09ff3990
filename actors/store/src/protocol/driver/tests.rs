//! The driver over a database in memory that fails at any statement: each record once, whatever is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use logweir_engine::journal::{DedupKey, DedupKind, LaneId};
use logweir_record::chunk::Chunk;
use logweir_record::record::{Record, Severity};
use uuid::Uuid;

use super::flush::{Lane, dead_letter, flush};
use super::statements::{FlushStatements, How, LeftOut, Letter, Purpose, Refused, Step, Transaction, filtered};
use crate::batch::{Batch, BatchFrame};
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow, Position};
use crate::protocol::requests::{KeyRow, RequestKey};
use crate::protocol::rows::Rows;
use crate::protocol::sample::{LastTaken, Sample};
use crate::protocol::takeover::Owner;
use crate::protocol::volume_counter::{Counter, Key};

/// What is in the database.
#[derive(Clone, Default)]
struct Tables {
    epoch: i64,
    lane: LaneRow,
    rows: BTreeMap<i64, String>,
    letters: BTreeMap<i64, (String, String)>,
    volume: i64,
    keys: BTreeMap<RequestKey, KeyRow>,
}

/// A session on tables in memory.
#[derive(Default)]
struct Memory {
    tables: Tables,
    open: Option<Tables>,
    /// Statements until one fails.
    fails_after: Option<usize>,
    /// A COMMIT that fails has committed.
    commits_anyway: bool,
    /// Number of rows above which an insertion is refused.
    rows_max: usize,
    /// The insertions, counted from 0, of which every row is refused.
    closed: Range<usize>,
    insertions: usize,
}

impl Memory {
    fn new(epoch: i64) -> Self {
        let lane = LaneRow { lane_id: 1, epoch, ..LaneRow::default() };
        Self { tables: Tables { epoch, lane, ..Tables::default() }, rows_max: usize::MAX, ..Self::default() }
    }

    fn cut(&mut self) -> Result<(), StoreError> {
        match &mut self.fails_after {
            Some(0) => {
                self.open = None;
                Err(StoreError::Transient("cut off".to_owned()))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn open(&mut self) -> &mut Tables {
        self.open.as_mut().expect("a transaction is open")
    }
}

impl Transaction for Memory {
    async fn begin(&mut self, _: Purpose) -> Result<(), StoreError> {
        self.cut()?;
        assert!(self.open.is_none(), "one transaction at a time");
        self.open = Some(self.tables.clone());
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Refused> {
        let open = self.open.clone().expect("a transaction is open");
        let done = self.cut();
        if done.is_ok() || self.commits_anyway {
            self.tables = open;
        }
        self.open = None;
        Ok(done?)
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.cut()?;
        self.open = None;
        Ok(())
    }

    async fn owner(&mut self, _: Uuid) -> Result<Option<Owner>, StoreError> {
        self.cut()?;
        Ok(Some(Owner { epoch: self.open().epoch, run: Uuid::nil(), owner: String::new() }))
    }

    async fn lane(&mut self, _: Uuid, _: LaneId) -> Result<Option<LaneRow>, StoreError> {
        self.cut()?;
        Ok(Some(self.open().lane.clone()))
    }
}

impl FlushStatements for Memory {
    async fn move_cursor(&mut self, step: &Step<'_>) -> Result<bool, StoreError> {
        self.cut()?;
        let (batch, row) = (step.batch, &mut self.open().lane);
        let same_frame = batch.begun().is_none_or(|frame| frame.digest().frame() == row.digest.frame());
        let matches = (row.epoch, row.last_seq, row.accounted(), row.lane_id)
            == (step.epoch, batch.from_seq, batch.from_records, step.lane_id);
        if !(matches && same_frame) {
            return Ok(false);
        }
        (row.last_seq, row.digest) = (batch.to_seq(), batch.digest());
        row.rows += step.rows;
        row.dead_lettered += step.dead;
        row.lost += batch.lost();
        Ok(true)
    }

    async fn claim_keys(&mut self, rows: &[KeyRow]) -> Result<Vec<KeyRow>, StoreError> {
        self.cut()?;
        assert!(rows.is_sorted_by(|one, two| one.key < two.key), "locked in order");
        let keys = &mut self.open().keys;
        Ok(rows.iter().map(|row| *keys.entry(row.key).or_insert(*row)).collect())
    }

    async fn update_keys(&mut self, rows: &[KeyRow]) -> Result<(), StoreError> {
        self.cut()?;
        let keys = &mut self.open().keys;
        rows.iter().for_each(|row| assert!(keys.insert(row.key, *row).is_some(), "it was claimed"));
        Ok(())
    }

    async fn count_repeated(&mut self, step: &Step<'_>) -> Result<(), StoreError> {
        self.cut()?;
        let row = &mut self.open().lane;
        (row.inherited, row.repeated) = (row.inherited + step.repeated, row.repeated + step.repeated);
        Ok(())
    }

    /// Refuses `bad …` with an error that names no row, and drops `noise …`.
    async fn insert<'a>(
        &mut self,
        rows: Rows<'a>,
        volume: &mut Counter<'a>,
        how: How,
    ) -> Result<Vec<LeftOut>, Refused> {
        self.cut()?;
        let refused = |code: &str| Refused::Row {
            at: None,
            rejection: Rejection { code: code.to_owned(), reason: "refused".to_owned() },
        };
        let rows: Vec<_> = rows.collect();
        let closed = self.closed.contains(&self.insertions);
        self.insertions += 1;
        if rows.len() > self.rows_max {
            return Err(StoreError::Rejected(Rejection { code: "big".to_owned(), reason: "big".to_owned() }).into());
        }
        let mut left_out = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            if closed || row.record.message.starts_with("bad") {
                return Err(refused("bad"));
            }
            if row.record.message.starts_with("noise") {
                left_out.push(LeftOut { index, rejection: filtered() });
                continue;
            }
            let twice = self.open().rows.insert(row.id, row.record.message.to_owned());
            assert!(twice.is_none(), "stored twice");
            volume.add(row);
        }
        if how == How::Fast && !left_out.is_empty() {
            return Err(Refused::Filtered);
        }
        Ok(left_out)
    }

    async fn recount(&mut self, _: &Step<'_>, dead: u64) -> Result<(), StoreError> {
        self.cut()?;
        let row = &mut self.open().lane;
        (row.rows, row.dead_lettered) = (row.rows - dead, row.dead_lettered + dead);
        Ok(())
    }

    async fn insert_dead_letters(&mut self, _: &Step<'_>, letters: &[Letter<'_>]) -> Result<(), StoreError> {
        self.cut()?;
        for Letter { row, rejection } in letters {
            let letter = (row.record.message.to_owned(), rejection.code.clone());
            assert!(self.open().letters.insert(row.id, letter).is_none(), "dead-lettered twice");
        }
        Ok(())
    }

    async fn count_and_read_back(
        &mut self,
        _: &Step<'_>,
        volume: Vec<(Key<'_>, i64)>,
    ) -> Result<(u64, u64), StoreError> {
        self.cut()?;
        let open = self.open();
        open.volume += volume.iter().map(|(_, records)| records).sum::<i64>();
        Ok((open.lane.last_seq, open.lane.accounted()))
    }

    async fn stored_record(&mut self) -> Result<Option<Sample>, StoreError> {
        self.cut()?;
        Ok(None)
    }
}

fn now<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("nothing waits"),
    }
}

fn record(message: &str) -> Record<'_> {
    Record { ts_us: 7, severity: Severity::INFO, service: "s", host: "h", message, attributes: "" }
}

fn frames(messages: &[&[&str]]) -> Vec<BatchFrame> {
    let mut lane_records = 0;
    let frame = |(seq, messages): (u64, &&[&str])| {
        let mut chunk = Chunk::with_capacity(0, 0, 0);
        messages.iter().for_each(|message| chunk.push(record(message)));
        lane_records += messages.len() as u64;
        BatchFrame {
            seq,
            lane_records,
            payload_crc: u32::try_from(seq).unwrap(),
            dedup_key: None,
            chunk: Arc::new(chunk),
        }
    };
    (1..).zip(messages).map(frame).collect()
}

/// The batch of the records `(from, to]` of the lane.
fn batch(frames: &[BatchFrame], from: u64, to: u64) -> Batch {
    let seq = frames.iter().take_while(|frame| frame.lane_records <= from).last().map_or(0, |frame| frame.seq);
    let before = frames.iter().find(|frame| frame.seq > seq).unwrap().records_before();
    let rest = Batch::new(0, 0, 0, 0, frames.to_vec()).after(Position { seq, records: from, partial: from - before });
    rest.unwrap().prefix(usize::try_from(to - from).unwrap())
}

fn lane(memory: &Memory) -> Lane {
    Lane::new(Uuid::nil(), memory.tables.lane.epoch, memory.tables.lane.clone(), LastTaken::default())
}

const MESSAGES: [&[&str]; 3] = [&["a", "bad 1", "b"], &["noise 1", "c", "d", "bad 2"], &["e", "noise 2"]];

fn assert_all(memory: &Memory, records: u64) {
    let Tables { lane, rows, letters, volume, .. } = &memory.tables;
    assert_eq!(lane.accounted(), records);
    assert_eq!((rows.len() as u64, letters.len() as u64), (lane.rows, lane.dead_lettered));
    assert_eq!(rows.len(), usize::try_from(*volume).unwrap());
    let ids: BTreeSet<i64> = rows.keys().chain(letters.keys()).copied().collect();
    assert_eq!(ids.len() as u64, records);
    assert!(rows.values().all(|message| message.len() == 1), "{rows:?}");
    for (message, code) in letters.values() {
        assert!(message.starts_with("noise") || (message.starts_with("bad") && code == "bad"), "{letters:?}");
    }
}

/// All divisions of nine records in three frames into batches, each cut off once at any statement, before or after the
/// COMMIT took effect, and flushed again.
#[test]
fn any_division_cut_off_at_any_statement_stores_each_record_once() {
    let frames = frames(&MESSAGES);
    let mut cut_off = 0;
    for division in 0..1_u32 << 8 {
        let ends: Vec<u64> = (1..=8).filter(|end| division & 1 << (end - 1) != 0).chain([9]).collect();
        for commits_anyway in [false, true] {
            // The statements of each batch: as many as the longest takes.
            for fails_after in (0..40).step_by(if division % 16 == 0 { 1 } else { 7 }) {
                let mut memory = Memory { commits_anyway, ..Memory::new(3) };
                let mut known = lane(&memory);
                let mut from = 0;
                for &to in &ends {
                    let batch = batch(&frames, from, to);
                    memory.fails_after = Some(fails_after);
                    if let Err(error) = now(flush(&mut known, &mut memory, &batch)) {
                        assert!(matches!(error, StoreError::Transient(_)), "{error}");
                        cut_off += 1;
                        (memory.fails_after, memory.open) = (None, None);
                        if to % 2 == 0 {
                            known = lane(&memory); // as after a restart, which reads the cursor
                            if known.row.accounted() == to {
                                from = to;
                                continue;
                            }
                        }
                        now(flush(&mut known, &mut memory, &batch)).unwrap();
                    }
                    memory.fails_after = None;
                    assert_eq!(now(flush(&mut known, &mut memory, &batch)).unwrap(), Flushed::default(), "again");
                    from = to;
                }
                assert_all(&memory, 9);
                assert_eq!(memory.tables.letters.len(), 4);
            }
        }
    }
    assert!(cut_off > 5_000, "{cut_off}");
}

#[test]
fn a_batch_that_is_too_big_is_refused_and_its_halves_are_stored() {
    let frames = frames(&MESSAGES);
    let mut memory = Memory { rows_max: 5, ..Memory::new(1) };
    let mut known = lane(&memory);
    let error = now(flush(&mut known, &mut memory, &batch(&frames, 0, 9))).unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    memory.open = None;
    for (from, to) in [(0, 4), (4, 9)] {
        now(flush(&mut known, &mut memory, &batch(&frames, from, to))).unwrap();
    }
    assert_all(&memory, 9);
}

#[test]
fn a_table_that_refuses_everything_makes_no_dead_letter() {
    let frames = frames(&MESSAGES);
    let mut memory = Memory { closed: 0..usize::MAX, ..Memory::new(1) };
    let mut known = lane(&memory);
    let rejection = Rejection { code: "bad".to_owned(), reason: "it says why".to_owned() };
    for to in [1, 2, 9] {
        let error = now(flush(&mut known, &mut memory, &batch(&frames, 0, to))).unwrap_err();
        assert!(matches!(&error, StoreError::Systemic(text) if text.contains("refuses every record")), "{error}");
        memory.open = None;
    }
    let error = now(dead_letter(&mut known, &mut memory, &batch(&frames, 0, 1), &rejection)).unwrap_err();
    assert!(matches!(&error, StoreError::Systemic(text) if text.ends_with("it says why")), "{error}");
    (memory.open, memory.closed) = (None, 0..0);
    assert_all(&memory, 0);
    now(flush(&mut known, &mut memory, &batch(&frames, 0, 9))).unwrap();
    assert_all(&memory, 9);
}

/// Whenever the table begins to refuse everything, and however soon it takes rows again.
#[test]
fn a_table_that_refuses_everything_for_a_while_makes_no_dead_letter_of_a_good_record() {
    let frames = frames(&MESSAGES);
    let rejection = Rejection { code: "bad".to_owned(), reason: "slow".to_owned() };
    for begin in 0..40 {
        for end in begin + 1..=begin + 40 {
            let mut memory = Memory { closed: begin..end, ..Memory::new(1) };
            let mut known = lane(&memory);
            // Until all is stored, as the flusher does: a record that is refused alone is tried once more.
            for to in [3, 4, 9] {
                let batch = batch(&frames, memory.tables.lane.accounted(), to);
                let mut tries = 0;
                loop {
                    let done = match to {
                        4 if tries > 0 => now(dead_letter(&mut known, &mut memory, &batch, &rejection)),
                        _ => now(flush(&mut known, &mut memory, &batch)),
                    };
                    match done {
                        Ok(_) => break,
                        Err(StoreError::Systemic(_) | StoreError::Rejected(_)) => memory.open = None,
                        Err(error) => panic!("closed {begin}..{end}: {error}"),
                    }
                    tries += 1;
                    assert!(tries < 50, "closed {begin}..{end}");
                }
            }
            assert_all(&memory, 9);
        }
    }
}

/// Frame 1 has been stored by another process, frame 3 repeats frame 2, frame 4 has frame 2's key with another body, and
/// of frame 5 another process has stored the first two records: in any division, cut off at any statement.
#[test]
fn repeated_requests_are_accounted_for_and_not_stored() {
    let mut frames =
        frames(&[&["a", "bad 1"], &["b", "bad 2", "c"], &["b", "bad 2", "c"], &["d", "noise"], &["x", "bad", "e"]]);
    let request = |key: u8, body| DedupKey { key: [key; 16], kind: DedupKind::Request { body: Some(body) } };
    let keys = [request(1, 1), request(2, 2), request(2, 2), request(2, 3), request(5, 5)];
    for (frame, key) in frames.iter_mut().zip(keys) {
        frame.dedup_key = Some(key);
    }
    let stored = |key: u8, records, stored| {
        let mut bytes = [key; 24];
        bytes[16..].copy_from_slice(&u64::from(key).to_be_bytes());
        (bytes, KeyRow { key: bytes, lane_id: 9, seq: 77, records, stored })
    };
    for division in 0..1_u32 << 12 {
        let ends: Vec<u64> = (1..=12).filter(|end| division & 1 << (end - 1) != 0).chain([13]).collect();
        for fails_after in (0..60).step_by(if division % 128 == 0 { 1 } else { 17 }) {
            let mut memory = Memory::new(3);
            memory.tables.keys = [stored(1, 2, 2), stored(5, 3, 2)].into();
            let mut known = lane(&memory);
            let mut from = 0;
            for &to in &ends {
                let batch = batch(&frames, from, to);
                memory.fails_after = Some(fails_after);
                let first = now(flush(&mut known, &mut memory, &batch));
                (memory.fails_after, memory.open) = (None, None);
                if first.is_err() {
                    now(flush(&mut known, &mut memory, &batch)).unwrap();
                }
                assert_eq!(known.row, memory.tables.lane);
                from = to;
            }
            let Tables { lane, rows, letters, keys, .. } = &memory.tables;
            assert_eq!((lane.rows, lane.dead_lettered, lane.repeated, lane.inherited), (4, 2, 7, 7), "{ends:?}");
            assert_eq!(rows.values().collect::<Vec<_>>(), ["b", "c", "d", "e"]);
            assert_eq!(letters.len(), 2);
            assert!(keys.len() == 4 && keys.values().all(|row| row.stored == row.records), "{keys:?}");
        }
    }
}
