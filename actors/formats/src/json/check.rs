//! Checks of JSON that serde_json accepts and a store or a reader may not, and errors with a column.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Visitor};

/// Deeper values are rejected; the same limit as serde_json's.
pub const DEPTH_MAX: usize = 127;

/// A longer number exceeds the precision of `numeric`.
const NUMBER_BYTES_MAX: usize = 1000;

/// Formats a serde_json error without its line number, which the caller supplies. For a text within a text the outer
/// column is used, since that is what the sender sees.
pub fn in_column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    let what = what.rsplit_once(" in column ").map_or(what, |(what, _)| what);
    format!("{what} in column {}", error.column())
}

/// A name, borrowed if possible; NUL becomes U+FFFD.
pub struct Name;

impl<'a> DeserializeSeed<'a> for Name {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Name {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'a str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.replace('\0', "\u{fffd}")))
    }
}

/// Returns the first number in the JSON `value` that does not fit into a double: PostgreSQL or a reader would reject
/// the record.
pub fn out_of_range(value: &str) -> Option<&str> {
    let bytes = value.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let is_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        match bytes[at] {
            b'"' => at = string_end(bytes, at + 1),
            b'-' | b'0'..=b'9' => {
                let len = bytes[at..].iter().take_while(|byte| is_number(byte)).count();
                let number = &value[at..at + len];
                if !is_double(number) {
                    return Some(&number[..number.len().min(40)]);
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    None
}

/// Whether it neither overflows nor, being nonzero, underflows to zero, and does not have thousands of digits.
fn is_double(number: &str) -> bool {
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let is_nonzero = mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    number.len() <= NUMBER_BYTES_MAX
        && number.parse().is_ok_and(|value: f64| value.is_finite() && (value != 0.0) == is_nonzero)
}

/// The index after the string whose remainder starts at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether a value is nested deeper than [`DEPTH_MAX`].
pub fn too_deep(value: &str) -> bool {
    // A value that deep has at least two brackets per level.
    if value.len() <= 2 * DEPTH_MAX || !value.starts_with(['{', '[']) {
        return false;
    }
    let (mut depth, mut in_string) = (0_usize, false);
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' => _ = bytes.next(),
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}
