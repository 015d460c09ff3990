//! One body becomes records.

pub mod lines;
pub mod document;
mod protobuf;
pub mod loki;
pub mod otlp;
pub mod elastic;
pub mod splunk;
