//! Event times as programs write them.

mod calendar;
mod epoch;
mod event_time;
pub mod stamp;
mod text;

pub use epoch::from_number;
pub use event_time::EventTime;
pub use text::{from_access_log, from_text};
