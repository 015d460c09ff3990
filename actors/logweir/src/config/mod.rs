//! Configuration. A [`Config`] returned by [`load`] is valid; [`Config::validate`] checks one that a program built.
//!
//! - Layers: defaults < file < `DATABASE_URL`, `REDIS_URL`, `LOGWEIR_LOG` < `LOGWEIR__SECTION__KEY` < flags.
//! - All errors are reported at once, each with its key, its source and what is accepted.
//! - Loading reads files and writes none: an invalid configuration is rejected before the journal is opened, because a
//!   restart with a typo must not cost a backlog.
//! - Messages contain no secrets.

mod alert_rule;
mod check;
mod defaults;
mod keys;
mod layers;
mod load;
mod log_filter;
mod problem;
mod quantity;
mod raw;
pub mod reference;
mod settings;
mod token;
mod value;

pub(crate) use alert_rule::Counts;
pub use alert_rule::{Measure, Rule, Threshold};
pub use layers::{Inputs, NAME_OF_FILE};
pub use load::{Loaded, load};
pub use logweir_store::{Database, DatabaseUrl};
pub use problem::{ConfigError, Problem, Source};
pub use quantity::{Unit, quantity, show_number};
pub use raw::Raw;
pub use settings::{
    Admin, Alerting, Auth, AuthMode, BatchLimits, Cache, CacheUrl, Config, Files, Gateway, HostPort, Http,
    JournalSettings, Limits, Log, Multiline, Query, Role, Shutdown, Sources, Syslog, Tail,
};
pub use token::Token;

#[cfg(test)]
mod tests;
