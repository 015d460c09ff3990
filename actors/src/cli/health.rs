//! `logweir health`: the probe for platforms that have none of their own, from an image without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::{Failure, Outcome, RunArgs, exit};

const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Ask whether a body would be taken now (/readyz), not only whether it answers (/livez)
    #[arg(long)]
    ready: bool,
}

pub(super) fn health(args: &HealthArgs) -> Outcome {
    let loaded = crate::config::load(&args.run.inputs()).map_err(Failure::config)?;
    let address = reachable(loaded.config.admin.listen);
    let path = if args.ready { "readyz" } else { "livez" };
    let url = format!("http://{address}/{path}");
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let mut answer = agent.get(&url).call().map_err(|error| Failure::told(exit::FAILED, format!("{url}: {error}")))?;
    if answer.status().is_success() {
        return Ok(exit::OK.into());
    }
    let said = answer.body_mut().read_to_string().unwrap_or_default();
    Err(Failure::told(exit::FAILED, format!("{url}: {} {said}", answer.status())))
}

/// Where a listener on every address is reached from beside it.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_reached_on_loopback() {
        for (listen, asked) in [("0.0.0.0:9600", "127.0.0.1:9600"), ("[::]:1", "[::1]:1"), ("10.0.0.7:2", "10.0.0.7:2")]
        {
            let address = |text: &str| text.parse().expect("an address");
            assert_eq!(reachable(address(listen)), address(asked));
        }
    }
}
