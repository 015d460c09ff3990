//! Which journal and which run wrote a segment, and the last run that the database has confirmed.
//!
//! ```text
//! 0 writer 16 | 16 run 16 | 32 run before 16 | 48 confirmed run 16 | 64 reserved u32 | 68 CRC-32C of bytes 0..68
//! ```
//!
//! - The database accepts a journal only if it knows the run that the database knows. So an identity stands in every
//!   segment header, with a CRC of its own, and its parts again in every START: one that is damaged is not missed.
//! - A run that is started and never reaches the database leaves its id as well. Of those only the latest are kept, but
//!   the confirmed run never leaves the list, and neither does the one after it: a copy that forks is named after that.

use uuid::Uuid;

use super::bit_flip::flip;

/// Size of an encoded identity; a multiple of the frame alignment.
pub(super) const IDENTITY_BYTES: usize = 72;
/// Maximum number of runs in a START frame.
pub(super) const RUNS_MAX: usize = 1024;
const CRC_AT: usize = 68;

/// The identity of a journal and of the run that writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) writer: Uuid,
    pub(super) run: Uuid,
    pub(super) run_before: Option<Uuid>,
    /// The last run that the database is known to have accepted.
    pub(super) confirmed: Option<Uuid>,
}

impl Identity {
    pub(super) fn encode(&self) -> [u8; IDENTITY_BYTES] {
        let mut bytes = [0; IDENTITY_BYTES];
        bytes[0..16].copy_from_slice(self.writer.as_bytes());
        bytes[16..32].copy_from_slice(self.run.as_bytes());
        bytes[32..48].copy_from_slice(self.run_before.unwrap_or_default().as_bytes());
        bytes[48..64].copy_from_slice(self.confirmed.unwrap_or_default().as_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; IDENTITY_BYTES]) -> Option<Self> {
        let uuid = |at: usize| Uuid::from_slice(&bytes[at..at + 16]).ok();
        let (writer, run) = (uuid(0)?, uuid(16)?);
        let sound = bytes[CRC_AT..] == crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes();
        sound.then(|| Self { writer, run, run_before: known(uuid(32)), confirmed: known(uuid(48)) })
    }

    /// Decodes an identity with one flipped bit, by trial: the bit may be one of its CRC.
    pub(super) fn repair_bit_flip(bytes: &[u8; IDENTITY_BYTES]) -> Option<Self> {
        (0..bytes.len() * 8).find_map(|bit| {
            let mut flipped = *bytes;
            flip(&mut flipped, bit);
            Self::decode(&flipped)
        })
    }
}

/// Nil stands for none.
pub(super) fn known(run: Option<Uuid>) -> Option<Uuid> {
    run.filter(|run| !run.is_nil())
}

/// The runs of a journal, as a scan of its segments finds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// Latest last.
    list: Vec<Uuid>,
    confirmed: Option<Uuid>,
}

impl Runs {
    /// The segment header of a later run, or of the same one.
    pub(super) fn add(&mut self, identity: &Identity) {
        for run in identity.run_before.into_iter().chain([identity.run]) {
            if !self.list.contains(&run) {
                self.list.push(run);
            }
        }
        self.confirm(identity.confirmed);
    }

    /// A START, which lists all runs.
    pub(super) fn replace(&mut self, before: &[Uuid], run: Uuid, confirmed: Option<Uuid>) {
        self.list = [before, &[run]].concat();
        self.confirm(confirmed.or(self.confirmed));
    }

    /// The database has confirmed `run`; `None` changes nothing.
    pub(super) fn confirm(&mut self, run: Option<Uuid>) {
        let Some(run) = run else { return };
        self.confirmed = Some(run);
        if !self.list.contains(&run) {
            // It is older than all that are listed.
            self.list.insert(0, run);
        }
    }

    pub(super) fn confirmed(&self) -> Option<Uuid> {
        self.confirmed
    }

    /// At most `count_max` runs, which is at least two; the latest, and those that must not be forgotten.
    pub(super) fn limited(mut self, count_max: usize) -> Vec<Uuid> {
        let excess = self.list.len().saturating_sub(count_max);
        let confirmed_at = self.list.iter().position(|run| Some(*run) == self.confirmed);
        let older = confirmed_at.unwrap_or(excess).min(excess);
        self.list.drain(..older);
        if older == excess {
            return self.list;
        }
        // The confirmed run is now the oldest.
        self.list.drain(2..2 + excess - older);
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn runs(numbers: impl IntoIterator<Item = u128>) -> Vec<Uuid> {
        numbers.into_iter().map(run).collect()
    }

    fn identity(n: u128, before: u128, confirmed: u128) -> Identity {
        Identity {
            writer: run(99),
            run: run(n),
            run_before: known(Some(run(before))),
            confirmed: known(Some(run(confirmed))),
        }
    }

    #[test]
    fn each_flipped_bit_of_an_identity_is_detected_and_repaired() {
        for identity in [identity(3, 2, 1), identity(1, 0, 0)] {
            let bytes = identity.encode();
            assert_eq!(Identity::decode(&bytes), Some(identity));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes;
                flip(&mut flipped, bit);
                assert_eq!(Identity::decode(&flipped), None, "bit {bit}");
                assert_eq!(Identity::repair_bit_flip(&flipped), Some(identity), "bit {bit}");
            }
        }
        assert_eq!(Identity::repair_bit_flip(&[0; IDENTITY_BYTES]), None);
        assert_eq!(Identity::repair_bit_flip(&[0xff; IDENTITY_BYTES]), None);
    }

    #[test]
    fn a_start_that_is_missing_is_replaced_by_the_segment_headers() {
        let mut found = Runs::default();
        found.replace(&runs([1, 2]), run(3), Some(run(2)));
        // Run 5's START cannot be read.
        found.add(&identity(5, 4, 4));
        assert_eq!(found.clone().limited(10), runs([1, 2, 3, 4, 5]));
        assert_eq!(found.confirmed(), Some(run(4)));
        let mut alone = Runs::default();
        alone.add(&identity(5, 4, 2));
        alone.add(&identity(5, 4, 2));
        assert_eq!(alone.limited(10), runs([2, 4, 5]));
    }

    #[test]
    fn runs_that_never_reached_the_database_never_displace_the_confirmed_one() {
        let mut found = Runs::default();
        for n in 1..5000 {
            let before = found.clone().limited(10);
            let confirmed = found.confirmed();
            found.replace(&before, run(n), confirmed);
            if n == 20 {
                found.confirm(Some(run(20)));
            }
        }
        let kept = found.clone().limited(10);
        assert_eq!(kept, runs([20, 21, 4992, 4993, 4994, 4995, 4996, 4997, 4998, 4999]));
        assert_eq!(found.limited(10_000).len(), 11);
    }

    #[test]
    fn without_a_confirmed_run_the_latest_are_kept() {
        let mut found = Runs::default();
        found.replace(&runs(1..6), run(6), None);
        assert_eq!(found.clone().limited(4), runs([3, 4, 5, 6]));
        assert_eq!(found.limited(6), runs(1..7));
    }
}
