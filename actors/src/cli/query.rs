//! `logweir query`: records that a running server has.
//!
//! The newest stand at the bottom, where the eye is. So those are gathered first; `--forward` streams as they come, however
//! many there are.

use std::io::{self, BufRead as _, BufReader, Write as _};

use clap::Args;

use super::print::{self, Colour, Output};
use super::remote::RemoteArgs;
use super::{Failure, Outcome, exit};

/// What is gathered at most.
const GATHERED_MAX: u64 = 10_000;

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// Which records, such as 'service:cart severity>=warn "card declined"'; all if it is left out
    #[arg(default_value = "")]
    query: String,
    #[command(flatten)]
    remote: RemoteArgs,
    /// From when: RFC 3339, epoch, or such as -15m
    #[arg(long, default_value = "-1h", value_name = "TIME", allow_hyphen_values = true)]
    start: String,
    /// Until when
    #[arg(long, default_value = "now", value_name = "TIME", allow_hyphen_values = true)]
    end: String,
    /// At most so many: the newest, or with --forward the oldest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    limit: u64,
    /// The oldest first
    #[arg(long)]
    forward: bool,
    /// How they are written
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Colours by severity
    #[arg(long, value_enum, default_value_t)]
    color: Colour,
}

pub(super) fn query(args: &QueryArgs) -> Outcome {
    let gathers = !args.forward && args.output != Output::Csv;
    if gathers && args.limit > GATHERED_MAX {
        let message = format!("--limit is at most {GATHERED_MAX} without --forward");
        return Err(Failure::told(exit::USAGE, message));
    }
    let remote = args.remote.remote();
    let (limit, direction) = (args.limit.to_string(), if args.forward { "forward" } else { "backward" });
    let parameters = [
        ("query", &*args.query),
        ("start", &args.start),
        ("end", &args.end),
        ("limit", &limit),
        ("direction", direction),
        ("format", if args.output == Output::Csv { "csv" } else { "ndjson" }),
    ];
    let response = remote.get("/api/v1/query", &parameters, &[])?;
    let mut lines = BufReader::new(response.into_body().into_reader()).lines().map(|line| {
        line.map_err(|error| {
            Failure::told(exit::UNAVAILABLE, format!("{} has cut the answer off: {error}", remote.url()))
        })
    });
    let mut out = io::BufWriter::new(io::stdout().lock());
    let colours = args.color.is_on();
    let mut write =
        |line: &str| -> Result<(), Failure> { Ok(out.write_all(written(line, args.output, colours)?.as_bytes())?) };
    if gathers {
        let gathered = lines.collect::<Result<Vec<String>, Failure>>()?;
        gathered.iter().rev().try_for_each(|line| write(line))?;
    } else {
        lines.try_for_each(|line| write(&line?))?;
    }
    out.flush()?;
    Ok(exit::OK.into())
}

/// A line of the answer as it is shown.
pub(super) fn written(line: &str, output: Output, colours: bool) -> Result<String, Failure> {
    match output {
        Output::Ndjson | Output::Csv => Ok(format!("{line}\n")),
        Output::Text => {
            let record = serde_json::from_str(line)
                .map_err(|error| Failure::told(exit::FAILED, format!("the server has sent no record: {error}")))?;
            let mut text = String::new();
            print::record(&mut text, &record, colours);
            Ok(text)
        }
    }
}
