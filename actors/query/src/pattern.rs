//! Translates a regular expression of the crate `regex` into one of `PostgreSQL` that matches the same texts.
//!
//! The translation works on the parsed expression: classes become ranges of code points, and case insensitivity has
//! already become classes. The result therefore depends on no locale, no collation, and no difference between the two
//! dialects; expressions that `PostgreSQL` cannot represent are rejected for every store.
//!
//! Nor does it depend on the database's encoding, as far as possible: an escape such as `\u65e5` is the number of a
//! character in that encoding and never matches where it is not Unicode. So characters above ASCII are written as such,
//! and a class that has all of them as the complement of ASCII characters. What remains are classes with some of them.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Maximum repetition count of `PostgreSQL`.
const REPETITIONS_MAX: u32 = 255;

/// Translates `expression`, or returns why that is impossible. Also returns whether the result compares numbers of
/// characters above ASCII, which are those of Unicode in some encodings only.
pub(crate) fn postgres(expression: &str) -> Result<(String, bool), String> {
    let hir = ParserBuilder::new().build().parse(expression).map_err(|error| error.to_string())?;
    let mut out = Pattern { text: String::with_capacity(expression.len() * 2), compares_unicode: false };
    write(&mut out, &hir)?;
    Ok((out.text, out.compares_unicode))
}

/// A translation under construction.
struct Pattern {
    text: String,
    compares_unicode: bool,
}

impl Pattern {
    fn push(&mut self, letter: char) {
        self.text.push(letter);
    }

    fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }
}

/// Appends `hir` as one atom, or as a sequence of atoms inside `(?:…)`.
fn write(out: &mut Pattern, hir: &Hir) -> Result<(), String> {
    match hir.kind() {
        HirKind::Empty => out.push_str("(?:)"),
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).map_err(|_| "matching parts of a character is not supported")?;
            out.push_str("(?:");
            text.chars().for_each(|letter| push_letter(out, letter));
            out.push(')');
        }
        HirKind::Class(class) => write_class(out, class),
        HirKind::Look(look) => assertion(out, *look)?,
        HirKind::Repetition(repetition) => {
            let max = repetition.max;
            if repetition.min > REPETITIONS_MAX || max.is_some_and(|max| max > REPETITIONS_MAX) {
                return Err(format!("repetition counts above {REPETITIONS_MAX} are not supported"));
            }
            // A quantifier must not directly follow an assertion.
            out.push_str("(?:");
            write(out, &repetition.sub)?;
            out.push(')');
            match max {
                Some(max) => out.push_str(&format!("{{{},{max}}}", repetition.min)),
                None if repetition.min == 0 => out.push('*'),
                None => out.push_str(&format!("{{{},}}", repetition.min)),
            }
        }
        HirKind::Capture(capture) => write(out, &capture.sub)?,
        HirKind::Concat(parts) => {
            out.push_str("(?:");
            parts.iter().try_for_each(|part| write(out, part))?;
            out.push(')');
        }
        HirKind::Alternation(interpretations) => {
            out.push_str("(?:");
            for (nth, alternative) in interpretations.iter().enumerate() {
                if nth > 0 {
                    out.push('|');
                }
                write(out, alternative)?;
            }
            out.push(')');
        }
    }
    Ok(())
}

fn push_letter(out: &mut Pattern, letter: char) {
    if letter.is_ascii_alphanumeric() || letter == '_' || letter == ' ' || !letter.is_ascii() {
        out.push(letter);
    } else {
        push_escaped(out, letter);
    }
}

fn push_escaped(out: &mut Pattern, letter: char) {
    out.push_str(&match u32::from(letter) {
        code if code <= 0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    });
}

fn write_class(out: &mut Pattern, class: &Class) {
    let ranges: Vec<(char, char)> = match class {
        Class::Unicode(class) => class.iter().map(|range| (range.start(), range.end())).collect(),
        Class::Bytes(class) => class.iter().map(|range| (range.start().into(), range.end().into())).collect(),
    };
    // NUL occurs in no text and in no pattern.
    let ranges = ranges.into_iter().filter(|&(_, end)| end > '\0').map(|(start, end)| (start.max('\u{1}'), end));
    let ranges: Vec<(char, char)> = ranges.collect();
    match ranges.last() {
        // A lookahead that never matches.
        None => out.push_str("(?:(?!))"),
        Some(&(start, char::MAX)) if start <= '\u{80}' => {
            let outside = ascii_gaps(&ranges);
            if outside.is_empty() {
                // Any character: here a period also matches a line break.
                out.push('.');
            } else {
                write_set(out, "[^", &outside);
            }
        }
        Some(&(_, end)) => {
            out.compares_unicode |= !end.is_ascii();
            write_set(out, "[", &ranges);
        }
    }
}

/// Returns the ASCII characters except NUL that are in none of `ranges`, which are in order.
fn ascii_gaps(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let letter = |code: u32| char::from_u32(code).unwrap_or_default();
    let (mut gaps, mut next) = (Vec::new(), 1);
    for &(start, end) in ranges {
        if u32::from(start) > next {
            gaps.push((letter(next), letter(u32::from(start) - 1)));
        }
        next = u32::from(end).saturating_add(1);
    }
    gaps
}

fn write_set(out: &mut Pattern, open: &str, ranges: &[(char, char)]) {
    out.push_str(open);
    for &(start, end) in ranges {
        push_escaped(out, start);
        if end > start {
            out.push('-');
            push_escaped(out, end);
        }
    }
    out.push(']');
}

fn assertion(out: &mut Pattern, look: Look) -> Result<(), String> {
    let mut word = |expression| -> Result<String, String> {
        let (text, compares_unicode) = postgres(expression)?;
        out.compares_unicode |= compares_unicode;
        Ok(text)
    };
    let boundary = |word: String| format!("(?:(?<={word})(?!{word})|(?<!{word})(?={word}))");
    let inside = |word: String| format!("(?:(?<={word})(?={word})|(?<!{word})(?!{word}))");
    let text = match look {
        Look::Start => r"(?:\A)".to_owned(),
        Look::End => r"(?:\Z)".to_owned(),
        Look::StartLF => r"(?:\A|(?<=\u000a))".to_owned(),
        Look::EndLF => r"(?:\Z|(?=\u000a))".to_owned(),
        Look::WordAscii => boundary(word(r"(?-u:\w)")?),
        Look::WordAsciiNegate => inside(word(r"(?-u:\w)")?),
        Look::WordUnicode => boundary(word(r"\w")?),
        Look::WordUnicodeNegate => inside(word(r"\w")?),
        _ => return Err("word boundaries other than \\b, and (?R), are not supported".to_owned()),
    };
    out.push_str(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_translated_by_meaning() {
        for (expression, translated) in [
            ("ab", "(?:ab)"),
            ("a|b", r"[\u0061-\u0062]"),
            ("a.c", r"(?:(?:a)[^\u000a](?:c))"),
            ("(?s)a.", r"(?:(?:a).)"),
            ("[^b-y0]", r"[^\u0030\u0062-\u0079]"),
            ("日+", r"(?:(?:日)){1,}"),
            ("(?i)k", r"[\u004b\u006b\u212a]"),
            ("^x$", r"(?:(?:\A)(?:x)(?:\Z))"),
            ("(ab)*?", r"(?:(?:ab))*"),
            (r"\.{2,3}", r"(?:(?:\u002e)){2,3}"),
        ] {
            assert_eq!(postgres(expression).map(|(text, _)| text).as_deref(), Ok(translated), "{expression}");
        }
        assert!(postgres("a{300}").is_err());
        assert!(postgres(r"\b{start}x").is_err());
    }

    #[test]
    fn only_a_class_with_some_characters_above_ascii_depends_on_the_encoding() {
        for (expression, depends) in [
            ("café", false),
            ("日+|語", false),
            ("a.*b", false),
            ("[^x]", false),
            ("[日本]", true),
            (r"\w", true),
            (r"\bé", true),
        ] {
            assert_eq!(postgres(expression).map(|(_, depends)| depends), Ok(depends), "{expression}");
        }
    }
}
