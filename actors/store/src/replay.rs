//! Dead letters as JSON, and their replay; shared by the command line and the API.

use std::borrow::Cow;
use std::collections::BTreeSet;

use logweir_record::json::strict_object;
use logweir_record::timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::dead_letter::DeadLetter;
use crate::error::StoreError;
use crate::store::LogStore;

/// Dead letters per query.
const PAGE: u32 = 500;

/// A dead letter with its record, for the API and the command line.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = DeadLetter))]
pub struct DeadLetterJson<'a> {
    /// The ID that the row would have; a string, because it exceeds the precision of a double.
    id: String,
    /// When the database rejected it: RFC 3339, UTC.
    at: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    writer: uuid::Uuid,
    lane: u16,
    seq: String,
    /// Index of the record in its frame, from 0.
    row: u32,
    sqlstate: &'a str,
    /// The database's error message.
    reason: &'a str,
    /// The record; null where the stored text is not a JSON object, which is then in `raw`.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    record: Option<Cow<'a, RawValue>>,
    /// The stored text; only if it is not a JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'a str>,
}

impl<'a> From<&'a DeadLetter> for DeadLetterJson<'a> {
    fn from(letter: &'a DeadLetter) -> Self {
        let record = strict_object(&letter.raw).filter(|_| !letter.raw.trim().is_empty());
        Self {
            id: letter.id.to_string(),
            at: timestamp::text(letter.at_us),
            writer: letter.writer,
            lane: letter.lane,
            seq: letter.seq.to_string(),
            row: letter.row,
            sqlstate: &letter.sqlstate,
            reason: &letter.reason,
            raw: record.is_none().then_some(letter.raw.as_str()),
            record,
        }
    }
}

/// Result of a replay.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Replayed {
    /// Number of records inserted into the table.
    pub done: u64,
    /// Ids that still fail, with the error.
    pub failed: Vec<(i64, String)>,
    /// Whether more dead letters remain that were not tried.
    pub more: bool,
}

/// Replays the dead letter `id`, with `raw` instead of its record if given.
///
/// The store lists the newest first and has no lookup by id, so this reads further back until it is found.
///
/// # Errors
/// The store is unavailable.
pub async fn replay_one(store: &dyn LogStore, id: i64, raw: Option<&str>) -> Result<Replayed, StoreError> {
    let mut limit = PAGE;
    loop {
        let dead_letters = store.dead_letters(limit).await?;
        let last = dead_letters.len() < limit as usize;
        if let Some(mut letter) = dead_letters.into_iter().find(|letter| letter.id == id) {
            if let Some(raw) = raw {
                raw.clone_into(&mut letter.raw);
            }
            return Ok(match store.replay_dead_letter(&letter).await {
                Ok(()) => Replayed { done: 1, ..Replayed::default() },
                Err(error) => Replayed { failed: vec![(id, replay_error(error)?)], ..Replayed::default() },
            });
        }
        if last {
            return Ok(Replayed { failed: vec![(id, "unknown dead letter".into())], ..Replayed::default() });
        }
        limit = limit.saturating_mul(4);
    }
}

/// Replays every dead letter, at most `attempts_max` of them. Each page also covers the letters that failed before, so
/// that they do not hide others.
///
/// # Errors
/// The store is unavailable.
pub async fn replay_all(store: &dyn LogStore, attempts_max: usize) -> Result<Replayed, StoreError> {
    let mut replayed = Replayed::default();
    let (mut seen, mut attempts) = (BTreeSet::new(), 0);
    loop {
        let limit = PAGE.saturating_add(u32::try_from(seen.len()).unwrap_or(u32::MAX));
        let mut dead_letters = store.dead_letters(limit).await?;
        dead_letters.retain(|letter| !seen.contains(&letter.id));
        if dead_letters.is_empty() {
            return Ok(replayed);
        }
        for letter in dead_letters {
            if attempts == attempts_max {
                replayed.more = true;
                return Ok(replayed);
            }
            attempts += 1;
            match store.replay_dead_letter(&letter).await {
                Ok(()) => replayed.done += 1,
                Err(error) => {
                    replayed.failed.push((letter.id, replay_error(error)?));
                    seen.insert(letter.id);
                }
            }
        }
    }
}

/// Returns why a replay failed. An unavailable store is not the dead letter's fault.
fn replay_error(error: StoreError) -> Result<String, StoreError> {
    match error {
        StoreError::Transient(_) => Err(error),
        error => Ok(error.to_string()),
    }
}
