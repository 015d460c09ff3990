//! `logweir health`: the health check for platforms without one of their own, from an image without a shell.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::args::ConfigArgs;
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Output};
use crate::remote::{connection_error, reachable};

const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// Base address of the server's admin port [default: admin.listen of the configuration]
    #[arg(long, short, value_name = "URL")]
    url: Option<String>,
    /// Check readiness (/readyz: records are accepted now) instead of liveness (/livez: the process responds)
    #[arg(long)]
    ready: bool,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
}

/// The result as JSON.
#[derive(Serialize)]
struct Health<'a> {
    url: &'a str,
    healthy: bool,
    /// Why it is not healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub(super) fn health(args: &HealthArgs) -> Outcome {
    let base = match &args.url {
        Some(url) if url.contains("://") => url.trim_end_matches('/').to_owned(),
        Some(url) => format!("http://{}", url.trim_end_matches('/')),
        None => format!("http://{}", reachable(args.config.load()?.config.admin.listen)),
    };
    let url = format!("{base}/{}", if args.ready { "readyz" } else { "livez" });
    let reason = check(&url).err();
    match (args.output, &reason) {
        _ if args.config.quiet => {}
        (Output::Json, _) => {
            output::json(
                &mut io::stdout(),
                &Health { url: &url, healthy: reason.is_none(), reason: reason.as_deref() },
            )?;
        }
        (_, None) => writeln!(io::stdout(), "{base} - {}", if args.ready { "ready" } else { "alive" })?,
        (_, Some(reason)) => return Err(Failure::new(exit::FAILED, format!("{url}: {reason}"))),
    }
    Ok(if reason.is_none() { exit::OK } else { exit::FAILED }.into())
}

/// Whether `url` responds with success; else why not.
fn check(url: &str) -> Result<(), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(TIMEOUT))
        .build()
        .into();
    let mut response = agent.get(url).call().map_err(|error| connection_error(&error))?;
    if response.status().is_success() {
        return Ok(());
    }
    let text = response.body_mut().read_to_string().unwrap_or_default();
    Err(format!("{} {}", response.status(), text.trim()))
}
