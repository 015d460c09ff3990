//! `logweir validate`: checks the configuration without touching anything.

use std::io::{self, Write as _};

use clap::Args;

use crate::args::StoreArgs;
use crate::exit;
use crate::failure::Outcome;
use logweir::config::reference;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print the effective configuration: every key with its value and where it was set; secrets are hidden
    #[arg(long)]
    print: bool,
    /// Print the reference of all configuration keys as Markdown, without checking anything
    #[arg(long, conflicts_with = "print")]
    reference: bool,
}

pub(super) fn validate(args: &ValidateArgs) -> Outcome {
    let mut out = io::stdout().lock();
    if args.reference {
        write!(out, "{}\n{}", reference::preface(), reference::markdown())?;
        return Ok(exit::OK.into());
    }
    let loaded = args.store.load()?;
    if args.print {
        write!(out, "{}", reference::effective(&loaded))?;
    } else {
        writeln!(out, "the configuration is valid")?;
    }
    Ok(exit::OK.into())
}
