//! `logweir dead-letters`: lists, replays and purges the records that the database rejected.

use std::io::{self, Write as _};
use std::sync::Arc;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use crate::args::{ConfigArgs, StoreArgs};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Output, Records, count};
use crate::print::escaped;
use crate::store::{block_on, open_store};
use logweir::config::{Unit, quantity};
use logweir_store::replay::{DeadLetterJson, Replayed, replay_all, replay_one};
use logweir_store::{DeadLetter, LogStore, StoreError};

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// List dead letters, latest first, with the database's error and the record
    List(ListArgs),
    /// Insert dead letters into the database again, and remove those that it accepts from the list
    ///
    /// Exits with 1 if the database rejects one again.
    Replay(ReplayArgs),
    /// Delete old dead letters permanently
    Purge(PurgeArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// List at most N dead letters
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Output format; json and ndjson contain the whole record
    #[arg(long, short, value_name = "FORMAT", default_value = "text",
        value_parser = output::among([Output::Text, Output::Json, Output::Ndjson]))]
    output: Output,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["id", "all"]))]
pub(super) struct ReplayArgs {
    /// Replay the dead letter with this ID
    #[arg(long, value_name = "ID")]
    id: Option<i64>,
    /// Replay every dead letter
    #[arg(long)]
    all: bool,
    /// Insert this record instead of the stored one: a JSON object like `record` in `dead-letters list -o json`
    #[arg(long, value_name = "JSON", requires = "id")]
    record: Option<String>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub(super) struct PurgeArgs {
    /// Delete dead letters older than this, such as 7d or 12h
    #[arg(long, value_name = "AGE", value_parser = age_us)]
    older_than: i64,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
    #[command(flatten)]
    store: StoreArgs,
}

impl DeadLettersCommand {
    pub(super) fn config_mut(&mut self) -> &mut ConfigArgs {
        match self {
            Self::List(args) => &mut args.store.config,
            Self::Replay(args) => &mut args.store.config,
            Self::Purge(args) => &mut args.store.config,
        }
    }
}

/// An age must have a unit: `--older-than 7`, in milliseconds, would delete everything.
fn age_us(text: &str) -> Result<i64, String> {
    let millis = quantity(text, Unit::Millis).filter(|_| !text.trim().ends_with(|c: char| c.is_ascii_digit()));
    millis
        .and_then(|millis| i64::try_from(millis).ok()?.checked_mul(1000))
        .ok_or("expected an age with a unit, such as 7d, 12h or 30m".into())
}

pub(super) fn dead_letters(command: &DeadLettersCommand) -> Outcome {
    match command {
        DeadLettersCommand::List(args) => {
            let letters = with_store(&args.store, async |store| store.dead_letters(args.limit).await)?;
            list(&letters, args.output)?;
            Ok(exit::OK.into())
        }
        DeadLettersCommand::Replay(args) => {
            if let Some(record) = &args.record
                && !serde_json::from_str::<serde_json::Value>(record).is_ok_and(|value| value.is_object())
            {
                return Err(Failure::new(exit::USAGE, "invalid --record: expected a JSON object"));
            }
            let Replayed { done, failed, .. } = with_store(&args.store, async |store| match args.id {
                Some(id) => replay_one(store.as_ref(), id, args.record.as_deref()).await,
                None => replay_all(store.as_ref(), usize::MAX).await,
            })?;
            let mut out = io::stdout().lock();
            if args.output == Output::Json {
                let reason = |(id, reason): &(i64, String)| json!({ "id": id.to_string(), "reason": reason });
                let failures: Vec<_> = failed.iter().map(reason).collect();
                output::json(&mut out, &json!({ "replayed": done, "failed": failures }))?;
            } else {
                failed.iter().try_for_each(|(id, reason)| writeln!(out, "{id}: {reason}"))?;
                writeln!(out, "replayed {}, {} failed", count(done, "dead letter"), failed.len())?;
            }
            Ok(if failed.is_empty() { exit::OK } else { exit::FAILED }.into())
        }
        DeadLettersCommand::Purge(args) => {
            let before_us = logweir_engine::clock::wall_us().saturating_sub(args.older_than);
            let purged = with_store(&args.store, async |store| store.purge_dead_letters(before_us).await)?;
            let mut out = io::stdout().lock();
            if args.output == Output::Json {
                output::json(&mut out, &json!({ "purged": purged }))?;
            } else {
                writeln!(out, "purged {}", count(purged, "dead letter"))?;
            }
            Ok(exit::OK.into())
        }
    }
}

/// Queries the configured store.
fn with_store<T>(
    args: &StoreArgs,
    query: impl AsyncFnOnce(Arc<dyn LogStore>) -> Result<T, StoreError>,
) -> Result<T, Failure> {
    let database = args.load()?.config.database;
    block_on(async move { query(open_store(&database)?).await.map_err(Failure::store) })?
}

fn list(letters: &[DeadLetter], format: Output) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if format != Output::Text {
        let mut records = Records::new(out, format, false);
        letters.iter().try_for_each(|letter| records.serialize(&DeadLetterJson::from(letter)))?;
        return records.finish();
    }
    for letter in letters {
        let at =
            Timestamp::from_microsecond(letter.at_us).map_or_else(|_| letter.at_us.to_string(), |at| at.to_string());
        let raw: String = letter.raw.chars().take(200).collect();
        let (raw, reason) = (escaped(&raw), escaped(&letter.reason));
        writeln!(out, "{}  {at}  {} {reason}\n    {raw}", letter.id, letter.sqlstate)?;
    }
    if letters.is_empty() {
        writeln!(out, "no dead letters")?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_needs_a_unit() {
        assert_eq!(age_us("7d"), Ok(7 * 86_400_000_000));
        assert_eq!(age_us("30m"), Ok(1_800_000_000));
        assert!(age_us("7").is_err());
        assert!(age_us("d").is_err());
    }
}
