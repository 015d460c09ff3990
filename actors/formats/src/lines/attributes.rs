//! Writes a record's attributes: the members of one JSON object, in a reused buffer.

use crate::json::write::push_json_string;
use crate::text::{Sanitized, unescape};

/// Maximum length of an attribute name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The object under construction.
pub struct Attributes<'b> {
    out: &'b mut String,
}

impl<'b> Attributes<'b> {
    /// An empty object in `out`, which is cleared.
    pub fn new(out: &'b mut String) -> Self {
        out.clear();
        Self { out }
    }

    /// Adds a text; an empty one is skipped.
    pub fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.name(name);
            push_json_string(self.out, value);
        }
    }

    /// Adds an integer as a number, and anything else as text.
    pub fn number(&mut self, name: &str, value: &str) {
        if is_whole_number(value) {
            self.name(name);
            self.out.push_str(value);
        } else {
            self.text(name, value);
        }
    }

    /// Adds JSON under a name that is not under our control.
    pub fn raw(&mut self, name: &str, json: &str) {
        self.out.push(if self.out.is_empty() { '{' } else { ',' });
        push_json_string(self.out, name);
        self.out.push(':');
        self.out.push_str(json);
    }

    /// Adds a pair returned by [`pair`]; an empty value is kept, since it was written explicitly.
    pub fn pair(&mut self, pair: Pair<'_>) {
        self.name(pair.name);
        if pair.quoted && memchr::memchr(b'\\', pair.value.as_bytes()).is_some() {
            let mut plain = String::with_capacity(pair.value.len());
            unescape(pair.value, &mut plain, &mut Sanitized::default());
            push_json_string(self.out, &plain);
        } else if !pair.quoted && is_json_literal(pair.value) {
            self.out.push_str(pair.value);
        } else {
            push_json_string(self.out, pair.value);
        }
    }

    /// Adds the `name=value` pairs at the end of `message` and returns their number. The message keeps them as well.
    pub fn tail(&mut self, message: &str) -> usize {
        tail(message).map(|pair| self.pair(pair)).count()
    }

    /// Returns the object; empty without members.
    pub fn finish(self) -> &'b str {
        if !self.out.is_empty() {
            self.out.push('}');
        }
        self.out
    }

    fn name(&mut self, name: &str) {
        self.out.push(if self.out.is_empty() { '{' } else { ',' });
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
    }
}

/// `name=value`, the value without its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Letters, digits and `_.-/@`.
    pub name: &'a str,
    /// As written, including escapes if quoted.
    pub value: &'a str,
    /// Whether the value was quoted.
    pub quoted: bool,
}

/// Splits off the `name=value` that `text` begins with.
pub fn pair(text: &str) -> Option<(Pair<'_>, &str)> {
    let (name, rest) = text.split_at(name_bytes(text)?);
    let rest = &rest[1..];
    if let Some(inner) = rest.strip_prefix('"') {
        let end = closing_quote(inner)?;
        let after = &inner[end + 1..];
        let pair = Pair { name, value: &inner[..end], quoted: true };
        return (after.is_empty() || after.starts_with([' ', '\t', ','])).then_some((pair, after));
    }
    let end = memchr::memchr2(b' ', b'\t', rest.as_bytes()).unwrap_or(rest.len());
    let (value, after) = rest.split_at(end);
    (!value.contains('"')).then_some((Pair { name, value, quoted: false }, after))
}

/// Length of the name that `text` begins with, if a `=` follows.
fn name_bytes(text: &str) -> Option<usize> {
    let name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-/@".contains(byte);
    let bytes = text.as_bytes();
    let len = bytes.iter().take(NAME_BYTES_MAX + 1).take_while(|byte| name_byte(byte)).count();
    let letter = bytes.first().is_some_and(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'@'));
    (letter && len <= NAME_BYTES_MAX && bytes.get(len) == Some(&b'=')).then_some(len)
}

/// Position of the first quote not preceded by a backslash.
pub fn closing_quote(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// The pairs at the end of `message`, in order: the longest run of words that are all pairs.
fn tail(message: &str) -> impl Iterator<Item = Pair<'_>> {
    let message = message.trim_ascii_end();
    // Most messages do not end with a pair: checking the last word is enough.
    let last = memchr::memrchr(b' ', message.as_bytes()).map_or(0, |at| at + 1);
    let may_be = message.ends_with('"') || memchr::memchr(b'=', &message.as_bytes()[last..]).is_some();
    let mut rest = if may_be { pairs_only(message).unwrap_or_default() } else { "" };
    std::iter::from_fn(move || {
        let (pair, after) = pair(rest.trim_ascii_start())?;
        rest = after;
        Some(pair)
    })
}

/// The longest suffix of `message` that consists of pairs only.
fn pairs_only(message: &str) -> Option<&str> {
    let (mut start, mut rest) = (None, message);
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return start;
        }
        match pair(rest) {
            Some((_, after)) => {
                start = start.or(Some(rest));
                rest = after;
            }
            None => {
                start = None;
                rest = rest.split_once([' ', '\t']).map_or("", |(_, after)| after);
            }
        }
    }
}

/// An integer by JSON's rules: no sign but `-`, no leading zero. At most 18 digits, so that no reader rounds it.
fn is_whole_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    (1..=18).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_digit)
        && (digits.len() == 1 || digits[0] != b'0')
        && text != "-0"
}

fn is_json_literal(text: &str) -> bool {
    let is_number = || match text.split_once('.') {
        Some((whole, fraction)) => {
            is_whole_number(whole)
                && (1..=15).contains(&fraction.len())
                && fraction.bytes().all(|byte| byte.is_ascii_digit())
        }
        None => is_whole_number(text),
    };
    matches!(text, "true" | "false") || is_number()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of_tail(message: &str) -> String {
        let mut buffer = String::new();
        let mut attributes = Attributes::new(&mut buffer);
        attributes.tail(message);
        attributes.finish().to_owned()
    }

    #[test]
    fn pairs_at_the_end_of_a_message_are_attributes() {
        for (message, expect) in [
            ("took long ms=12 path=/a ok=true", r#"{"ms":12,"path":"/a","ok":true}"#),
            (r#"done err="no \"luck\"" n=0.5"#, r#"{"err":"no \"luck\"","n":0.5}"#),
            (
                "failure; logname= uid=0 rhost=1.2.3.4  user=root ",
                r#"{"logname":"","uid":0,"rhost":"1.2.3.4","user":"root"}"#,
            ),
            ("a=1 b=2 and then c=3", r#"{"c":3}"#),
            ("zip=01234 big=1234567890123456789", r#"{"zip":"01234","big":"1234567890123456789"}"#),
            ("a=1 is the answer", ""),
            ("x == y", ""),
            (r#"said "no""#, ""),
            ("", ""),
        ] {
            assert_eq!(of_tail(message), expect, "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_message_gives_valid_json(message in r#"([a-z]{1,3}=|[0-9]{1,3}|"| |\\|\t|é|-|\.){0,20}"#) {
            let json = of_tail(&message);
            if !json.is_empty() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&json).unwrap().is_object(), "{}", json);
            }
        }
    }
}
