//! `logweir validate`: is the configuration right, and what holds?

use std::io::{self, Write as _};

use clap::Args;

use super::{Outcome, RunArgs, exit};
use crate::config::reference;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Print the configuration that holds, each value with its source, secrets hidden
    #[arg(long)]
    print: bool,
    /// Print the reference of all keys as Markdown, and nothing else
    #[arg(long)]
    reference: bool,
}

pub(super) fn validate(args: &ValidateArgs) -> Outcome {
    let mut out = io::stdout().lock();
    if args.reference {
        write!(out, "{}\n{}", reference::preface(), reference::markdown())?;
        return Ok(exit::OK.into());
    }
    let loaded = crate::config::load(&args.run.inputs()).map_err(super::Failure::config)?;
    if args.print {
        write!(out, "{}", reference::effective(&loaded))?;
    } else {
        writeln!(out, "the configuration is valid")?;
    }
    Ok(exit::OK.into())
}
