//! `logweir run`: the options of the server, which are also accepted without a command.

use clap::Args;
use logweir::config::Inputs;
use logweir::config::{self, Role};

use crate::args::{self, StoreArgs};
use crate::failure::{Failure, Outcome};
use crate::process;

#[derive(Clone, Debug, Default, Args)]
pub(super) struct RunArgs {
    /// Role of this process: all, processor or gateway; short for --set role=ROLE
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Address of the data port: ingestion, query API and web UI; short for --set http.listen=ADDRESS
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Address of the admin port: probes and metrics; short for --set admin.listen=ADDRESS
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<String>,
    // As in `produce`: --demo is a switch, --rate its records per second.
    /// Generate records of a few fictional services
    #[arg(long)]
    demo: bool,
    /// Number of records to generate per second with --demo [default: 100]
    #[arg(long, value_name = "N", requires = "demo")]
    rate: Option<String>,
    /// Read records from standard input; at the end of the input, drain and exit
    #[arg(long)]
    stdin: bool,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// Records per second of `--demo`.
const DEMO_RATE: &str = "100";

impl RunArgs {
    pub(super) fn inputs(&self) -> Inputs {
        let stdin = self.stdin.then(|| "true".to_owned());
        let rate = self.demo.then(|| self.rate.as_deref().unwrap_or(DEMO_RATE).to_owned());
        self.store.inputs(args::flags([
            ("--role", "role", self.role.as_ref()),
            ("--listen", "http.listen", self.listen.as_ref()),
            ("--admin-listen", "admin.listen", self.admin_listen.as_ref()),
            (if self.rate.is_some() { "--rate" } else { "--demo" }, "sources.demo_rate", rate.as_ref()),
            ("--stdin", "sources.stdin", stdin.as_ref()),
        ]))
    }

    pub(super) fn run(&self) -> Outcome {
        let loaded = config::load(&self.inputs()).map_err(Failure::config)?;
        if loaded.config.role != Role::Gateway {
            loaded.check_data_dir().map_err(Failure::config)?;
        }
        Ok(process::run(loaded.config))
    }

    /// The first option that is set and that only `run` has.
    pub(super) fn own_option(&self) -> Option<&'static str> {
        let own = [
            ("--role", self.role.is_some()),
            ("--listen", self.listen.is_some()),
            ("--admin-listen", self.admin_listen.is_some()),
            ("--demo", self.demo),
            ("--stdin", self.stdin),
        ];
        own.into_iter().find_map(|(option, set)| set.then_some(option))
    }

    /// Takes over the options of `run` that were given before the command.
    pub(super) fn inherit(&mut self, outer: &Self) {
        let inherit = |own: &mut Option<String>, outer: &Option<String>| *own = own.take().or_else(|| outer.clone());
        inherit(&mut self.role, &outer.role);
        inherit(&mut self.listen, &outer.listen);
        inherit(&mut self.admin_listen, &outer.admin_listen);
        inherit(&mut self.rate, &outer.rate);
        self.demo |= outer.demo;
        self.stdin |= outer.stdin;
    }
}
