//! The hot cache: recent records per service and counters per minute. It may lose data; it must not cause delays.
//!
//! - Applying a batch twice has the same effect as applying it once, and so has applying an overlapping batch: the
//!   cache stores a cursor per writer and lane and applies only frames after it. Counters never double.
//! - What is lost (full or unavailable cache, evicted key) stays lost: the database has every record.
//! - Everything is bounded: recent records per service, services, hours of counters, time to live.

mod hot_cache;
mod update;
mod render;
pub(crate) mod read;
#[cfg(feature = "redis")]
mod redis;
pub(crate) mod memory;
pub(crate) mod open;
pub(crate) mod writer;

pub use hot_cache::{CacheError, HotCache, Origin, RecentRecord};
pub(crate) use open::open;
