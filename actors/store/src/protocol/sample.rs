//! A record that a table accepts, to tell a bad record from a table that refuses every record.

use std::sync::{Arc, Mutex, PoisonError};

use logweir_record::record::{Record, Severity};

/// Longer records are not kept.
const BYTES_MAX: usize = 64 << 10;

/// A copy of a record; empty at first. Its buffer is reused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    ts_us: i64,
    severity: Option<Severity>,
    /// Service, host, message and attributes, one after another.
    text: String,
    /// Where service, host and message end in it.
    ends: [usize; 3],
}

impl Sample {
    /// A record that only a table that refuses (nearly) everything refuses.
    pub(crate) fn synthetic(ts_us: i64) -> Self {
        Self::of(&Record {
            ts_us,
            severity: Severity::INFO,
            service: "logweir",
            host: "logweir",
            message: "logweir tries whether the table accepts a record",
            attributes: r#"{"logweir":"trial"}"#,
        })
    }

    pub(crate) fn of(record: &Record<'_>) -> Self {
        let mut sample = Self::default();
        sample.keep(record);
        sample
    }

    /// Keeps a copy of `record` instead, unless it is too long.
    pub(crate) fn keep(&mut self, record: &Record<'_>) {
        let parts = [record.service, record.host, record.message, record.attributes];
        if parts.iter().map(|part| part.len()).sum::<usize>() > BYTES_MAX {
            return;
        }
        self.text.clear();
        for (part, text) in parts.into_iter().enumerate() {
            self.text.push_str(text);
            if let Some(end) = self.ends.get_mut(part) {
                *end = self.text.len();
            }
        }
        (self.ts_us, self.severity) = (record.ts_us, Some(record.severity));
    }

    /// The record, if there is one.
    pub(crate) fn record(&self) -> Option<Record<'_>> {
        let [service, host, message] = self.ends;
        Some(Record {
            ts_us: self.ts_us,
            severity: self.severity?,
            service: &self.text[..service],
            host: &self.text[service..host],
            message: &self.text[host..message],
            attributes: &self.text[message..],
        })
    }
}

/// The last record that a table took, on any lane. It outlives a lane's connection, since after each error there is a new
/// one.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastTaken(Arc<Mutex<Sample>>);

impl LastTaken {
    pub(crate) fn keep(&self, record: &Record<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keep(record);
    }

    pub(crate) fn get(&self) -> Sample {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_of_a_usual_length_is_kept() {
        let mut sample = Sample::default();
        assert_eq!(sample.record(), None);
        let record = |message| Record {
            ts_us: 7,
            severity: Severity::WARN,
            service: "sä",
            host: "",
            message,
            attributes: r#"{"a":1}"#,
        };
        sample.keep(&record("long"));
        sample.keep(&record("m"));
        let long = "x".repeat(BYTES_MAX);
        sample.keep(&record(&long));
        assert_eq!(sample.record(), Some(record("m")));
    }
}
