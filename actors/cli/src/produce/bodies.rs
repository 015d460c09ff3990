//! Splits input into bodies of whole lines, up to a size and a number of records.
//!
//! - A line is never split, so a body can exceed its size limit if it is a single line.
//! - Memory is bounded by one body and the longest line that a server can accept.
//! - From a pipe, a body holds the whole lines that are available: a slow writer's line is sent at once, and while all
//!   connections are busy the pipe collects the next body. From a file, bodies are full.

use std::io::{self, Read};

use logweir_record::codec::PAYLOAD_BYTES_MAX;

/// Limits of a body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size in bytes, unless one line is longer.
    pub bytes_max: usize,
    /// Number of records; at least 1.
    pub records_max: u64,
}

/// Splits lines into bodies.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: Vec<u8>,
}

impl Splitter {
    /// Removes the next body: whole lines, and the number of those that are not blank. With `all`, a body need not be
    /// full; with `end`, the last line need not end with a line feed.
    pub fn cut(&mut self, limits: Limits, all: bool, end: bool) -> Option<(Vec<u8>, u64)> {
        let (mut taken, mut records, mut full) = (0, 0, false);
        while !full {
            let rest = &self.buffer[taken..];
            let line = match memchr::memchr(b'\n', rest) {
                Some(at) => &rest[..=at],
                None if end && !rest.is_empty() => rest,
                None => break,
            };
            if taken > 0 && taken + line.len() > limits.bytes_max {
                full = true;
                break;
            }
            taken += line.len();
            records += u64::from(!line.trim_ascii().is_empty());
            full = taken >= limits.bytes_max || records >= limits.records_max;
        }
        if taken == 0 || !(full || all || end) {
            return None;
        }
        let rest = self.buffer.split_off(taken);
        Some((std::mem::replace(&mut self.buffer, rest), records))
    }

    /// Reads lines from `input` and passes each body to `emit`, until either ends. `limits` is called before each body.
    ///
    /// # Errors
    /// Reading failed, or a line is longer than any server accepts.
    pub fn read(
        &mut self,
        mut input: impl Read,
        eager: bool,
        mut limits: impl FnMut() -> Option<Limits>,
        mut emit: impl FnMut(Vec<u8>, u64) -> bool,
    ) -> io::Result<()> {
        loop {
            let Some(now) = limits() else { return Ok(()) };
            let before = self.buffer.len();
            let end = match input.by_ref().take(now.bytes_max.max(4096) as u64).read_some(&mut self.buffer) {
                Ok(read) => read == 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.buffer.len() > PAYLOAD_BYTES_MAX && memchr::memchr(b'\n', &self.buffer).is_none() {
                return Err(io::Error::other(format!("a line is longer than {PAYLOAD_BYTES_MAX} bytes")));
            }
            // A new body starts only after another line feed.
            if !end && memchr::memchr(b'\n', &self.buffer[before..]).is_none() {
                continue;
            }
            loop {
                let Some(now) = limits() else { return Ok(()) };
                let Some((body, records)) = self.cut(now, eager, end) else { break };
                if records > 0 && !emit(body, records) {
                    return Ok(());
                }
            }
            if end {
                return Ok(());
            }
        }
    }
}

/// A single `read` that appends what a pipe has available.
trait ReadSome {
    fn read_some(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize>;
}

impl<R: Read> ReadSome for io::Take<R> {
    fn read_some(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let start = buffer.len();
        let limit = usize::try_from(self.limit()).unwrap_or(usize::MAX);
        buffer.resize(start + limit, 0);
        let read = self.read(&mut buffer[start..]);
        buffer.truncate(start + read.as_ref().copied().unwrap_or(0));
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bodies(text: &[u8], limits: Limits, eager: bool) -> Vec<(Vec<u8>, u64)> {
        let mut bodies = vec![];
        let emit = |body: Vec<u8>, records| {
            bodies.push((body, records));
            true
        };
        Splitter::default().read(text, eager, || Some(limits), emit).unwrap();
        bodies
    }

    #[test]
    fn bodies_end_at_line_feeds_and_the_last_line_needs_none() {
        let limits = Limits { bytes_max: 8, records_max: 100 };
        let text = |text: &str, records| (text.as_bytes().to_vec(), records);
        assert_eq!(bodies(b"one\ntwo\nthree\n4", limits, false), [text("one\ntwo\n", 2), text("three\n4", 2)]);
        assert_eq!(
            bodies(b"longer than the limit\nx\n", limits, false),
            [text("longer than the limit\n", 1), text("x\n", 1)]
        );
        assert_eq!(bodies(b"\n\n  \n", limits, false), []);
        let limits = Limits { bytes_max: 100, records_max: 2 };
        assert_eq!(bodies(b"1\n\n2\n3\n", limits, false), [text("1\n\n2\n", 2), text("3\n", 1)]);
    }

    #[test]
    fn lines_of_a_pipe_are_sent_as_they_arrive() {
        struct Pipe(Vec<&'static [u8]>);
        impl Read for Pipe {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Ok(0);
                }
                let next = self.0.remove(0);
                buffer[..next.len()].copy_from_slice(next);
                Ok(next.len())
            }
        }
        let mut bodies = vec![];
        let limits = Limits { bytes_max: 1000, records_max: 1000 };
        let pipe = Pipe(vec![b"a\nb", b"b\n", b"c", b"c"]);
        Splitter::default()
            .read(
                pipe,
                true,
                || Some(limits),
                |body, _| {
                    bodies.push(body);
                    true
                },
            )
            .unwrap();
        assert_eq!(bodies, [b"a\n".to_vec(), b"bb\n".to_vec(), b"cc".to_vec()]);
    }

    proptest! {
        #[test]
        fn no_line_is_lost_duplicated_or_split(
            text in "[a\n]{0,200}", bytes_max in 1_usize..40, records_max in 1_u64..10, eager: bool,
        ) {
            let bodies = bodies(text.as_bytes(), Limits { bytes_max, records_max }, eager);
            let sent: Vec<u8> = bodies.iter().flat_map(|(body, _)| body.clone()).collect();
            let lines = |text: &[u8]| -> Vec<Vec<u8>> {
                text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
            };
            prop_assert_eq!(lines(&sent), lines(text.as_bytes()));
            for (body, records) in bodies {
                prop_assert_eq!(lines(&body).len() as u64, records);
                prop_assert!(records <= records_max);
                prop_assert!(body.len() <= bytes_max || records <= 1);
            }
        }
    }
}
