//! The kinds of bodies: lines, a JSON document, and the requests of each protocol.

pub mod document;
pub mod elastic;
pub mod lines;
pub mod loki;
pub mod otlp;
mod protobuf;
pub mod splunk;
