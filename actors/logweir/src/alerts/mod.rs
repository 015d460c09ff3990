//! Alerts: a query, a window over event time and a threshold. Firing and resolution are sent to a webhook.
//!
//! - The windows see what the journal has made durable, through a `Follower`: an alert neither delays intake nor
//!   waits for the database. Records that are late for a window are stored like all others.
//! - Each alert is a stage of its own. All are fed in lockstep through mailboxes of a few frames, so memory is bounded
//!   and nothing is lost in between. Records that the journal removed before they were read are counted.
//! - An alert sees the records of this process only. Where several processes share the load, a ratio is comparable; a
//!   count covers only this process's share.
//! - Windows start empty with the process, and a window that began earlier is not evaluated: a restart does not fire a
//!   `below`.

mod state;
mod notification;
mod registry;
#[cfg(feature = "webhooks")]
mod notify;
mod stage;

pub use registry::{AlertRegistry, Status};
pub(crate) use stage::{memory_bytes_max, spawn};
pub use state::State;
