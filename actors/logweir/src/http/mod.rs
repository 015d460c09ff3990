//! The two HTTP listeners: data (intake) and admin.
//!
//! - Overload and shutdown are reported, never waited out: every wait has a limit, and every rejection carries a
//!   reason, a sentence and, where a retry can succeed, `Retry-After`.
//! - Every request passes the gate, which authorizes it by path (unknown paths are closed by default) and counts the
//!   response.
//! - The admin listener can be up before the journal is open: until [`Shared::start`], everything except the probes
//!   answers `starting`.

mod shared;
mod routing;
mod answer;
mod error_responses;
mod token;
mod auth;
mod role;
mod gate;
mod budget;
mod limits;
mod content_headers;
mod parameters;
mod idempotency;
mod intake;
mod ingest;
mod otlp;
mod elastic;
mod splunk;
mod loki;
mod api;
mod tail;
mod dead_letters;
mod alerts;
mod pipeline;
mod status;
mod admin;
mod ui;
mod routes;
mod serve;

pub use serve::{serve_admin, serve_data};
pub use shared::{Running, Shared};

#[cfg(test)]
mod tests;
