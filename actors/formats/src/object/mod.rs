//! One JSON object becomes one record.

mod field;
mod member;
mod scratch;
pub mod nested;
mod value;
mod parse;

pub use parse::{looks_like, parse, parse_value};
pub use scratch::Scratch;
