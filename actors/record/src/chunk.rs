//! A chunk: the records of one request or one read, stored as columns over one text arena.
//!
//! - A chunk is the unit of admission and of acknowledgment, and becomes one journal frame.
//! - The columnar layout makes encoding close to a memcpy, lets a database row be written in one pass, and avoids an
//!   allocation per record.
//! - The arena holds the texts of record `i` next to each other, in the order service, host, message, attributes;
//!   `ends` holds the end offset of each text. So `ends.len() == 4 * len`.

use crate::record::{Record, Severity};

/// Texts per record, in the order of the arena.
const TEXTS: usize = 4;

/// Records of one request or one read, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Chunk {
    /// Time of arrival, in microseconds since the Unix epoch; the same for all records of the chunk.
    received_us: i64,
    ts_us: Vec<i64>,
    severity: Vec<u8>,
    ends: Vec<u32>,
    text: String,
}

/// Why successfully decoded bytes are not a valid chunk.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid chunk: {0}")]
pub struct InvalidChunk(&'static str);

impl Chunk {
    /// Creates an empty chunk that arrived at `received_us`, with capacity for `records` records and `text_bytes` bytes
    /// of text.
    #[must_use]
    pub fn with_capacity(received_us: i64, records: usize, text_bytes: usize) -> Self {
        Self {
            received_us,
            ts_us: Vec::with_capacity(records),
            severity: Vec::with_capacity(records),
            ends: Vec::with_capacity(records * TEXTS),
            text: String::with_capacity(text_bytes),
        }
    }

    /// Appends one record, copying its texts into the arena.
    ///
    /// # Panics
    /// If the arena would exceed 4 GiB; intake limits are far below.
    pub fn push(&mut self, record: Record<'_>) {
        self.ts_us.push(record.ts_us);
        self.severity.push(record.severity.number());
        for text in [record.service, record.host, record.message, record.attributes] {
            self.text.push_str(text);
            let end = u32::try_from(self.text.len()).expect("a chunk's text stays below 4 GiB");
            self.ends.push(end);
        }
    }

    /// Time of arrival, in microseconds since the Unix epoch.
    #[must_use]
    pub fn received_us(&self) -> i64 {
        self.received_us
    }

    /// The times of the records, in order, in microseconds since the Unix epoch.
    #[must_use]
    pub fn times_us(&self) -> &[i64] {
        &self.ts_us
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ts_us.len()
    }

    /// Whether the chunk holds no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ts_us.is_empty()
    }

    /// The event times of all records, in order, in microseconds since the Unix epoch.
    #[must_use]
    pub fn times(&self) -> &[i64] {
        &self.ts_us
    }

    /// Size in memory, in bytes. Every byte limit of the engine is measured in this unit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.ts_us.len() * (8 + 1 + 4 * TEXTS) + self.text.len()
    }

    /// Returns the record at `index`, or `None` if `index >= len()`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Record<'_>> {
        let ends = self.ends.get(index * TEXTS..(index + 1) * TEXTS)?;
        let mut start = match index {
            0 => 0,
            _ => self.ends[index * TEXTS - 1] as usize,
        };
        let mut next = |end: u32| {
            let text = &self.text[start..end as usize];
            start = end as usize;
            text
        };
        Some(Record {
            ts_us: self.ts_us[index],
            severity: Severity::from_number(self.severity[index]).unwrap_or_default(),
            service: next(ends[0]),
            host: next(ends[1]),
            message: next(ends[2]),
            attributes: next(ends[3]),
        })
    }

    /// Iterates over all records, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'_>> + '_ {
        (0..self.len()).map(|index| self.get(index).expect("index is below len"))
    }

    /// Checks the invariants that [`Chunk::get`] relies on. Call it on every chunk that was read from disk.
    ///
    /// # Errors
    /// [`InvalidChunk`] names the first invariant that is violated.
    pub fn validate(&self) -> Result<(), InvalidChunk> {
        if self.severity.len() != self.ts_us.len() || self.ends.len() != self.ts_us.len() * TEXTS {
            return Err(InvalidChunk("columns differ in length"));
        }
        if self.severity.iter().any(|&number| Severity::from_number(number).is_none()) {
            return Err(InvalidChunk("severity above 24"));
        }
        let mut start = 0;
        for &end in &self.ends {
            let end = end as usize;
            if end < start || !self.text.is_char_boundary(end) {
                return Err(InvalidChunk("a text ends before its start, beyond the arena or inside a character"));
            }
            start = end;
        }
        if start != self.text.len() {
            return Err(InvalidChunk("the arena is longer than its texts"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record<'_> {
        Record { ts_us: 7, severity: Severity::INFO, service: "api", host: "", message, attributes: "{\"a\":1}" }
    }

    #[test]
    fn records_are_returned_in_order() {
        let mut chunk = Chunk::with_capacity(1, 2, 64);
        let records = [record("one"), record("zwei ✓"), record("")];
        for record in records {
            chunk.push(record);
        }
        assert_eq!(chunk.iter().collect::<Vec<_>>(), records);
        assert_eq!(chunk.get(3), None);
        assert_eq!(chunk.validate(), Ok(()));
    }

    #[test]
    fn invalid_columns_are_rejected() {
        let mut chunk = Chunk::default();
        chunk.push(record("häh"));
        let mut cut = chunk.clone();
        cut.ends[2] -= 2; // inside the two bytes of ä
        assert!(cut.validate().is_err());
        let mut past = chunk.clone();
        past.ends[3] += 1;
        assert!(past.validate().is_err());
        let mut short = chunk.clone();
        short.severity.clear();
        assert!(short.validate().is_err());
        let mut high = chunk;
        high.severity[0] = 25;
        assert!(high.validate().is_err());
    }
}
