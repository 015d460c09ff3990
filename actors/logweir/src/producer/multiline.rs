//! Decides which lines form one record: the parts of a container's split line, and the lines of a stack trace.
//!
//! Standard output and standard error of a container are joined separately. Without a configured start of a record
//! (`multiline.start`), a line belongs to the previous record if it looks like the inside of a stack trace:
//! - it begins with whitespace, `at `, `Caused by:`, `Suppressed:` or `... 12 more`;
//! - it begins with the qualified name of an exception (`java.lang.IllegalStateException: …`);
//! - it is part of a Python traceback, up to the line that names the exception. The traceback itself belongs to the
//!   line before it if that is an error, as written by `logging.exception`.

use regex::bytes::Regex;

use super::container;
use crate::config;
use logweir_formats::RECORD_END;

/// Rules for joining lines.
#[derive(Clone, Debug)]
pub struct Multiline {
    start: Option<Regex>,
    stack_traces: bool,
    bytes_max: usize,
}

impl Multiline {
    /// The configured rules.
    ///
    /// # Panics
    /// If the pattern is invalid, which the validation of the configuration rules out.
    #[must_use]
    pub fn new(config: &config::Multiline) -> Self {
        let start =
            (!config.start.is_empty()).then(|| Regex::new(&config.start).expect("checked with the configuration"));
        Self { start, stack_traces: config.stack_traces, bytes_max: config.bytes_max }
    }

    /// Whether each line is a record, except for lines split by a container runtime.
    fn is_off(&self) -> bool {
        self.start.is_none() && !self.stack_traces
    }

    /// Whether `line` belongs to the record `open`.
    fn continues(&self, open: &Open, line: &[u8]) -> bool {
        match &self.start {
            Some(start) => !start.is_match(line),
            None => {
                self.stack_traces && (open.python.goes_on(line) || is_inside(line) || open.leads_to_traceback(line))
            }
        }
    }
}

/// Whether a line looks like the inside of a stack trace.
fn is_inside(line: &[u8]) -> bool {
    line.starts_with(b" ")
        || line.starts_with(b"\t")
        || [&b"at "[..], b"Caused by:", b"Suppressed:"].iter().any(|start| line.starts_with(start))
        || (line.starts_with(b"... ") && line.ends_with(b" more"))
        || is_exception(line)
}

/// `java.lang.IllegalStateException` or `com.example.OutOfOrderError: why`.
fn is_exception(line: &[u8]) -> bool {
    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
    (name.ends_with(b"Exception") || name.ends_with(b"Error"))
        && name.contains(&b'.')
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'$'))
}

const TRACEBACK: &[u8] = b"Traceback (most recent call last):";

/// State of a record within a Python traceback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Python {
    Outside,
    /// After its first line, or a frame.
    Frames,
    /// After the line that names the exception.
    Named,
    /// After the words that introduce another traceback.
    Chained,
}

impl Python {
    fn goes_on(self, line: &[u8]) -> bool {
        match self {
            Self::Outside => false,
            Self::Frames => true,
            Self::Named => line.is_empty() || chains(line),
            Self::Chained => line.is_empty() || line.starts_with(TRACEBACK),
        }
    }

    fn after(self, line: &[u8]) -> Self {
        if line.starts_with(TRACEBACK) {
            return Self::Frames;
        }
        match self {
            Self::Frames if line.starts_with(b" ") => Self::Frames,
            Self::Frames => Self::Named,
            Self::Named if chains(line) => Self::Chained,
            other => other,
        }
    }
}

fn chains(line: &[u8]) -> bool {
    line.starts_with(b"During handling of the above exception") || line.starts_with(b"The above exception was")
}

/// A record that may continue.
#[derive(Debug)]
struct Open {
    text: Vec<u8>,
    is_open: bool,
    /// The next part continues the same line.
    is_partial: bool,
    /// Where the last line starts.
    line: usize,
    python: Python,
}

impl Open {
    fn new() -> Self {
        Self { text: Vec::new(), is_open: false, is_partial: false, line: 0, python: Python::Outside }
    }

    /// A traceback follows the error line that it explains.
    fn leads_to_traceback(&self, line: &[u8]) -> bool {
        let is_error = |word: &[u8]| memchr::memmem::find(&self.text, word).is_some();
        line.starts_with(TRACEBACK)
            && [&b"ERROR"[..], b"CRITICAL", b"error", b"FATAL"].iter().any(|word| is_error(word))
    }

    fn close(&mut self, body: &mut Vec<u8>) {
        if !self.is_open {
            return;
        }
        self.is_open = false;
        self.is_partial = false;
        self.python = Python::Outside;
        push_record(body, self.text.trim_ascii_end());
        self.text.clear();
    }
}

/// Appends a record to a body of [`Records`](logweir_formats::Format::Records); empty records are skipped.
pub fn push_record(body: &mut Vec<u8>, mut record: &[u8]) {
    if record.iter().all(u8::is_ascii_whitespace) {
        return;
    }
    while let Some(at) = memchr::memchr(RECORD_END, record) {
        body.extend_from_slice(&record[..at]);
        body.extend_from_slice("\u{241e}".as_bytes());
        record = &record[at + 1..];
    }
    body.extend_from_slice(record);
    body.push(RECORD_END);
}

/// Joins lines into records. Holds at most one open record for each of the two streams.
#[derive(Debug)]
pub struct LineJoiner {
    rules: Multiline,
    open: [Open; 2],
}

impl LineJoiner {
    /// A joiner without an open record.
    pub fn new(rules: Multiline) -> Self {
        Self { rules, open: [Open::new(), Open::new()] }
    }

    /// Whether a record may still continue.
    pub fn is_open(&self) -> bool {
        self.open.iter().any(|open| open.is_open)
    }

    /// Takes a line, which continues an open record or starts a new one, and appends completed records to `body`.
    /// Returns whether everything before this line is complete.
    pub fn push(&mut self, line: &[u8], body: &mut Vec<u8>) -> bool {
        let unwrapped = container::unwrap(line);
        let (stream, is_partial, envelope, message) = match &unwrapped {
            Some(line) => (usize::from(line.is_stderr), line.is_partial, &*line.envelope, &*line.message),
            None => (0, false, "", line),
        };
        let [this, other] = match &mut self.open {
            [out, err] if stream == 0 => [out, err],
            [out, err] => [err, out],
        };
        let fits = this.text.len() + message.len() < self.rules.bytes_max;
        if this.is_open && fits && (this.is_partial || self.rules.continues(this, message)) {
            if !this.is_partial {
                this.text.push(b'\n');
                this.line = this.text.len();
            }
            this.text.extend_from_slice(message);
            this.python = if is_partial { this.python } else { this.python.after(&this.text[this.line..]) };
            this.is_partial = is_partial;
            if self.rules.is_off() && !is_partial {
                this.close(body);
            }
            return false;
        }
        // A line in between also ends a record of the other stream, which would otherwise hold everything back.
        this.close(body);
        if !other.is_partial {
            other.close(body);
        }
        let is_clean = !other.is_open;
        if envelope.is_empty() && !is_partial && self.rules.is_off() {
            push_record(body, message);
            return is_clean;
        }
        if !envelope.is_empty() {
            this.text.extend_from_slice(envelope.as_bytes());
            this.text.extend_from_slice(b" F ");
        }
        this.line = this.text.len();
        this.text.extend_from_slice(message);
        this.is_open = true;
        this.is_partial = is_partial;
        this.python = this.python.after(&this.text[this.line..]);
        if self.rules.is_off() && !is_partial {
            this.close(body);
        }
        is_clean
    }

    /// Closes the open records.
    pub fn close(&mut self, body: &mut Vec<u8>) {
        self.open.iter_mut().for_each(|open| open.close(body));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(start: &str, stack_traces: bool, bytes_max: usize) -> Multiline {
        let start = start.to_owned();
        Multiline::new(&config::Multiline { start, stack_traces, timeout_ms: 0, bytes_max })
    }

    fn join(rules: Multiline, lines: &str) -> Vec<String> {
        let (mut joiner, mut body) = (LineJoiner::new(rules), Vec::new());
        for line in lines.lines() {
            joiner.push(line.as_bytes(), &mut body);
        }
        joiner.close(&mut body);
        let text = String::from_utf8(body).unwrap();
        text.split_terminator(char::from(RECORD_END)).map(str::to_owned).collect()
    }

    #[test]
    fn a_java_stack_trace_is_one_record() {
        let trace = "2026-11-21 ERROR it broke\njava.lang.IllegalStateException: no\n\tat a.B.c(B.java:1)\n\
                     Caused by: java.io.IOException: gone\n\tat a.B.d(B.java:2)\n\t... 3 more\n... 4 more";
        let lines = format!("before\n{trace}\nafter\n");
        assert_eq!(join(rules("", true, 1000), &lines), ["before", trace, "after"]);
    }

    #[test]
    fn a_chained_python_traceback_is_one_record_with_the_error_before_it() {
        let trace = "ERROR:root:it broke\nTraceback (most recent call last):\n  File \"a.py\", line 1, in f\n    g()\n\
                     ValueError: no\n\nDuring handling of the above exception, another exception occurred:\n\n\
                     Traceback (most recent call last):\n  File \"a.py\", line 2\nKeyError: 'x'";
        let lines = format!("INFO before\n{trace}\n\nINFO after\n");
        assert_eq!(join(rules("", true, 1000), &lines), ["INFO before", trace, "INFO after"]);
        let alone = "Traceback (most recent call last):\n  File \"a.py\", line 2\nKeyError: 'x'";
        let lines = format!("INFO before\n{alone}\nINFO after\n");
        assert_eq!(join(rules("", true, 1000), &lines), ["INFO before", alone, "INFO after"]);
    }

    #[test]
    fn a_pattern_determines_where_a_record_starts() {
        let lines = "[1] a\nb\n c\n[2] d\n\ne\n[3] f\n";
        assert_eq!(join(rules(r"^\[\d", true, 1000), lines), ["[1] a\nb\n c", "[2] d\n\ne", "[3] f"]);
    }

    #[test]
    fn nothing_is_joined_without_rules() {
        assert_eq!(join(rules("", false, 1000), "a\n b\n\n\tat c\n"), ["a", " b", "\tat c"]);
    }

    #[test]
    fn an_overlong_record_is_split_and_nothing_is_lost() {
        assert_eq!(join(rules("", true, 10), "a\n bcde\n fghi\n jkl\n"), ["a\n bcde", " fghi\n jkl"]);
    }

    #[test]
    fn parts_of_two_streams_are_joined_separately() {
        let lines = "2026-11-21T08:00:00.1Z stdout P one \n2026-11-21T08:00:00.2Z stderr P left \n\
                     2026-11-21T08:00:00.3Z stdout F two\n2026-11-21T08:00:00.4Z stderr F right\n\
                     2026-11-21T08:00:00.5Z stderr F \tat x\n";
        assert_eq!(
            join(rules("", true, 1000), lines),
            ["2026-11-21T08:00:00.1Z stdout F one two", "2026-11-21T08:00:00.2Z stderr F left right\n\tat x"]
        );
        assert_eq!(
            join(rules("", false, 1000), lines),
            [
                "2026-11-21T08:00:00.1Z stdout F one two",
                "2026-11-21T08:00:00.2Z stderr F left right",
                "2026-11-21T08:00:00.5Z stderr F \tat x"
            ]
        );
    }

    #[test]
    fn the_record_separator_within_a_record_is_made_visible() {
        assert_eq!(join(rules("", false, 100), "a\u{1e}b\n"), ["a␞b"]);
    }
}
