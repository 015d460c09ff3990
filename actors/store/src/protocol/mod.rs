//! What every database shares of the exactly-once protocol: decisions, rows, counters, and the driver, which holds the
//! order of the statements.

pub(crate) mod migrations;
pub(crate) mod clock;
pub(crate) mod takeover;
pub(crate) mod cursor;
pub(crate) mod rows;
pub(crate) mod requests;
pub(crate) mod key_age;
pub(crate) mod raw_record;
pub(crate) mod volume_counter;
pub(crate) mod sample;
pub(crate) mod driver;
