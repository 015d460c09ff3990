#![doc = include_str!("../README.md")]

pub mod record;
pub mod chunk;
pub mod codec;
pub mod timestamp;
pub mod json;
