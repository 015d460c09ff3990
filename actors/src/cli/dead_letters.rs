//! `logweir dead-letters`: the records that the database would not take, to look at, to try again, to let go.

use std::io::{self, Write as _};
use std::sync::Arc;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{ConfigArgs, Failure, Outcome, block_on, exit, open_store};
use crate::config::keys::Unit;
use crate::config::value::quantity;
use crate::dead_letters::{Replayed, replay_all, replay_one};
use crate::store::{DeadLetter, LogStore, StoreError};

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// Newest first.
    List(ListArgs),
    /// Try to insert them again; those that go in are dead letters no longer.
    Replay(ReplayArgs),
    /// Remove old ones for good.
    Purge(PurgeArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// One JSON object per line, with the whole record
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["id", "all"]))]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// This one
    #[arg(long)]
    id: Option<i64>,
    /// Every one
    #[arg(long)]
    all: bool,
    /// The record to insert in its place, mended: one JSON object as `list --json` shows it in `raw`
    #[arg(long, value_name = "JSON", requires = "id")]
    raw: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct PurgeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Those older than this, such as 7d or 12h
    #[arg(long, value_name = "AGE", value_parser = age_us)]
    older_than: i64,
}

/// An age must have a unit: `--older-than 7` in milliseconds would remove everything.
fn age_us(text: &str) -> Result<i64, String> {
    let millis = quantity(text, Unit::Millis).filter(|_| !text.trim().ends_with(|c: char| c.is_ascii_digit()));
    millis
        .and_then(|millis| i64::try_from(millis).ok()?.checked_mul(1000))
        .ok_or("write an age such as 7d, 12h or 30m".into())
}

pub(super) fn dead_letters(command: &DeadLettersCommand) -> Outcome {
    match command {
        DeadLettersCommand::List(args) => {
            let letters = with_store(&args.config, async |store| store.dead_letters(args.limit).await)?;
            list(&letters, args.json)?;
            Ok(exit::OK.into())
        }
        DeadLettersCommand::Replay(args) => {
            if let Some(raw) = &args.raw
                && !serde_json::from_str::<serde_json::Value>(raw).is_ok_and(|value| value.is_object())
            {
                return Err(Failure::told(exit::USAGE, "--raw is not a JSON object"));
            }
            let Replayed { done, failed, .. } = with_store(&args.config, async |store| match args.id {
                Some(id) => replay_one(store.as_ref(), id, args.raw.as_deref()).await,
                None => replay_all(store.as_ref(), usize::MAX).await,
            })?;
            let mut out = io::stdout().lock();
            for (id, why) in &failed {
                writeln!(out, "{id}: {why}")?;
            }
            writeln!(out, "{done} replayed, {} not", failed.len())?;
            Ok(if failed.is_empty() { exit::OK } else { exit::FAILED }.into())
        }
        DeadLettersCommand::Purge(args) => {
            let before_us = logweir_engine::clock::wall_us().saturating_sub(args.older_than);
            let purged = with_store(&args.config, async |store| store.purge_dead_letters(before_us).await)?;
            writeln!(io::stdout(), "{purged} removed")?;
            Ok(exit::OK.into())
        }
    }
}

/// Asks the configured store.
fn with_store<T>(
    config: &ConfigArgs,
    ask: impl AsyncFnOnce(Arc<dyn LogStore>) -> Result<T, StoreError>,
) -> Result<T, Failure> {
    let database = config.load()?.config.database;
    block_on(async move { ask(open_store(&database)?).await.map_err(Failure::store) })?
}

fn list(letters: &[DeadLetter], json: bool) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for letter in letters {
        if json {
            writeln!(out, "{}", serde_json::to_string(letter).map_err(io::Error::other)?)?;
        } else {
            let at = Timestamp::from_microsecond(letter.at_us)
                .map_or_else(|_| letter.at_us.to_string(), |at| at.to_string());
            let raw: String = letter.raw.chars().take(200).collect();
            writeln!(out, "{}  {at}  {} {}\n    {raw}", letter.id, letter.sqlstate, letter.reason)?;
        }
    }
    if letters.is_empty() && !json {
        writeln!(out, "there are none")?;
    }
    out.flush()
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
