//! `logweir query`: searches the records of a running server.
//!
//! The latest records are at the bottom, next to the prompt, so they are collected before the first is written; `--forward`
//! streams any number of them as they arrive.

use std::collections::HashSet;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;

use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Color, Output, Records, record_id};
use crate::query_words::QueryWords;
use crate::remote::{Access, Remote, RemoteArgs};
use crate::tail::{Follow, RETRIES, follow};

/// Records that are collected in memory at most.
const COLLECTED_MAX: u64 = 10_000;
/// How long `--follow` waits until the database has what was accepted before the tail started.
const CATCH_UP: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    #[command(flatten)]
    query: QueryWords,
    /// Start of the time range: an age such as 15m or 7d, RFC 3339, or seconds since 1970
    #[arg(long, alias = "start", default_value = "1h", value_name = "TIME", allow_hyphen_values = true)]
    since: String,
    /// End of the time range, exclusive: now, or in the same forms as --since
    #[arg(long, alias = "end", default_value = "now", value_name = "TIME", allow_hyphen_values = true)]
    until: String,
    /// Return at most N records: the latest, or the oldest with --forward
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    limit: u64,
    /// Print the oldest records first, as a stream; allows a --limit above 10000
    #[arg(long)]
    forward: bool,
    /// Afterward, keep printing new records as they arrive, like `logweir tail`
    #[arg(long, short, conflicts_with_all = ["forward", "until"])]
    follow: bool,
    /// Output format; csv is streamed, latest record first unless --forward
    #[arg(long, short, value_name = "FORMAT", default_value = "text",
        value_parser = output::among([Output::Text, Output::Json, Output::Ndjson, Output::Csv]))]
    output: Output,
    /// Color the text output by severity
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: Color,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

pub(super) fn query(args: &QueryArgs) -> Outcome {
    let collects = !args.forward && args.output != Output::Csv;
    if collects && args.limit > COLLECTED_MAX {
        let message = format!("invalid --limit {}: expected at most {COLLECTED_MAX}, or --forward", args.limit);
        return Err(Failure::new(exit::USAGE, message));
    }
    let remote = args.remote.remote(Access::Query)?;
    let query = args.query.query();
    if !args.follow {
        let mut records = Records::new(io::BufWriter::new(io::stdout().lock()), args.output, args.color.is_on());
        let mut is_empty = true;
        page(args, &remote, &query, |line| {
            is_empty = false;
            records.write(line)
        })?;
        records.finish()?;
        if is_empty && args.output == Output::Text && !args.remote.config.quiet && io::stderr().is_terminal() {
            eprintln!("logweir: no records match (--since {}, --until {})", args.since, args.until);
        }
        return Ok(exit::OK.into());
    }
    if !matches!(args.output, Output::Text | Output::Ndjson) {
        return Err(Failure::new(exit::USAGE, "invalid --output with --follow: expected text or ndjson"));
    }
    follow(
        &remote,
        Follow {
            query: query.clone(),
            output: args.output,
            colors: args.color.is_on(),
            after: None,
            limit: u64::MAX,
            retries: RETRIES,
            quiet: args.remote.config.quiet,
            // The tail has started by then, so that no record falls between the two; those in both are printed once.
            before: Some(Box::new(|records| {
                if let Some(backlog) = wait_until_committed(&remote)? {
                    let backlog = output::count(backlog, "record");
                    eprintln!("logweir: {backlog} not in the database yet: the latest of them may be missing here");
                }
                let mut printed = HashSet::new();
                page(args, &remote, &query, |line| {
                    printed.extend(record_id(line));
                    records.write(line)
                })?;
                records.flush()?;
                Ok(printed)
            })),
        },
    )
}

/// The processors as `/api/v1/pipeline` returns them, as far as their cursors are concerned.
#[derive(Default, Deserialize)]
struct Pipeline {
    processors: Vec<Processor>,
}

#[derive(Deserialize)]
struct Processor {
    name: String,
    status: Option<Lanes>,
}

#[derive(Deserialize)]
struct Lanes {
    #[serde(default)]
    lanes: Vec<Lane>,
}

#[derive(Deserialize)]
struct Lane {
    lane: u64,
    seq_last: u64,
    seq_committed: u64,
    backlog: u64,
}

impl Pipeline {
    fn lanes(&self) -> impl Iterator<Item = (&str, &Lane)> {
        self.processors.iter().flat_map(|processor| {
            let lanes = processor.status.iter().flat_map(|status| &status.lanes);
            lanes.map(|lane| (&processor.name[..], lane))
        })
    }

    /// Backlog of the lanes whose cursor has not reached the end that they had at `earlier`.
    fn behind(&self, earlier: &Self) -> u64 {
        let end = |name: &str, lane: u64| {
            earlier.lanes().find(|(other, old)| *other == name && old.lane == lane).map_or(0, |(_, old)| old.seq_last)
        };
        self.lanes()
            .filter(|(name, lane)| lane.seq_committed < end(name, lane.lane))
            .map(|(_, lane)| lane.backlog)
            .sum()
    }
}

/// Waits until the database has every record that was accepted before this call. Returns the size of the backlog if that
/// takes too long.
fn wait_until_committed(remote: &Remote) -> Result<Option<u64>, Failure> {
    let pipeline = || -> Result<Pipeline, Failure> {
        let response = remote.get("/api/v1/pipeline", &[], &[])?;
        serde_json::from_reader(response.into_body().into_reader()).map_err(|error| {
            Failure::new(exit::FAILED, format!("{}: unexpected response: not a pipeline ({error})", remote.url()))
        })
    };
    let earlier = pipeline()?;
    let deadline = Instant::now() + CATCH_UP;
    let mut behind = earlier.behind(&earlier);
    while behind > 0 && Instant::now() < deadline {
        std::thread::sleep(POLL);
        behind = pipeline()?.behind(&earlier);
    }
    Ok((behind > 0).then_some(behind))
}

/// Requests the records and passes each on.
fn page(
    args: &QueryArgs,
    remote: &Remote,
    query: &str,
    mut write: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (limit, direction) = (args.limit.to_string(), if args.forward { "forward" } else { "backward" });
    let (start, end) = (moment(&args.since), moment(&args.until));
    let parameters = [
        ("query", query),
        ("start", &start),
        ("end", &end),
        ("limit", &limit),
        ("direction", direction),
        ("format", if args.output == Output::Csv { "csv" } else { "ndjson" }),
    ];
    let response = remote.get("/api/v1/query", &parameters, &[])?;
    if let Some(reason) = response.headers().get("x-logweir-partial").and_then(|reason| reason.to_str().ok()) {
        eprintln!("logweir: this result is incomplete: {reason}");
    }
    let mut lines = BufReader::new(response.into_body().into_reader()).lines().map(|line| {
        line.map_err(|error| {
            Failure::new(exit::UNAVAILABLE, format!("{}: the response was cut off: {error}", remote.url()))
        })
    });
    if args.forward || args.output == Output::Csv {
        return lines.try_for_each(|line| write(&line?));
    }
    let collected = lines.collect::<Result<Vec<String>, Failure>>()?;
    collected.iter().rev().try_for_each(|line| write(line))
}

/// A time as the API reads it: an age without a sign is one.
fn moment(text: &str) -> String {
    let text = text.trim();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_age = unit.len() < text.len() && matches!(unit, "us" | "ms" | "s" | "m" | "h" | "d" | "w");
    if is_age { format!("-{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follow_waits_for_the_cursors_to_reach_the_earlier_end_of_each_lane() {
        let pipeline = |lanes: &[(&str, u64, u64, u64, u64)]| Pipeline {
            processors: lanes
                .iter()
                .map(|&(name, lane, seq_last, seq_committed, backlog)| Processor {
                    name: name.to_owned(),
                    status: Some(Lanes { lanes: vec![Lane { lane, seq_last, seq_committed, backlog }] }),
                })
                .collect(),
        };
        let earlier = pipeline(&[("a", 0, 9, 9, 0), ("a", 1, 8, 7, 3), ("b", 1, 20, 5, 70)]);
        assert_eq!(earlier.behind(&earlier), 73);
        // Later records do not matter, nor a lane or a processor that is new.
        let later = pipeline(&[("a", 0, 30, 9, 5), ("a", 1, 8, 8, 0), ("b", 1, 21, 19, 6), ("c", 0, 5, 0, 5)]);
        assert_eq!(later.behind(&earlier), 6);
        assert_eq!(Pipeline::default().behind(&earlier), 0);
    }

    #[test]
    fn an_age_needs_no_sign() {
        for (text, expected) in [
            ("1h", "-1h"),
            ("-15m", "-15m"),
            ("now", "now"),
            ("now-1d", "now-1d"),
            ("1700000000", "1700000000"),
            ("h", "h"),
        ] {
            assert_eq!(moment(text), expected);
        }
    }
}
