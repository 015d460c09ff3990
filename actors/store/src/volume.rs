//! Counts records per service, minute and severity, as a store does: repeating the last service or minute costs no
//! search.

use std::collections::{BTreeMap, HashMap};

/// Number of records of one minute, by severity number.
pub type Counts = [u32; 25];

/// Counts by minute. Consecutive records mostly share a minute, so the tree is searched only when it changes.
#[derive(Default)]
pub struct Minutes {
    open: Option<(i64, Counts)>,
    closed: BTreeMap<i64, Counts>,
}

impl Minutes {
    /// Counts one record.
    pub fn add(&mut self, minute: i64, severity: u8) {
        if self.open.is_none_or(|(open, _)| open != minute) {
            let counts = self.closed.remove(&minute).unwrap_or_default();
            if let Some((minute, counts)) = self.open.replace((minute, counts)) {
                self.closed.insert(minute, counts);
            }
        }
        if let Some((_, counts)) = &mut self.open {
            counts[usize::from(severity)] += 1;
        }
    }

    /// Returns all counts, by minute.
    pub fn finish(mut self) -> BTreeMap<i64, Counts> {
        self.closed.extend(self.open);
        self.closed
    }
}

/// A value per service. Hashes once per record, unless the record has the same service as the one before.
pub struct PerService<'a, T> {
    indexes: HashMap<&'a str, usize, foldhash::fast::RandomState>,
    last: usize,
    /// Services in order of first appearance.
    pub all: Vec<(&'a str, T)>,
}

impl<T> Default for PerService<'_, T> {
    fn default() -> Self {
        Self { indexes: HashMap::default(), last: usize::MAX, all: Vec::new() }
    }
}

impl<'a, T: Default> PerService<'a, T> {
    /// Returns the entry of `service`, creating it if needed.
    pub fn entry(&mut self, service: &'a str) -> &mut (&'a str, T) {
        if self.all.get(self.last).is_none_or(|&(name, _)| name != service) {
            self.last = *self.indexes.entry(service).or_insert_with(|| {
                self.all.push((service, T::default()));
                self.all.len() - 1
            });
        }
        &mut self.all[self.last]
    }
}
