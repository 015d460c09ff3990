#![doc = include_str!("../README.md")]
//!
//! # Code map
//!
//! Each module uses only those above it in this list.
//!
//! ```text
//! record            a record, borrowed; severities
//! chunk             records as columns
//! codec             a chunk as bytes
//! timestamp         event times as stored and as text
//! json              a record as JSON
//! ```

pub mod record;
pub mod chunk;
pub mod codec;
pub mod timestamp;
pub mod json;
