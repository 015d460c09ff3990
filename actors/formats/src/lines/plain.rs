//! Plain text: the line is the message, and nothing else is known.

use crate::object::Scratch;
use crate::sink::Sink;

/// Matches every line.
pub fn looks_like(_line: &str) -> bool {
    true
}

/// Pushes the line unchanged.
///
/// # Errors
/// None: every line is a message.
pub fn parse<'a>(line: &'a str, _scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    sink.push_plain(line);
    Ok(())
}
