//! Pages of records, and the positions between records where they end.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use logweir_record::json::RecordJson;
use logweir_record::record::{Record, Severity};

/// A time range from `start_us`, inclusive, to `end_us`, exclusive, in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Start, inclusive.
    pub start_us: i64,
    /// End, exclusive.
    pub end_us: i64,
}

/// The order in which records are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the latest to the oldest.
    #[default]
    Backward,
    /// From the oldest to the latest.
    Forward,
}

/// A record's unique position: by time, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Event time in microseconds since the Unix epoch.
    pub ts_us: i64,
    /// Record id.
    pub id: i64,
}

/// A record in a query result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `lane_id << 44 | ordinal`.
    pub id: i64,
    /// Event time in microseconds since the Unix epoch.
    pub ts_us: i64,
    /// Severity.
    pub severity: Severity,
    /// The program that logged the record.
    pub service: String,
    /// The host that it was logged on.
    pub host: String,
    /// The log message.
    pub message: String,
    /// The text of one JSON object, or empty.
    pub attributes: String,
}

/// The first byte of a cursor: its version.
const VERSION: u8 = 1;

impl Position {
    /// Encodes the position as an opaque cursor, valid for as long as the records exist.
    #[must_use]
    pub fn cursor(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.ts_us.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes a cursor.
    #[must_use]
    pub fn from_cursor(cursor: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        let (ts_us, id) = rest.split_at_checked(8)?;
        Some(Self { ts_us: i64::from_be_bytes(ts_us.try_into().ok()?), id: i64::from_be_bytes(id.try_into().ok()?) })
    }
}

impl Found {
    /// Copies `record`.
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

    /// Borrows the record.
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

    /// The record as JSON.
    #[must_use]
    pub fn json(&self) -> RecordJson<'_> {
        RecordJson::stored(self.record())
    }

    /// The record's position.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { ts_us: self.ts_us, id: self.id }
    }

    /// Size in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.service.len() + self.host.len() + self.message.len() + self.attributes.len()
    }
}

impl Range {
    /// Whether `ts_us` is in the range.
    #[must_use]
    pub fn holds(&self, ts_us: i64) -> bool {
        (self.start_us..self.end_us).contains(&ts_us)
    }
}

impl Direction {
    /// Whether `position` comes after `after` in this direction.
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
    fn a_cursor_is_decoded_to_its_position() {
        for position in [Position { ts_us: -5, id: 1 }, Position { ts_us: i64::MAX, id: i64::MIN }] {
            assert_eq!(Position::from_cursor(&position.cursor()), Some(position));
        }
        for bad in ["", "x", "AQ", &"A".repeat(23), &format!("{}A", Position { ts_us: 0, id: 0 }.cursor())] {
            assert_eq!(Position::from_cursor(bad), None, "{bad}");
        }
    }
}
