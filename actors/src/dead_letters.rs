//! Dead letters on their way back into the table: what the command line and the API share.

use std::collections::BTreeSet;

use crate::store::{LogStore, StoreError};

/// How many letters are asked for at once.
const PAGE: u32 = 500;

/// What became of them.
#[derive(Debug, Default)]
pub struct Replayed {
    /// So many are in the table now.
    pub done: u64,
    /// These are not, and why.
    pub failed: Vec<(i64, String)>,
    /// There are more that were not tried.
    pub more: bool,
}

/// Tries the letter `id` again, with `raw` in the place of its record where it is given.
///
/// The store lists newest first and cannot be asked for one: look further back until it is there or there is no more.
///
/// # Errors
/// The store cannot be reached.
pub async fn replay_one(store: &dyn LogStore, id: i64, raw: Option<&str>) -> Result<Replayed, StoreError> {
    let mut limit = PAGE;
    loop {
        let letters = store.dead_letters(limit).await?;
        let last = letters.len() < limit as usize;
        if let Some(mut letter) = letters.into_iter().find(|letter| letter.id == id) {
            if let Some(raw) = raw {
                raw.clone_into(&mut letter.raw);
            }
            return Ok(match store.replay_dead_letter(&letter).await {
                Ok(()) => Replayed { done: 1, ..Replayed::default() },
                Err(error) => Replayed { failed: vec![(id, still_dead(error)?)], ..Replayed::default() },
            });
        }
        if last {
            return Ok(Replayed { failed: vec![(id, "there is no such dead letter".into())], ..Replayed::default() });
        }
        limit = limit.saturating_mul(4);
    }
}

/// Tries every letter again, at most `tries_max` of them. Each page is asked for behind those that stay dead, so that they
/// hide none.
///
/// # Errors
/// The store cannot be reached.
pub async fn replay_all(store: &dyn LogStore, tries_max: usize) -> Result<Replayed, StoreError> {
    let mut replayed = Replayed::default();
    let (mut seen, mut tries) = (BTreeSet::new(), 0);
    loop {
        let limit = PAGE.saturating_add(u32::try_from(seen.len()).unwrap_or(u32::MAX));
        let mut letters = store.dead_letters(limit).await?;
        letters.retain(|letter| !seen.contains(&letter.id));
        if letters.is_empty() {
            return Ok(replayed);
        }
        for letter in letters {
            if tries == tries_max {
                replayed.more = true;
                return Ok(replayed);
            }
            tries += 1;
            match store.replay_dead_letter(&letter).await {
                Ok(()) => replayed.done += 1,
                Err(error) => {
                    replayed.failed.push((letter.id, still_dead(error)?));
                    seen.insert(letter.id);
                }
            }
        }
    }
}

/// What a letter's own replay failed with; an unreachable store is not the letter's fault.
fn still_dead(error: StoreError) -> Result<String, StoreError> {
    match error {
        StoreError::Transient(_) => Err(error),
        error => Ok(error.to_string()),
    }
}
