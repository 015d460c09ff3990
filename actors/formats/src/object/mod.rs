//! One JSON object becomes one record.

mod field;
mod member;
pub mod nested;
mod parse;
mod scratch;
mod value;

pub use parse::{looks_like, parse, parse_value};
pub use scratch::Scratch;
