//! Text comparison: every kind becomes a regular expression of the crate `regex`, which the stores translate.
//!
//! A word ends where no letter, digit or underscore follows. Every character above ASCII counts as a letter, because
//! what is a letter depends on a database's locale, and results must not depend on the store.

use std::fmt;

use regex::{Regex, RegexBuilder};

use crate::pattern;

/// Maximum length of a pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Maximum size of a compiled pattern in bytes.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// A character that is not part of a word.
const OUTSIDE: &str = r"[^0-9A-Za-z_\x{80}-\x{10FFFF}]";

/// A compiled text comparison.
#[derive(Clone)]
pub struct Text {
    /// The text or regular expression to search for.
    pattern: String,
    kind: TextKind,
    /// Whether A to Z and a to z are distinct. A regular expression specifies this itself.
    case_sensitive: bool,
    regex: Regex,
    /// The equivalent regular expression of `PostgreSQL`.
    postgres: String,
    needs_unicode: bool,
}

/// Where the pattern must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// Anywhere, as whole words: a word or a phrase.
    Words,
    /// Anywhere, at the start of a word.
    WordsFrom,
    /// Anywhere, at the end of a word.
    WordsTo,
    /// Anywhere.
    Substring,
    /// At the start.
    Prefix,
    /// At the end.
    Suffix,
    /// The pattern is a regular expression that matches anywhere.
    Regex,
}

/// An invalid pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl Text {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// The regular expression is invalid or too large, or the pattern is too long.
    pub fn new(kind: TextKind, pattern: impl Into<String>, case_sensitive: bool) -> Result<Self, PatternError> {
        let pattern = pattern.into();
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(PatternError(format!("pattern too long: expected at most {PATTERN_BYTES_MAX} bytes")));
        }
        let unusable = |detail: String| PatternError(format!("invalid regular expression: {detail}"));
        let expression = expression(kind, &pattern, case_sensitive);
        let regex = RegexBuilder::new(&expression).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
            let detail = match error {
                regex::Error::CompiledTooBig(_) => "it is too large when compiled".to_owned(),
                // The last line describes the error; those before it show where it is.
                error => error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
            };
            unusable(detail)
        })?;
        let (postgres, compares_unicode) = pattern::postgres(&expression).map_err(unusable)?;
        // What is not written by the user, such as the digits beyond ASCII in `\d`, is not worth a refusal.
        let needs_unicode = compares_unicode && !pattern.is_ascii();
        Ok(Self { pattern, kind, case_sensitive, regex, postgres, needs_unicode })
    }

    /// Whether `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The text or regular expression to search for.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Where the pattern must match.
    #[must_use]
    pub fn kind(&self) -> TextKind {
        self.kind
    }

    /// Whether A to Z and a to z are distinct.
    #[must_use]
    pub fn case_sensitive(&self) -> bool {
        self.case_sensitive
    }

    /// The equivalent regular expression of the crate `regex`.
    #[must_use]
    pub fn expression(&self) -> &str {
        self.regex.as_str()
    }

    /// The equivalent regular expression of `PostgreSQL`.
    #[must_use]
    pub fn postgres(&self) -> &str {
        &self.postgres
    }

    /// Whether [`postgres`](Self::postgres) has a set with characters above ASCII from the pattern: it compares their
    /// numbers, which depend on the database's encoding.
    #[must_use]
    pub fn needs_unicode(&self) -> bool {
        self.needs_unicode
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, self.kind, self.case_sensitive) == (&other.pattern, other.kind, other.case_sensitive)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?}{})", self.kind, self.pattern, if self.case_sensitive { "" } else { ", any case" })
    }
}

fn expression(kind: TextKind, pattern: &str, case_sensitive: bool) -> String {
    let is_word = |letter: Option<char>| letter.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii());
    let before = if is_word(pattern.chars().next()) { format!(r"(?:\A|{OUTSIDE})") } else { String::new() };
    let after = if is_word(pattern.chars().next_back()) { format!(r"(?:{OUTSIDE}|\z)") } else { String::new() };
    let literal = || literal(pattern, case_sensitive);
    match kind {
        TextKind::Words => format!("{before}{}{after}", literal()),
        TextKind::WordsFrom => format!("{before}{}", literal()),
        TextKind::WordsTo => format!("{}{after}", literal()),
        TextKind::Substring => literal(),
        TextKind::Prefix => format!(r"\A{}", literal()),
        TextKind::Suffix => format!(r"{}\z", literal()),
        TextKind::Regex => pattern.to_owned(),
    }
}

/// Escapes `text` as a regular expression.
fn literal(text: &str, case_sensitive: bool) -> String {
    let mut expression = String::with_capacity(text.len() * 2);
    for letter in text.chars() {
        if !case_sensitive && letter.is_ascii_alphabetic() {
            expression.extend(['[', letter.to_ascii_lowercase(), letter.to_ascii_uppercase(), ']']);
        } else {
            expression.push_str(&regex::escape(letter.encode_utf8(&mut [0; 4])));
        }
    }
    expression
}

/// Parses decimal notation. Numbers that a double cannot represent are rejected by counting digits, so that a database
/// can decide the same with a regular expression.
#[must_use]
pub fn number(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
    let digits = |text: &str, max| (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent = exponent.map(|exponent| exponent.strip_prefix(['-', '+']).unwrap_or(exponent));
    let is_number = digits(whole, 100)
        && fraction.is_none_or(|fraction| digits(fraction, 100))
        && exponent.is_none_or(|exponent| digits(exponent, 2));
    is_number.then(|| text.parse().ok()).flatten()
}
