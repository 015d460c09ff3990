//! What both databases share of the exactly-once protocol: decisions, rows and counters, without I/O.

pub(crate) mod migrations;
pub(crate) mod takeover;
pub(crate) mod cursor;
pub(crate) mod rows;
pub(crate) mod raw_record;
pub(crate) mod volume_counter;
