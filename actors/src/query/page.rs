//! Pages of records, and the place between two records where one ends.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use logweir_engine::record::{Record, Severity};

/// Times from `start_us` up to, not including, `end_us`, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first moment.
    pub start_us: i64,
    /// The moment behind the last.
    pub end_us: i64,
}

/// Which way records are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the newest to the oldest.
    #[default]
    Backward,
    /// From the oldest to the newest.
    Forward,
}

/// A record's place among all: by time, and among equals by id. No two records have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Its time, in microseconds since 1970.
    pub ts_us: i64,
    /// Its id.
    pub id: i64,
}

/// A record as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `lane_id << 44 | ordinal`.
    pub id: i64,
    /// Event time in microseconds since 1970.
    pub ts_us: i64,
    /// How bad it is.
    pub severity: Severity,
    /// The program that wrote it.
    pub service: String,
    /// The machine it came from.
    pub host: String,
    /// What it says.
    pub message: String,
    /// The text of one JSON object, or empty.
    pub attributes: String,
}

/// The first byte of a cursor: what it is made of.
const VERSION: u8 = 1;

impl Position {
    /// As a cursor: opaque, and good for as long as the records are there.
    #[must_use]
    pub fn cursor(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.ts_us.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor.
    #[must_use]
    pub fn from_cursor(cursor: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        let (ts_us, id) = rest.split_at_checked(8)?;
        Some(Self { ts_us: i64::from_be_bytes(ts_us.try_into().ok()?), id: i64::from_be_bytes(id.try_into().ok()?) })
    }
}

impl Found {
    /// A copy of `record`.
    #[must_use]
    pub fn of(id: i64, record: &Record<'_>) -> Self {
        Self {
            id,
            ts_us: record.ts_us,
            severity: record.severity,
            service: record.service.to_owned(),
            host: record.host.to_owned(),
            message: record.message.to_owned(),
            attributes: record.attributes.to_owned(),
        }
    }

    /// The record itself.
    #[must_use]
    pub fn record(&self) -> Record<'_> {
        Record {
            ts_us: self.ts_us,
            severity: self.severity,
            service: &self.service,
            host: &self.host,
            message: &self.message,
            attributes: &self.attributes,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { ts_us: self.ts_us, id: self.id }
    }

    /// What it weighs in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.service.len() + self.host.len() + self.message.len() + self.attributes.len()
    }
}

impl Range {
    /// Whether `ts_us` lies in it.
    #[must_use]
    pub fn holds(&self, ts_us: i64) -> bool {
        (self.start_us..self.end_us).contains(&ts_us)
    }
}

impl Direction {
    /// Whether `position` comes after `after` this way.
    #[must_use]
    pub fn is_behind(self, position: Position, after: Position) -> bool {
        match self {
            Self::Backward => position < after,
            Self::Forward => position > after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back() {
        for position in [Position { ts_us: -5, id: 1 }, Position { ts_us: i64::MAX, id: i64::MIN }] {
            assert_eq!(Position::from_cursor(&position.cursor()), Some(position));
        }
        for bad in ["", "x", "AQ", &"A".repeat(23), &format!("{}A", Position { ts_us: 0, id: 0 }.cursor())] {
            assert_eq!(Position::from_cursor(bad), None, "{bad}");
        }
    }
}
