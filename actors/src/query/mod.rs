//! The pure core of reading: what is asked for, without a store, a socket or a clock.
//!
//! - `filter` says which records are wanted, and decides it for one record; `text` is how texts are compared, `attribute`
//!   how a value is found among the attributes. `language` reads a filter from what somebody typed.
//! - `moment` and `hits` read times and steps; `page` is a place between records, `facets` counts values.
//! - A filter means the same here, in `PostgreSQL` and in `SQLite`; what the three cannot do alike is not offered. So case
//!   is ignored for the letters A to Z only, and a regular expression is that of the crate `regex` everywhere.

pub mod filter;
pub mod text;
mod pattern;
pub(crate) mod attribute;
pub mod language;
pub mod moment;
pub mod hits;
pub mod facets;
pub mod page;

pub use self::filter::{Comparison, Field, Filter, SeverityRange, Test};
pub use self::language::{BadQuery, parse};
pub use self::text::{BadPattern, Text, TextKind};
