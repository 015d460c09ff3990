//! The Loki API: push, and the part of its query API that Grafana's Loki data source needs.
//!
//! - A query is LogQL (see [`logweir_query::logql`]) and subject to the same limits as every other query.
//! - A stream is a combination of service, host and level. Attributes are structured metadata, or labels for clients
//!   that do not distinguish the two, as in Loki itself.
//! - Volumes are numbers of records, not of bytes as in Loki.
//! - Errors are plain text, as Loki's are.

mod answer;
mod loki_parameters;
mod labels;
mod metric;
mod push;
mod query;
mod streams;
mod tail;
mod routes;

pub use answer::error_response;
pub use routes::{LokiApi, routes};
