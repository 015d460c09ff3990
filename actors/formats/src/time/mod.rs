//! Event times as programs write them.

mod event_time;
mod calendar;
mod epoch;
pub mod stamp;
mod text;

pub use epoch::from_number;
pub use event_time::EventTime;
pub use text::{from_access_log, from_text};
