//! Sanitizes what PostgreSQL would reject before it becomes a record: NUL characters, invalid UTF-8, and `\u` escapes
//! of NUL or of half a surrogate pair. Each becomes U+FFFD and is counted: a replaced character is a smaller loss than
//! a dead-lettered record.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;

/// Numbers of values that were replaced, dropped or adjusted in one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sanitized {
    /// Invalid UTF-8 sequences.
    pub invalid_utf8: u64,
    /// NUL characters, as a byte or as `\u0000`.
    pub nul: u64,
    /// Escapes of half a surrogate pair.
    pub lone_surrogate: u64,
    /// Members of an object whose name occurs again later: the last one wins, as in `jsonb`.
    pub duplicate_key: u64,
    /// Times outside the years 0001..=9999, clamped; the original is kept as an attribute.
    pub timestamp: u64,
    /// Services and hosts of text lines above [`NAME_BYTES_MAX`](crate::NAME_BYTES_MAX), truncated.
    pub name_too_long: u64,
}

impl Sanitized {
    /// Each cause, named like its field, with its count.
    pub fn causes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self { invalid_utf8, nul, lone_surrogate, duplicate_key, timestamp, name_too_long } = *self;
        [
            ("invalid_utf8", invalid_utf8),
            ("nul", nul),
            ("lone_surrogate", lone_surrogate),
            ("duplicate_key", duplicate_key),
            ("timestamp", timestamp),
            ("name_too_long", name_too_long),
        ]
        .into_iter()
    }
}

/// Returns the body as text without NUL. Borrowed if there is nothing to sanitize, which is checked at memory speed.
///
/// The sanitized copy is at most three times as long as the body, which is bounded.
pub fn clean<'a>(body: &'a [u8], counts: &mut Sanitized) -> Cow<'a, str> {
    match std::str::from_utf8(body) {
        Ok(text) if memchr::memchr(0, body).is_none() => Cow::Borrowed(text),
        _ => Cow::Owned(replace_invalid(body, counts)),
    }
}

#[cold]
fn replace_invalid(body: &[u8], counts: &mut Sanitized) -> String {
    let mut text = String::with_capacity(body.len() + body.len() / 8);
    for part in body.utf8_chunks() {
        for (index, piece) in part.valid().split('\0').enumerate() {
            if index > 0 {
                counts.nul += 1;
                text.push(char::REPLACEMENT_CHARACTER);
            }
            text.push_str(piece);
        }
        if !part.invalid().is_empty() {
            counts.invalid_utf8 += 1;
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

/// Whether JSON in `body` may contain an escape to sanitize: the only reason to examine attributes more closely.
pub fn has_bad_escapes(body: &str) -> bool {
    // One search first: most bodies contain no such escape at all.
    static ANY: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(r"\u"));
    static BAD: LazyLock<[Finder<'_>; 3]> =
        LazyLock::new(|| [Finder::new(r"\u0000"), Finder::new(r"\ud"), Finder::new(r"\uD")]);
    let body = body.as_bytes();
    ANY.find(body).is_some_and(|first| BAD.iter().any(|finder| finder.find(&body[first..]).is_some()))
}

/// Replaces `\u0000` and lone surrogates in JSON text, in place: all escapes have the same length.
pub fn sanitize_escapes(json: &mut String, counts: &mut Sanitized) {
    if !has_bad_escapes(json) {
        return;
    }
    let mut bytes = std::mem::take(json).into_bytes();
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[at..]) {
        at += found;
        let unit = code_unit(&bytes[at..]);
        let replaced = match unit {
            Some(0) => Some(&mut counts.nul),
            Some(0xD800..=0xDBFF) if matches!(code_unit(&bytes[at + 6..]), Some(0xDC00..=0xDFFF)) => {
                at += 12;
                continue;
            }
            Some(0xD800..=0xDFFF) => Some(&mut counts.lone_surrogate),
            _ => None,
        };
        if let Some(count) = replaced {
            *count += 1;
            bytes[at..at + 6].copy_from_slice(br"\ufffd");
        }
        at += if unit.is_some() { 6 } else { 2 };
        at = at.min(bytes.len());
    }
    *json = String::from_utf8(bytes).expect("only ASCII was replaced by ASCII");
}

/// The code unit of the escape `\uXXXX` at the start of `bytes`.
fn code_unit(bytes: &[u8]) -> Option<u16> {
    let hex = bytes.strip_prefix(br"\u")?.get(..4)?;
    let mut unit = 0;
    for &byte in hex {
        unit = unit << 4 | u16::try_from(char::from(byte).to_digit(16)?).ok()?;
    }
    Some(unit)
}

/// Appends the text of a JSON string, without its quotes. `raw` has passed a JSON parser.
pub fn unescape(raw: &str, out: &mut String, counts: &mut Sanitized) {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let (character, used) = escape(&rest.as_bytes()[at..], counts);
        out.push(character);
        rest = rest.get(at + used..).unwrap_or_default();
    }
    out.push_str(rest);
}

/// The character that the escape at the start of `bytes` denotes, and the length of the escape.
fn escape(bytes: &[u8], counts: &mut Sanitized) -> (char, usize) {
    let character = match bytes.get(1) {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => return unicode_escape(bytes, counts),
        Some(&other) => char::from(other), // ", \ and /
        None => char::REPLACEMENT_CHARACTER,
    };
    (character, 2)
}

fn unicode_escape(bytes: &[u8], counts: &mut Sanitized) -> (char, usize) {
    let high = code_unit(bytes).unwrap_or_default();
    if high == 0 {
        counts.nul += 1;
        return (char::REPLACEMENT_CHARACTER, 6);
    }
    let low = bytes.get(6..).and_then(code_unit);
    if let (0xD800..=0xDBFF, Some(low @ 0xDC00..=0xDFFF)) = (high, low) {
        let code = 0x10000 + ((u32::from(high) - 0xD800) << 10) + (u32::from(low) - 0xDC00);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    let character = char::from_u32(high.into());
    counts.lone_surrogate += u64::from(character.is_none());
    (character.unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sanitized(json: &str) -> (String, Sanitized) {
        let (mut text, mut counts) = (json.to_owned(), Sanitized::default());
        sanitize_escapes(&mut text, &mut counts);
        (text, counts)
    }

    #[test]
    fn a_clean_body_is_borrowed_and_replacements_in_another_are_counted() {
        let mut counts = Sanitized::default();
        assert!(matches!(clean("grün\n✓".as_bytes(), &mut counts), Cow::Borrowed("grün\n✓")));
        assert_eq!(clean(b"a\0b\xFFc\xE2\n\0", &mut counts), "a\u{fffd}b\u{fffd}c\u{fffd}\n\u{fffd}");
        assert_eq!(counts, Sanitized { nul: 2, invalid_utf8: 2, ..Sanitized::default() });
    }

    #[test]
    fn only_escapes_that_postgres_rejects_are_replaced() {
        for (json, expect, nul, lone) in [
            (r#"{"a":"x\u0000y"}"#, r#"{"a":"x\ufffdy"}"#, 1, 0),
            (r#"{"a":"x\\u0000y"}"#, r#"{"a":"x\\u0000y"}"#, 0, 0),
            (r#"{"a":"\\\u0000"}"#, r#"{"a":"\\\ufffd"}"#, 1, 0),
            (r#"{"a":"\ud83d\ude00"}"#, r#"{"a":"\ud83d\ude00"}"#, 0, 0),
            (r#"{"a":"\ud83d"}"#, r#"{"a":"\ufffd"}"#, 0, 1),
            (r#"{"a":"\uDE00\uD83D\u0041"}"#, r#"{"a":"\ufffd\ufffd\u0041"}"#, 0, 2),
        ] {
            let (text, counts) = sanitized(json);
            assert_eq!(text, expect);
            assert_eq!((counts.nul, counts.lone_surrogate), (nul, lone), "{json}");
        }
    }

    proptest! {
        #[test]
        fn unescaping_agrees_with_serde_json(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let (mut out, mut counts) = (String::new(), Sanitized::default());
            unescape(&json[1..json.len() - 1], &mut out, &mut counts);
            prop_assert_eq!(out, text.replace('\0', "\u{fffd}"));
            let mut quoted = String::new();
            for unit in text.encode_utf16() {
                quoted.push_str(&format!("\\u{unit:04x}"));
            }
            let mut out = String::new();
            unescape(&quoted, &mut out, &mut counts);
            prop_assert_eq!(out, text.replace('\0', "\u{fffd}"));
        }

        #[test]
        fn any_text_is_sanitized_without_a_panic(text in r#"(\\|u|0|d|8|D|e|c|"|é){0,40}"#) {
            let _ = sanitized(&text);
            unescape(&text, &mut String::new(), &mut Sanitized::default());
        }
    }
}
