//! Splits a byte stream into records. Pure: the result does not depend on how the bytes arrive.
//!
//! Syslog over TCP has two framings, and senders use both on one port (RFC 6587): `LEN SP MESSAGE`, or a message up to
//! a line feed. They are distinguished for each frame: an octet count is digits, a space and the `<` that begins every
//! message, so a plain line that begins with a number stays a line.

/// How records are delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By line feeds.
    Lines,
    /// As syslog senders do over TCP and TLS.
    Syslog,
}

/// Maximum number of digits of an octet count.
const COUNT_DIGITS_MAX: usize = 8;

/// The beginning of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A record, without its delimiter.
    Record(&'a [u8]),
    /// The start of a record that is discarded, and the reason for the counter.
    Discarded(&'static str),
    /// The rest of such a record.
    Skipped,
}

/// Splits records off an input. Its only state is what it is skipping.
#[derive(Clone, Copy, Debug)]
pub struct RecordSplitter {
    framing: Framing,
    record_bytes_max: usize,
    skipping: Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    Nothing,
    Line,
    Octets(usize),
}

/// The beginning of a syslog frame.
enum Head {
    Counted {
        head: usize,
        len: usize,
    },
    Line,
    /// Not enough bytes to decide.
    Open,
}

impl RecordSplitter {
    /// Records above `record_bytes_max` are discarded.
    pub fn new(framing: Framing, record_bytes_max: usize) -> Self {
        Self { framing, record_bytes_max, skipping: Skip::Nothing }
    }

    /// Starts within an overlong line, or at the start of a record.
    pub fn within_line(mut self, skipping: bool) -> Self {
        self.skipping = if skipping { Skip::Line } else { Skip::Nothing };
        self
    }

    /// Whether it is within an overlong record.
    pub fn is_skipping(&self) -> bool {
        self.skipping != Skip::Nothing
    }

    /// Returns the beginning of `input` and its length in bytes; `None` if more input is needed. With `end`, there is
    /// no more.
    ///
    /// Never needs more input than the longest record and a few bytes.
    pub fn next<'a>(&mut self, input: &'a [u8], end: bool) -> Option<(Content<'a>, usize)> {
        if input.is_empty() {
            return None;
        }
        match self.skipping {
            Skip::Octets(left) => {
                let used = left.min(input.len());
                self.skipping = if used == left { Skip::Nothing } else { Skip::Octets(left - used) };
                return Some((Content::Skipped, used));
            }
            Skip::Line => {
                let line_end = memchr::memchr(b'\n', input);
                if line_end.is_some() {
                    self.skipping = Skip::Nothing;
                }
                return Some((Content::Skipped, line_end.map_or(input.len(), |at| at + 1)));
            }
            Skip::Nothing => {}
        }
        match if self.framing == Framing::Syslog { head(input) } else { Head::Line } {
            Head::Counted { head, len } => self.counted(input, head, len, end),
            Head::Open if !end => None,
            Head::Line | Head::Open => self.line(input, end),
        }
    }

    fn counted<'a>(&mut self, input: &'a [u8], head: usize, len: usize, end: bool) -> Option<(Content<'a>, usize)> {
        if len > self.record_bytes_max {
            self.skipping = Skip::Octets(len);
            return Some((Content::Discarded("line_too_long"), head));
        }
        match input.get(head..head + len) {
            Some(message) => Some((Content::Record(trimmed(message)), head + len)),
            None if end => Some((Content::Discarded("frame_incomplete"), input.len())),
            None => None,
        }
    }

    fn line<'a>(&mut self, input: &'a [u8], end: bool) -> Option<(Content<'a>, usize)> {
        let (line, used) = match memchr::memchr(b'\n', input) {
            Some(at) => (&input[..at], at + 1),
            None if end => (input, input.len()),
            None if input.len() > self.record_bytes_max + 1 => {
                self.skipping = Skip::Line;
                return Some((Content::Discarded("line_too_long"), input.len()));
            }
            None => return None,
        };
        // Judged by the bytes received, except for a carriage return, and not by what remains after trimming, so that
        // the result does not depend on how they arrive.
        let is_too_long = line.len() > self.record_bytes_max + 1 || trimmed(line).len() > self.record_bytes_max;
        let content = if is_too_long { Content::Discarded("line_too_long") } else { Content::Record(trimmed(line)) };
        Some((content, used))
    }
}

fn head(input: &[u8]) -> Head {
    let digits = input.iter().take(COUNT_DIGITS_MAX + 1).take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > COUNT_DIGITS_MAX || input[0] == b'0' {
        return Head::Line;
    }
    match (input.get(digits), input.get(digits + 1)) {
        (Some(b' '), Some(b'<')) => {
            let len = input[..digits].iter().fold(0, |len, digit| len * 10 + usize::from(digit - b'0'));
            Head::Counted { head: digits + 1, len }
        }
        (None, _) | (Some(b' '), None) => Head::Open,
        _ => Head::Line,
    }
}

/// Removes the line ends and NULs that some senders append.
fn trimmed(record: &[u8]) -> &[u8] {
    let end = record.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |at| at + 1);
    &record[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Splits `input`, which arrives in pieces of these sizes.
    fn split(framing: Framing, input: &[u8], pieces: &[usize], max: usize) -> (Vec<String>, Vec<&'static str>) {
        let (mut splitter, mut pending, mut rest) = (RecordSplitter::new(framing, max), Vec::new(), input);
        let (mut records, mut discarded) = (Vec::new(), Vec::new());
        for &piece in pieces.iter().cycle() {
            let (head, tail) = rest.split_at(piece.clamp(1, rest.len().max(1)).min(rest.len()));
            pending.extend_from_slice(head);
            rest = tail;
            while let Some((content, used)) = splitter.next(&pending, rest.is_empty()) {
                match content {
                    Content::Record(record) => records.push(String::from_utf8(record.to_vec()).unwrap()),
                    Content::Discarded(reason) => discarded.push(reason),
                    Content::Skipped => {}
                }
                pending.drain(..used);
            }
            assert!(pending.len() <= max + COUNT_DIGITS_MAX + 2 + piece, "{} bytes are held", pending.len());
            if rest.is_empty() {
                assert_eq!(pending, b"");
                return (records, discarded);
            }
        }
        unreachable!("the sizes repeat")
    }

    #[test]
    fn counted_frames_and_lines_may_be_mixed() {
        let input = b"12 <13>one\ntwo\n<13>three\n2026 was a year\n8 <13>four6 <1>end\n42 is not a frame\r\n17 <13>";
        let (records, discarded) = split(Framing::Syslog, input, &[3], 100);
        assert_eq!(
            records,
            ["<13>one\ntwo", "<13>three", "2026 was a year", "<13>four", "<1>end", "", "42 is not a frame"]
        );
        assert_eq!(discarded, ["frame_incomplete"]);
    }

    #[test]
    fn an_overlong_record_is_skipped_and_the_next_is_not() {
        let input = b"14 <13>0123456789<13>after\n<13>01234567890123456789\n99999999 <13>the rest";
        let (records, discarded) = split(Framing::Syslog, input, &[4], 10);
        assert_eq!(records, ["<13>after"]);
        assert_eq!(discarded, ["line_too_long", "line_too_long", "line_too_long"]);
    }

    #[test]
    fn a_line_that_ends_in_many_nuls_is_too_long_however_it_arrives() {
        let input = b"0123456789\0\0\0\n0123456789\r\n0123456789\0";
        for piece in [1, 3, input.len()] {
            let (records, discarded) = split(Framing::Lines, input, &[piece], 10);
            assert_eq!((records.len(), &*discarded), (2, &["line_too_long"][..]), "{records:?}");
        }
    }

    proptest! {
        #[test]
        fn frames_are_whole_and_in_order_however_they_arrive(
            messages in prop::collection::vec("<[a-z \n0-9]{0,30}x", 0..8),
            pieces in prop::collection::vec(1_usize..40, 1..6),
        ) {
            let counted: String = messages.iter().map(|message| format!("{} {message}", message.len())).collect();
            let (records, discarded) = split(Framing::Syslog, counted.as_bytes(), &pieces, 100);
            prop_assert_eq!((&records, discarded.len()), (&messages, 0));
            let lines: Vec<String> = messages.iter().map(|message| message.replace('\n', " ")).collect();
            let (records, discarded) = split(Framing::Lines, (lines.join("\n") + "\n").as_bytes(), &pieces, 100);
            let lines = if lines.is_empty() { vec![String::new()] } else { lines };
            prop_assert_eq!((records, discarded.len()), (lines, 0));
        }

        #[test]
        fn any_bytes_are_split_to_the_end(
            input in prop::collection::vec(prop::sample::select(&b"1290 <\nab\r\0"[..]), 0..200),
            pieces in prop::collection::vec(1_usize..40, 1..6),
        ) {
            let _ = split(Framing::Syslog, &input, &pieces, 20);
        }
    }
}
