//! A frame: 64 bytes of header, the payload, zeros up to the next multiple of 8.
//!
//! ```text
//!  0 magic u32 | 4 version u8 | 5 kind u8 | 6 codec u8 | 7 flags u8 | 8 lane u16 | 10 reserved u16
//! 12 payload_len u32 | 16 records u32 | 20 payload_crc u32 | 24 seq u64 | 32 durable_upto u64
//! 40 lane_prev_seq u64 | 48 lane_records u64 | 56 reserved u32 | 60 header_crc u32     (little-endian)
//! ```
//!
//! - The header has a CRC-32C of its own, so that a length is verified before memory is allocated for it.
//! - That CRC is seeded with the journal's uuid and the segment's number: a block copied from another journal or
//!   another segment is not a valid frame.
//! - `durable_upto` is the highest sequence number known to be durable when the frame was encoded. It distinguishes a
//!   torn write (not acknowledged) from damage (possibly acknowledged).
//! - Flag 1: the payload starts with a dedup key of 32 bytes, which its length and CRC include.
//! - The bytes are frozen by golden files.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::bit_flip::flip;
use super::dedup_index::{DEDUP_ENTRY_BYTES, DedupEntry, DedupKey};
use super::identity::{RUNS_MAX, known};
use super::types::{LaneId, LaneTail};

/// Largest payload of a frame, in bytes: 16 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// Size of a frame header.
pub(super) const FRAME_HEADER_BYTES: usize = 64;
/// Alignment of frames; a search for the next header steps by it.
pub(super) const FRAME_ALIGN: u64 = 8;

/// First bytes of each frame: a cheap filter for the search.
pub(super) const MAGIC_BYTES: [u8; 4] = *b"LWf1";
const MAGIC: u32 = u32::from_le_bytes(MAGIC_BYTES);
const VERSION: u8 = 1;
const HEADER_CRC_AT: usize = 60;

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A chunk.
    Data = 1,
    /// Opens each segment: the run that writes from here on, and the ends of the lanes.
    Start = 2,
    /// The run ended in order; everything before is durable.
    Seal = 3,
    /// The database has confirmed the run whose id is the payload.
    Confirm = 4,
}

/// Seed of the header CRC: journal and segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(writer: Uuid, segment: u64) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(writer.as_bytes()), &segment.to_le_bytes()))
    }
}

/// A frame header in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: Kind,
    pub(super) codec: u8,
    pub(super) lane: LaneId,
    pub(super) payload_len: u32,
    pub(super) records: u32,
    pub(super) payload_crc: u32,
    pub(super) seq: u64,
    pub(super) durable_upto: u64,
    pub(super) lane_prev_seq: u64,
    pub(super) lane_records: u64,
    /// Whether the payload starts with a [`DedupKey`].
    pub(super) has_dedup_key: bool,
}

/// Bit of the header's flags: the payload starts with a dedup key.
const FLAG_DEDUP_KEY: u8 = 1;

impl FrameHeader {
    /// Builds the header of a frame that belongs to no lane.
    pub(super) fn of_run(kind: Kind, seq: u64, durable_upto: u64, payload: &[u8]) -> Self {
        Self {
            kind,
            codec: 0,
            lane: 0,
            payload_len: u32::try_from(payload.len()).expect("a START payload is far below 4 GiB"),
            records: 0,
            payload_crc: crc32c::crc32c(payload),
            seq,
            durable_upto,
            lane_prev_seq: 0,
            lane_records: 0,
            has_dedup_key: false,
        }
    }

    pub(super) fn encode(&self, seed: Seed) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        bytes[6] = self.codec;
        bytes[7] = if self.has_dedup_key { FLAG_DEDUP_KEY } else { 0 };
        bytes[8..10].copy_from_slice(&self.lane.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.records.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seq.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable_upto.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.lane_prev_seq.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.lane_records.to_le_bytes());
        let crc = crc32c::crc32c_append(seed.0, &bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the header in `bytes` if it belongs to this journal and segment.
    pub(super) fn decode(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes: &[u8; FRAME_HEADER_BYTES] = bytes.get(..FRAME_HEADER_BYTES)?.try_into().ok()?;
        if u32_at(bytes, 0) != MAGIC || header_crc(bytes) != crc32c::crc32c_append(seed.0, &bytes[..HEADER_CRC_AT]) {
            return None;
        }
        let kind = match bytes[5] {
            1 => Kind::Data,
            2 => Kind::Start,
            3 => Kind::Seal,
            4 => Kind::Confirm,
            _ => return None,
        };
        let header = Self {
            kind,
            codec: bytes[6],
            lane: u16::from_le_bytes([bytes[8], bytes[9]]),
            payload_len: u32_at(bytes, 12),
            records: u32_at(bytes, 16),
            payload_crc: u32_at(bytes, 20),
            seq: u64_at(bytes, 24),
            durable_upto: u64_at(bytes, 32),
            lane_prev_seq: u64_at(bytes, 40),
            lane_records: u64_at(bytes, 48),
            has_dedup_key: bytes[7] & FLAG_DEDUP_KEY != 0,
        };
        // The CRC proves that we wrote it; this checks that we could have.
        let sound = bytes[4] == VERSION && header.payload_len as usize <= PAYLOAD_BYTES_MAX && header.seq > 0;
        sound.then_some(header)
    }

    /// Decodes a header with one flipped bit, by trial. The caller must check the payload as well.
    pub(super) fn repair_bit_flip(bytes: &[u8], seed: Seed) -> Option<Self> {
        let mut bytes: [u8; FRAME_HEADER_BYTES] = bytes.get(..FRAME_HEADER_BYTES)?.try_into().ok()?;
        if (u32_at(&bytes, 0) ^ MAGIC).count_ones() > 1 {
            return None;
        }
        (0..bytes.len() * 8).find_map(|bit| {
            flip(&mut bytes, bit);
            let header = Self::decode(&bytes, seed);
            flip(&mut bytes, bit);
            header
        })
    }

    /// Size of the whole frame, including padding.
    pub(super) fn frame_bytes(&self) -> u64 {
        frame_bytes(self.payload_len as usize)
    }
}

/// Size of a frame with a payload of `payload_len`.
pub(super) fn frame_bytes(payload_len: usize) -> u64 {
    ((FRAME_HEADER_BYTES + payload_len) as u64).next_multiple_of(FRAME_ALIGN)
}

/// Appends the whole frame to `out`.
pub(super) fn push_frame(out: &mut Vec<u8>, header: &[u8; FRAME_HEADER_BYTES], payload: &[u8]) {
    out.extend_from_slice(header);
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(FRAME_ALIGN as usize), 0);
}

/// The header's own CRC, which the next segment repeats.
pub(super) fn header_crc(bytes: &[u8; FRAME_HEADER_BYTES]) -> u32 {
    u32_at(bytes, HEADER_CRC_AT)
}

/// Payload of a START frame: state that would be lost when earlier segments are removed.
///
/// ```text
/// writer 16 | run 16 | confirmed run 16 | runs u32 | lanes u32 |
/// run uuids, latest last, 16 each | lane u16, seq u64, records u64 each | entries
/// entry: dedup key 32, seq u64, lane u16 each, to the end
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) writer: Uuid,
    pub(super) run: Uuid,
    pub(super) confirmed: Option<Uuid>,
    pub(super) runs: Vec<Uuid>,
    pub(super) lanes: BTreeMap<LaneId, LaneTail>,
    pub(super) dedup_entries: Vec<DedupEntry>,
}

const START_FIXED_BYTES: usize = 56;
const START_LANE_BYTES: usize = 18;

impl Start {
    pub(super) fn encode(&self) -> Vec<u8> {
        let dedup_bytes = self.dedup_entries.len() * DEDUP_ENTRY_BYTES;
        let mut bytes = Vec::with_capacity(Self::payload_bytes(self.runs.len(), self.lanes.len(), dedup_bytes));
        for uuid in [self.writer, self.run, self.confirmed.unwrap_or_default()] {
            bytes.extend_from_slice(uuid.as_bytes());
        }
        bytes.extend_from_slice(&count(self.runs.len()).to_le_bytes());
        bytes.extend_from_slice(&count(self.lanes.len()).to_le_bytes());
        for run in &self.runs {
            bytes.extend_from_slice(run.as_bytes());
        }
        for (lane, tail) in &self.lanes {
            bytes.extend_from_slice(&lane.to_le_bytes());
            bytes.extend_from_slice(&tail.seq.to_le_bytes());
            bytes.extend_from_slice(&tail.records.to_le_bytes());
        }
        self.dedup_entries.iter().for_each(|dedup_entry| dedup_entry.encode(&mut bytes));
        bytes
    }

    /// Decodes a payload of [`Start::encode`]; `None` for anything else, including trailing bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_at_checked(START_FIXED_BYTES)?;
        let (runs, lanes) = (u32_at(fixed, 48) as usize, u32_at(fixed, 52) as usize);
        if runs > RUNS_MAX || lanes > 1 << 16 {
            return None;
        }
        let dedup_bytes = bytes.len().checked_sub(Self::payload_bytes(runs, lanes, 0))?;
        if !dedup_bytes.is_multiple_of(DEDUP_ENTRY_BYTES) {
            return None;
        }
        let (runs, rest) = rest.split_at(runs * 16);
        let (lanes, dedup_entries) = rest.split_at(lanes * START_LANE_BYTES);
        let uuid = |bytes: &[u8]| Uuid::from_slice(bytes).ok();
        Some(Self {
            writer: uuid(&fixed[..16])?,
            run: uuid(&fixed[16..32])?,
            confirmed: known(uuid(&fixed[32..48])),
            runs: runs.chunks_exact(16).map(uuid).collect::<Option<_>>()?,
            lanes: lanes
                .chunks_exact(START_LANE_BYTES)
                .map(|lane| {
                    let tail = LaneTail { seq: u64_at(lane, 2), records: u64_at(lane, 10) };
                    (u16::from_le_bytes([lane[0], lane[1]]), tail)
                })
                .collect(),
            dedup_entries: dedup_entries
                .chunks_exact(DEDUP_ENTRY_BYTES)
                .map(DedupEntry::decode)
                .collect::<Option<_>>()?,
        })
    }

    /// Size of the payload for a number of runs and lanes and the size of the dedup entries.
    pub(super) fn payload_bytes(runs: usize, lanes: usize, dedup_bytes: usize) -> usize {
        START_FIXED_BYTES + runs * 16 + lanes * START_LANE_BYTES + dedup_bytes
    }
}

/// Finds the writer of segment `number` in its bytes, without its header: a START names the writer, and the CRC of the
/// START's own header proves that it belongs to this segment.
pub(super) fn find_writer(bytes: &[u8], number: u64) -> Option<Uuid> {
    let starts = memchr::memmem::find_iter(bytes, &MAGIC_BYTES).filter(|at| at.is_multiple_of(FRAME_ALIGN as usize));
    starts.filter_map(|at| bytes[at..].split_at_checked(FRAME_HEADER_BYTES)).find_map(|(header, rest)| {
        let (len, crc) = (u32_at(header, 12) as usize, u32_at(header, 20));
        let payload =
            rest.get(..len).filter(|payload| header[5] == Kind::Start as u8 && crc32c::crc32c(payload) == crc)?;
        let Start { writer, .. } = Start::decode(payload)?;
        FrameHeader::decode(header, Seed::new(writer, number)).map(|_| writer)
    })
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("at most 1024 runs and 65536 lanes")
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A data frame read from the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Sequence number.
    pub seq: u64,
    /// Its lane.
    pub lane: LaneId,
    /// Sequence number of the lane's previous frame; 0 if there is none.
    pub lane_prev_seq: u64,
    /// Records of the lane up to and including this frame.
    pub lane_records: u64,
    /// Number of records in the payload.
    pub records: u32,
    /// Codec id of the payload.
    pub codec: u8,
    /// CRC-32C of the payload; verified.
    pub payload_crc: u32,
    /// Key that identifies a repetition of it, if there is one.
    pub dedup_key: Option<DedupKey>,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Converts a frame to its public form.
pub(super) fn frame(header: &FrameHeader, mut payload: Vec<u8>) -> Frame {
    let dedup_key = DedupKey::decode(&payload).filter(|_| header.has_dedup_key);
    if header.has_dedup_key {
        payload.drain(..DedupKey::BYTES.min(payload.len()));
    }
    Frame {
        seq: header.seq,
        lane: header.lane,
        lane_prev_seq: header.lane_prev_seq,
        lane_records: header.lane_records,
        records: header.records,
        codec: header.codec,
        payload_crc: header.payload_crc,
        dedup_key,
        payload,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::journal::dedup_index::DedupKind;

    fn header() -> FrameHeader {
        FrameHeader {
            kind: Kind::Data,
            codec: 1,
            lane: 7,
            payload_len: 3,
            records: 2,
            payload_crc: crc32c::crc32c(b"abc"),
            seq: 9,
            durable_upto: 8,
            lane_prev_seq: 4,
            lane_records: 11,
            has_dedup_key: false,
        }
    }

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_header_survives_the_round_trip_in_its_own_segment_only() {
        let seed = Seed::new(Uuid::from_u128(1), 5);
        let bytes = header().encode(seed);
        assert_eq!(FrameHeader::decode(&bytes, seed), Some(header()));
        let keyed = FrameHeader { has_dedup_key: true, ..header() };
        assert_eq!(FrameHeader::decode(&keyed.encode(seed), seed), Some(keyed));
        assert_eq!(FrameHeader::decode(&bytes, Seed::new(Uuid::from_u128(1), 6)), None);
        assert_eq!(FrameHeader::decode(&bytes, Seed::new(Uuid::from_u128(2), 5)), None);
        assert_eq!(FrameHeader::decode(&bytes[..63], seed), None);
    }

    #[test]
    fn each_flipped_bit_of_a_header_is_detected_and_repaired() {
        let seed = Seed::new(Uuid::from_u128(1), 5);
        let bytes = header().encode(seed);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&flipped, seed), None, "bit {bit}");
            assert_eq!(FrameHeader::repair_bit_flip(&flipped, seed), Some(header()), "bit {bit}");
        }
    }

    #[test]
    fn a_length_above_the_limit_is_rejected_even_with_a_valid_crc() {
        let seed = Seed::new(Uuid::from_u128(1), 5);
        let huge = FrameHeader { payload_len: u32::try_from(PAYLOAD_BYTES_MAX).unwrap() + 1, ..header() };
        assert_eq!(FrameHeader::decode(&huge.encode(seed), seed), None);
    }

    #[test]
    fn a_start_survives_the_round_trip_to_the_last_byte() {
        let start = Start {
            writer: Uuid::from_u128(4),
            run: Uuid::from_u128(3),
            confirmed: Some(Uuid::from_u128(2)),
            runs: vec![Uuid::from_u128(1), Uuid::from_u128(2)],
            lanes: BTreeMap::from([(0, LaneTail { seq: 5, records: 50 }), (9, LaneTail { seq: 6, records: 1 })]),
            dedup_entries: vec![DedupEntry {
                dedup_key: DedupKey { key: [7; 16], kind: DedupKind::Source { position: 9 } },
                lane: 9,
                seq: 6,
            }],
        };
        let mut bytes = start.encode();
        assert_eq!(Start::decode(&bytes), Some(start.clone()));
        let without = bytes.len() - DEDUP_ENTRY_BYTES;
        assert_eq!(Start::decode(&bytes[..without]), Some(Start { dedup_entries: vec![], ..start }));
        for end in (0..bytes.len()).filter(|&end| end != without) {
            assert_eq!(Start::decode(&bytes[..end]), None);
        }
        bytes.push(0);
        assert_eq!(Start::decode(&bytes), None);
        assert_eq!(Start::decode(&[0xff; 64]), None);
    }

    #[test]
    fn a_start_names_the_writer_of_its_own_segment_only() {
        let writer = Uuid::from_u128(4);
        let start = Start { writer, ..Start::default() }.encode();
        let mut bytes = vec![0xee; 168];
        push_frame(&mut bytes, &header().encode(Seed::new(writer, 5)), b"abc");
        push_frame(&mut bytes, &FrameHeader::of_run(Kind::Start, 9, 8, &start).encode(Seed::new(writer, 5)), &start);
        assert_eq!(find_writer(&bytes, 5), Some(writer));
        assert_eq!(find_writer(&bytes, 6), None);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(find_writer(&bytes, 5), None);
        assert_eq!(find_writer(&bytes[..100], 5), None);
    }

    #[test]
    fn each_kind_of_frame_matches_its_golden_file() {
        let seed = Seed::new(Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff), 5);
        let start = Start {
            writer: Uuid::from_u128(4),
            run: Uuid::from_u128(3),
            confirmed: Some(Uuid::from_u128(2)),
            runs: vec![Uuid::from_u128(1), Uuid::from_u128(2)],
            lanes: BTreeMap::from([(0, LaneTail { seq: 5, records: 50 }), (9, LaneTail { seq: 6, records: 1 })]),
            dedup_entries: vec![],
        };
        let frames = [
            (header(), b"abc".to_vec(), include_str!("../../tests/golden/frame-data.hex")),
            (
                FrameHeader::of_run(Kind::Start, 1 << 21, 9, &start.encode()),
                start.encode(),
                include_str!("../../tests/golden/frame-start.hex"),
            ),
            (FrameHeader::of_run(Kind::Seal, 77, 76, &[]), vec![], include_str!("../../tests/golden/frame-seal.hex")),
            (
                FrameHeader::of_run(Kind::Confirm, 78, 77, start.run.as_bytes()),
                start.run.as_bytes().to_vec(),
                include_str!("../../tests/golden/frame-confirm.hex"),
            ),
        ];
        for (header, payload, golden) in frames {
            let mut bytes = Vec::new();
            push_frame(&mut bytes, &header.encode(seed), &payload);
            assert_eq!(hex(&bytes), golden.trim_end(), "{:?}", header.kind);
        }
    }

    pub(in crate::journal) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
