//! Histograms that were counted record by record, kept for whoever asks for the same once more: a page that is reloaded, a
//! link that is shared, a dashboard.
//!
//! A range is never closed: a record may come late. So a count is kept together with what the minute counters said of its
//! range, and is good as long as they still say it: they move in the same transaction as the records. The counters are read
//! *before* the records; what comes in between makes a count that is never used, not one that is wrong.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::query::hits::{By, Steps};
use crate::store::read::{Count, Volume};

/// Histograms that are kept.
const KEPT_MAX: usize = 32;

/// Bars of a histogram that is kept.
const COUNTS_MAX: usize = 5_000;

/// The most bytes that they all take.
pub const BYTES_MAX: usize = KEPT_MAX * COUNTS_MAX * 96;

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The filter, as it prints itself.
    pub filter: String,
    /// The bars.
    pub steps: Steps,
    /// What makes a series.
    pub by: By,
}

/// The histograms, the one used last at the back.
#[derive(Default)]
pub struct ResultCache(Mutex<VecDeque<Answered>>);

struct Answered {
    question: Question,
    volume: Volume,
    counts: Arc<Vec<Count>>,
}

impl ResultCache {
    /// The counts that answer `question`, if the counters of its range still say `volume`.
    pub fn get(&self, question: &Question, volume: Volume) -> Option<Arc<Vec<Count>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|answered| answered.question == *question)?;
        let answered = all.remove(at).filter(|answered| answered.volume == volume)?;
        let counts = Arc::clone(&answered.counts);
        all.push_back(answered);
        Some(counts)
    }

    /// Keeps `counts`, unless they are too many.
    pub fn put(&self, question: Question, volume: Volume, counts: Arc<Vec<Count>>) {
        if counts.len() > COUNTS_MAX {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|answered| answered.question != question);
        all.push_back(Answered { question, volume, counts });
        while all.len() > KEPT_MAX {
            all.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::page::Range;

    fn question(filter: &str) -> Question {
        let steps = Steps { range: Range { start_us: 0, end_us: 60 }, step_us: 60 };
        Question { filter: filter.to_owned(), steps, by: By::Severity }
    }

    const THEN: Volume = Volume { records: 7, counters: 2 };

    #[test]
    fn a_count_is_good_until_a_record_comes_or_goes() {
        let kept = ResultCache::default();
        let counts = Arc::new(vec![(0, 9, String::new(), 7)]);
        kept.put(question("a"), THEN, Arc::clone(&counts));
        assert_eq!(kept.get(&question("a"), THEN), Some(counts));
        assert_eq!(kept.get(&question("b"), THEN), None);
        assert_eq!(kept.get(&question("a"), Volume { records: 8, ..THEN }), None);
        assert_eq!(kept.get(&question("a"), THEN), None, "what was outdated once is gone");
    }

    #[test]
    fn few_are_kept_those_used_last_and_none_that_is_large() {
        let kept = ResultCache::default();
        let put = |name: &str, len| kept.put(question(name), THEN, Arc::new(vec![(0, 9, String::new(), 1); len]));
        put("large", COUNTS_MAX + 1);
        put("used", 1);
        for nth in 1..=KEPT_MAX {
            put(&nth.to_string(), 1);
            assert!(nth == KEPT_MAX || kept.get(&question("used"), THEN).is_some());
        }
        assert_eq!(kept.get(&question("large"), THEN), None);
        assert_eq!(kept.get(&question("1"), THEN), None, "used longest ago");
        assert!(kept.get(&question("used"), THEN).is_some());
    }
}
