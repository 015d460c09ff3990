//! Harness.

pub mod redis;
