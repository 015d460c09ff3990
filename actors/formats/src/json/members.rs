//! Finds the members of a JSON object in one pass over its bytes.
//!
//! - It accepts only what is certainly valid JSON and nothing unusual: a name with an escape, deep nesting, a number
//!   that may not fit into a double, or any mistake sends the text to serde_json, which has precise error messages. So
//!   the two cannot disagree on what is stored, which a test checks.
//! - serde_json alone takes twice as long: it scans each raw value byte by byte, and again as UTF-8.

/// Deeper values are left to serde_json.
const DEPTH_MAX: usize = 16;
/// Longer numbers, and exponents above two digits, may not fit into a double.
const MANTISSA_MAX: usize = 200;
/// Bytes that are examined together.
const BLOCK: usize = 16;

/// A member as it appears in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMember<'a> {
    /// Without its quotes; contains no escape.
    pub name: &'a str,
    /// Raw JSON.
    pub value: &'a str,
    /// The value is a string that contains an escape, or not a string.
    pub escaped: bool,
}

/// Passes the members of the object `text` to `each`, in order. Returns `false` if the text has to be parsed otherwise;
/// what was passed until then must be ignored.
pub fn members<'a>(text: &'a str, mut each: impl FnMut(RawMember<'a>)) -> bool {
    let bytes = text.as_bytes();
    read(text, bytes, &mut each).is_some_and(|end| skip_space(bytes, end) == bytes.len())
}

/// The index after the object.
fn read<'a>(text: &'a str, bytes: &[u8], each: &mut impl FnMut(RawMember<'a>)) -> Option<usize> {
    let mut at = expect(bytes, skip_space(bytes, 0), b'{')?;
    at = skip_space(bytes, at);
    if *bytes.get(at)? == b'}' {
        return Some(at + 1);
    }
    loop {
        let name_start = expect(bytes, at, b'"')?;
        let name_end = plain_end(bytes, name_start);
        at = expect(bytes, name_end, b'"')?;
        at = skip_space(bytes, expect(bytes, skip_space(bytes, at), b':')?);
        let (end, escaped) = value(bytes, at, 0)?;
        each(RawMember { name: text.get(name_start..name_end)?, value: text.get(at..end)?, escaped });
        at = skip_space(bytes, end);
        match bytes.get(at)? {
            b',' => at = skip_space(bytes, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

#[inline]
fn expect(bytes: &[u8], at: usize, byte: u8) -> Option<usize> {
    (*bytes.get(at)? == byte).then_some(at + 1)
}

#[inline]
fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The index after the value at `at`, and whether it is anything but a plain string.
#[inline]
fn value(bytes: &[u8], at: usize, depth: usize) -> Option<(usize, bool)> {
    match bytes.get(at)? {
        b'"' => {
            let end = plain_end(bytes, at + 1);
            match bytes.get(end)? {
                b'"' => Some((end + 1, false)),
                _ => Some((escaped_string(bytes, end)?, true)),
            }
        }
        b'{' => Some((container(bytes, at, depth, true)?, true)),
        b'[' => Some((container(bytes, at, depth, false)?, true)),
        b't' => Some((literal(bytes, at, b"true")?, true)),
        b'f' => Some((literal(bytes, at, b"false")?, true)),
        b'n' => Some((literal(bytes, at, b"null")?, true)),
        _ => Some((number(bytes, at)?, true)),
    }
}

/// Skips the rest of a string from its first `\`.
fn escaped_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => match bytes.get(at + 1)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at += 6,
                _ => return None,
            },
            _ => return None, // a control character
        }
        at = plain_end(bytes, at);
    }
}

fn container(bytes: &[u8], at: usize, depth: usize, is_object: bool) -> Option<usize> {
    if depth == DEPTH_MAX {
        return None;
    }
    let close = if is_object { b'}' } else { b']' };
    let mut at = skip_space(bytes, at + 1);
    if *bytes.get(at)? == close {
        return Some(at + 1);
    }
    loop {
        if is_object {
            let end = plain_end(bytes, expect(bytes, at, b'"')?);
            at = match bytes.get(end)? {
                b'"' => end + 1,
                _ => escaped_string(bytes, end)?,
            };
            at = skip_space(bytes, expect(bytes, skip_space(bytes, at), b':')?);
        }
        (at, _) = value(bytes, at, depth + 1)?;
        at = skip_space(bytes, at);
        match *bytes.get(at)? {
            b',' => at = skip_space(bytes, at + 1),
            byte if byte == close => return Some(at + 1),
            _ => return None,
        }
    }
}

fn literal(bytes: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    bytes[at..].starts_with(word).then_some(at + word.len())
}

fn number(bytes: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    at += usize::from(bytes[at] == b'-');
    match bytes.get(at)? {
        b'0' => at += 1,
        b'1'..=b'9' => at = digits(bytes, at)?,
        _ => return None,
    }
    if bytes.get(at) == Some(&b'.') {
        at = digits(bytes, at + 1)?;
    }
    let mantissa = at - start;
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        let exponent = at;
        at = digits(bytes, at)?;
        if at - exponent > 2 {
            return None;
        }
    }
    (mantissa <= MANTISSA_MAX).then_some(at)
}

/// Skips at least one digit.
fn digits(bytes: &[u8], at: usize) -> Option<usize> {
    let len = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    (len > 0).then_some(at + len)
}

/// The first byte from `at` that a plain string cannot contain (a quote, a backslash or a control character), or the
/// end.
#[inline]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(block) = bytes.get(at..).and_then(|rest| rest.first_chunk::<BLOCK>()) {
        let found = specials(block);
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += BLOCK;
    }
    while bytes.get(at).is_some_and(|&byte| !is_special(byte)) {
        at += 1;
    }
    at
}

const fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

/// One bit for each byte of the block that [`is_special`].
#[cfg(target_arch = "x86_64")]
#[inline]
fn specials(block: &[u8; BLOCK]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: SSE2 is part of every x86-64, the block has the 16 bytes that are loaded, and the load needs no alignment.
    let found = unsafe {
        let block = _mm_loadu_si128(block.as_ptr().cast());
        let quote = _mm_cmpeq_epi8(block, _mm_set1_epi8(b'"'.cast_signed()));
        let backslash = _mm_cmpeq_epi8(block, _mm_set1_epi8(b'\\'.cast_signed()));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(block, _mm_set1_epi8(0x1f)), block);
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, backslash), control))
    };
    found.cast_unsigned()
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn specials(block: &[u8; BLOCK]) -> u32 {
    block.iter().enumerate().fold(0, |found, (nth, &byte)| found | u32::from(is_special(byte)) << nth)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    type Pairs = Vec<(String, String)>;

    fn fast(text: &str) -> Option<Pairs> {
        let mut found = Vec::new();
        members(text, |member| found.push((member.name.to_owned(), member.value.to_owned()))).then_some(found)
    }

    /// The members according to serde_json, in order, with duplicates.
    fn slow(text: &str) -> Option<Pairs> {
        struct Members(Pairs);
        impl<'de> serde::Deserialize<'de> for Members {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = Members;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                        let mut found = Vec::new();
                        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                            found.push((name, value.get().to_owned()));
                        }
                        Ok(Members(found))
                    }
                }
                deserializer.deserialize_map(Visitor)
            }
        }
        serde_json::from_str::<Members>(text).ok().map(|members| members.0)
    }

    #[test]
    fn typical_objects_need_no_fallback() {
        for text in [
            r"{}",
            r#" { "a" : 1 , "b":"x" } "#,
            r#"{"ts":"2026-01-01T00:00:00Z","n":-0.5e+7,"t":true,"f":false,"z":null,"s":"said \"no\"\u00e4\n","o":{"a":[1,{}],"b\n":[]}}"#,
            r#"{"long":"0123456789abcdef0123456789abcdef\\0123456789abcdef","ä":"✓ and more than sixteen bytes"}"#,
        ] {
            assert_eq!(fast(text), slow(text), "{text}");
            assert!(fast(text).is_some(), "{text}");
        }
    }

    #[test]
    fn invalid_json_is_never_accepted() {
        for text in [
            "",
            "{",
            "[]",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":1e}"#,
            r#"{"a":-}"#,
            r#"{"a":tru}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            "{\"a\":\"\t\"}",
            "{\"a\":\"0123456789abcdef\u{1}\"}",
            r#"{"a":"unterminated}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":{"b" 1}}"#,
            r#"{"a":1} x"#,
            r#"{"a":1}}"#,
        ] {
            assert_eq!((fast(text), slow(text)), (None, None), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn it_never_disagrees_with_serde_json(text in r#"(\{("[a-z"\\ä]{0,20}"[ :]{0,2}("[ -~ä\t]{0,40}"|-?[0-9.eE+]{1,6}|true|null|[\[\]{},:]{1,4}|\{"x":\[1,"y"\]\}),?){0,4}\}?[ ]?)"#) {
            if let Some(found) = fast(&text) {
                prop_assert_eq!(Some(found), slow(&text));
            }
        }

        #[test]
        fn a_changed_byte_never_leads_to_a_disagreement(at in 0_usize..120, byte in 0_u8..128) {
            let text = r#"{"ts":"2026-01-01T00:00:00Z","n":-12.5e3,"s":"a \"quoted\" word \u00e4 ok","o":{"a":[1,true,null],"b":"c"},"e":""}"#;
            let mut bytes = text.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let text = String::from_utf8(bytes).unwrap();
            if let Some(found) = fast(&text) {
                prop_assert_eq!(Some(found), slow(&text));
            }
        }
    }
}
