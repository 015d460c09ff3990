//! Moves late records from the table beside a hypertable into chunks, and deletes those that have expired.

mod rule;
mod pieces;
mod refusal;
mod waiting;
mod letter;
mod moving;
mod expire;

pub(super) use self::expire::delete_expired;
pub(super) use self::moving::{Memory, move_records};
