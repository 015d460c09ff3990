//! Caches histograms that were counted record by record: for a page that is reloaded, a shared link, a dashboard.
//!
//! No range is ever final, because records may arrive late. A count is therefore cached together with the totals of the
//! per-minute counters of its range, and is valid as long as these are unchanged: they change in the same transaction
//! as the records. The counters are read *before* the records; a record that arrives in between makes the cached count
//! unused, never wrong.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use logweir_query::hits::{By, Steps};
use logweir_store::read::{Count, Volume};

/// Maximum number of cached histograms.
const ENTRIES_MAX: usize = 32;

/// Maximum number of counts in a cached histogram.
const COUNTS_MAX: usize = 5_000;

/// Maximum total size in bytes.
pub const BYTES_MAX: usize = ENTRIES_MAX * COUNTS_MAX * 96;

/// The key of a cached histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramKey {
    /// The filter, in its debug format.
    pub filter: String,
    /// The bars.
    pub steps: Steps,
    /// What the series are broken down by.
    pub by: By,
}

/// Cached histograms, least recently used first.
#[derive(Default)]
pub struct ResultCache(Mutex<VecDeque<Entry>>);

struct Entry {
    key: HistogramKey,
    volume: Volume,
    counts: Arc<Vec<Count>>,
}

impl ResultCache {
    /// Returns the counts for `key` if the counters of its range are still `volume`.
    pub fn get(&self, key: &HistogramKey, volume: Volume) -> Option<Arc<Vec<Count>>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|entry| entry.key == *key)?;
        let entry = entries.remove(at).filter(|entry| entry.volume == volume)?;
        let counts = Arc::clone(&entry.counts);
        entries.push_back(entry);
        Some(counts)
    }

    /// Caches `counts`, unless there are too many.
    pub fn put(&self, key: HistogramKey, volume: Volume, counts: Arc<Vec<Count>>) {
        if counts.len() > COUNTS_MAX {
            return;
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.key != key);
        entries.push_back(Entry { key, volume, counts });
        while entries.len() > ENTRIES_MAX {
            entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_query::page::Range;

    fn key(filter: &str) -> HistogramKey {
        let steps = Steps { range: Range { start_us: 0, end_us: 60 }, step_us: 60 };
        HistogramKey { filter: filter.to_owned(), steps, by: By::Severity }
    }

    const VOLUME: Volume = Volume { records: 7, counters: 2 };

    #[test]
    fn a_count_is_valid_until_a_record_is_added_or_removed() {
        let cache = ResultCache::default();
        let counts = Arc::new(vec![(0, 9, String::new(), 7)]);
        cache.put(key("a"), VOLUME, Arc::clone(&counts));
        assert_eq!(cache.get(&key("a"), VOLUME), Some(counts));
        assert_eq!(cache.get(&key("b"), VOLUME), None);
        assert_eq!(cache.get(&key("a"), Volume { records: 8, ..VOLUME }), None);
        assert_eq!(cache.get(&key("a"), VOLUME), None, "an outdated count is dropped");
    }

    #[test]
    fn few_small_and_recently_used_histograms_are_cached() {
        let cache = ResultCache::default();
        let put = |name: &str, len| cache.put(key(name), VOLUME, Arc::new(vec![(0, 9, String::new(), 1); len]));
        put("large", COUNTS_MAX + 1);
        put("used", 1);
        for nth in 1..=ENTRIES_MAX {
            put(&nth.to_string(), 1);
            assert!(nth == ENTRIES_MAX || cache.get(&key("used"), VOLUME).is_some());
        }
        assert_eq!(cache.get(&key("large"), VOLUME), None);
        assert_eq!(cache.get(&key("1"), VOLUME), None, "least recently used");
        assert!(cache.get(&key("used"), VOLUME).is_some());
    }
}
