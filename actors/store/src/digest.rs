//! Which frame a lane's last batch ended with, or in: what tells a frame from another one with its sequence number.

/// Length without the number of records.
const FRAME_BYTES: usize = 16;

/// A frame's checksum, its number of records and its `lane_records`. If only a part of the frame is committed, also the
/// number of its records that are. Empty before a lane's first batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Digest(Vec<u8>);

impl Digest {
    /// A frame that is committed as a whole.
    #[must_use]
    pub fn of_frame(payload_crc: u32, records: usize, lane_records: u64) -> Self {
        let mut bytes = Vec::with_capacity(FRAME_BYTES + 8);
        bytes.extend_from_slice(&payload_crc.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(records).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&lane_records.to_le_bytes());
        Self(bytes)
    }

    /// The same frame, of which only the first `records` records are committed.
    #[must_use]
    pub fn of_part(&self, records: u64) -> Self {
        let mut bytes = self.frame().to_vec();
        bytes.extend_from_slice(&records.to_le_bytes());
        Self(bytes)
    }

    /// As it is in a database.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// As it is in a database.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What identifies the frame, however much of it is committed.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.0.get(..FRAME_BYTES).unwrap_or(&self.0)
    }

    /// Number of records of the frame that are committed, if not all of them are; otherwise 0.
    #[must_use]
    pub fn partial(&self) -> u64 {
        self.number(FRAME_BYTES).unwrap_or(0)
    }

    /// If only a part of the frame is committed: number of the lane's records up to the end of that part.
    #[must_use]
    pub fn part_records(&self) -> Option<u64> {
        let records = u32::from_le_bytes(self.0.get(4..8)?.try_into().ok()?);
        let before = self.number(8)?.checked_sub(records.into())?;
        before.checked_add(self.number(FRAME_BYTES)?)
    }

    fn number(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_says_how_much_of_which_frame_is_committed() {
        let whole = Digest::of_frame(7, 10, 40);
        assert_eq!((whole.as_bytes().len(), whole.partial(), whole.part_records()), (16, 0, None));
        let part = whole.of_part(4);
        assert_eq!((part.as_bytes().len(), part.partial(), part.part_records()), (24, 4, Some(34)));
        assert_eq!((part.frame(), &part.of_part(4)), (whole.as_bytes(), &part));
        assert_ne!(part.frame(), Digest::of_frame(8, 10, 40).frame());
        assert_eq!(Digest::from_bytes(part.as_bytes().to_vec()), part);
    }

    #[test]
    fn whatever_a_database_contains_is_read() {
        for bytes in [vec![], vec![1; 7], vec![255; 16], vec![255; 24], vec![0; 99]] {
            let digest = Digest::from_bytes(bytes);
            let _ = (digest.frame(), digest.partial(), digest.part_records());
        }
        assert_eq!(
            Digest::of_frame(0, 10, 4).of_part(2).part_records(),
            None,
            "no frame has more records than its lane"
        );
    }
}
