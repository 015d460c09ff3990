//! A line is a message, and nothing else is known of it.

use super::json::Scratch;
use super::sink::Sink;

/// Every line is one.
pub fn looks_like(_line: &str) -> bool {
    true
}

/// Takes the line as it is.
///
/// # Errors
/// None: every line is a message.
pub fn parse<'a>(line: &'a str, _scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    sink.push_plain(line);
    Ok(())
}
