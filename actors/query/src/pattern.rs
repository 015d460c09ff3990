//! Translates a regular expression of the crate `regex` into one of `PostgreSQL` that matches the same texts.
//!
//! The translation works on the parsed expression: classes become ranges of code points, and case insensitivity has
//! already become classes. The result therefore depends on no locale, no collation, and no difference between the two
//! dialects; expressions that `PostgreSQL` cannot represent are rejected for every store.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Maximum repetition count of `PostgreSQL`.
const REPETITIONS_MAX: u32 = 255;

/// Translates `expression`, or returns why that is impossible.
pub(crate) fn postgres(expression: &str) -> Result<String, String> {
    let hir = ParserBuilder::new().build().parse(expression).map_err(|error| error.to_string())?;
    let mut out = String::with_capacity(expression.len() * 2);
    write(&mut out, &hir)?;
    Ok(out)
}

/// Appends `hir` as one atom, or as a sequence of atoms inside `(?:…)`.
fn write(out: &mut String, hir: &Hir) -> Result<(), String> {
    match hir.kind() {
        HirKind::Empty => out.push_str("(?:)"),
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).map_err(|_| "matching parts of a character is not supported")?;
            out.push_str("(?:");
            text.chars().for_each(|letter| push_letter(out, letter));
            out.push(')');
        }
        HirKind::Class(class) => write_class(out, class),
        HirKind::Look(look) => out.push_str(&assertion(*look)?),
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

fn push_letter(out: &mut String, letter: char) {
    if letter.is_ascii_alphanumeric() || letter == '_' || letter == ' ' {
        out.push(letter);
    } else {
        push_escaped(out, letter);
    }
}

fn push_escaped(out: &mut String, letter: char) {
    out.push_str(&match u32::from(letter) {
        code if code <= 0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    });
}

fn write_class(out: &mut String, class: &Class) {
    let ranges: Vec<(char, char)> = match class {
        Class::Unicode(class) => class.iter().map(|range| (range.start(), range.end())).collect(),
        Class::Bytes(class) => class.iter().map(|range| (range.start().into(), range.end().into())).collect(),
    };
    // NUL occurs in no text and in no pattern.
    let ranges = ranges.into_iter().filter(|&(_, end)| end > '\0').map(|(start, end)| (start.max('\u{1}'), end));
    let before = out.len();
    out.push('[');
    for (start, end) in ranges {
        push_escaped(out, start);
        if end > start {
            out.push('-');
            push_escaped(out, end);
        }
    }
    if out.len() == before + 1 {
        // An empty class: a lookahead that never matches.
        out.truncate(before);
        out.push_str("(?:(?!))");
        return;
    }
    out.push(']');
}

fn assertion(look: Look) -> Result<String, String> {
    let word = |expression| -> Result<String, String> { postgres(expression) };
    let boundary = |word: String| format!("(?:(?<={word})(?!{word})|(?<!{word})(?={word}))");
    let inside = |word: String| format!("(?:(?<={word})(?={word})|(?<!{word})(?!{word}))");
    Ok(match look {
        Look::Start => r"(?:\A)".to_owned(),
        Look::End => r"(?:\Z)".to_owned(),
        Look::StartLF => r"(?:\A|(?<=\u000a))".to_owned(),
        Look::EndLF => r"(?:\Z|(?=\u000a))".to_owned(),
        Look::WordAscii => boundary(word(r"(?-u:\w)")?),
        Look::WordAsciiNegate => inside(word(r"(?-u:\w)")?),
        Look::WordUnicode => boundary(word(r"\w")?),
        Look::WordUnicodeNegate => inside(word(r"\w")?),
        _ => return Err("word boundaries other than \\b, and (?R), are not supported".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_translated_by_meaning() {
        for (expression, translated) in [
            ("ab", "(?:ab)"),
            ("a|b", r"[\u0061-\u0062]"),
            ("a.c", r"(?:(?:a)[\u0001-\u0009\u000b-\U0010ffff](?:c))"),
            ("(?i)k", r"[\u004b\u006b\u212a]"),
            ("^x$", r"(?:(?:\A)(?:x)(?:\Z))"),
            ("(ab)*?", r"(?:(?:ab))*"),
            (r"\.{2,3}", r"(?:(?:\u002e)){2,3}"),
        ] {
            assert_eq!(postgres(expression).as_deref(), Ok(translated), "{expression}");
        }
        assert!(postgres("a{300}").is_err());
        assert!(postgres(r"\b{start}x").is_err());
    }
}
