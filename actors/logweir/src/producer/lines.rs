//! Builds bodies of records from bytes: the one implementation of lines, frames, joining and limits for all stream
//! sources.

use bytes::Bytes;

use super::framing::{Content, RecordSplitter};
use super::multiline::{LineJoiner, Multiline, push_record};

/// Builds a body from its input. Holds the body and an open record, never the input.
#[derive(Debug)]
pub struct BodyBuilder {
    splitter: RecordSplitter,
    /// `None` where each frame is a record.
    joiner: Option<LineJoiner>,
    body: Vec<u8>,
    fed: usize,
    discarded: Discarded,
    boundary: Boundary,
}

/// Numbers of discarded records, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Records above the limit.
    pub too_long: u64,
    /// Counted frames whose end never arrived.
    pub incomplete: u64,
}

/// A position in the input at which no record is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Number of input bytes before it.
    pub fed: usize,
    /// The input continues within an overlong line.
    pub skipping: bool,
    /// Records discarded before it.
    pub discarded: Discarded,
    body_len: usize,
}

impl BodyBuilder {
    /// Splits with `splitter` and joins lines by `rules`, if any.
    pub fn new(splitter: RecordSplitter, rules: Option<Multiline>) -> Self {
        Self {
            splitter,
            joiner: rules.map(LineJoiner::new),
            body: Vec::new(),
            fed: 0,
            discarded: Discarded::default(),
            boundary: Boundary { skipping: splitter.is_skipping(), ..Boundary::default() },
        }
    }

    /// Takes records from the start of `input`; returns the number of bytes taken. With `end`, there is no more input.
    pub fn feed(&mut self, input: &[u8], end: bool) -> usize {
        let mut used = 0;
        while let Some((content, bytes)) = self.splitter.next(&input[used..], end) {
            match (content, &mut self.joiner) {
                (Content::Skipped, _) => {}
                (Content::Record(record), None) => push_record(&mut self.body, record),
                (Content::Record(line), Some(joiner)) => {
                    if joiner.push(line, &mut self.body) && joiner.is_open() {
                        let (fed, discarded, body_len) = (self.fed, self.discarded, self.body.len());
                        self.boundary = Boundary { fed, skipping: false, discarded, body_len };
                    }
                }
                (Content::Discarded(reason), joiner) => {
                    joiner.iter_mut().for_each(|joiner| joiner.close(&mut self.body));
                    let too_long = reason == "line_too_long";
                    *(if too_long { &mut self.discarded.too_long } else { &mut self.discarded.incomplete }) += 1;
                }
            }
            used += bytes;
            self.fed += bytes;
            self.update_boundary();
        }
        used
    }

    /// Closes the open record.
    pub fn close(&mut self) {
        self.joiner.iter_mut().for_each(|joiner| joiner.close(&mut self.body));
        self.update_boundary();
    }

    fn update_boundary(&mut self) {
        if !self.is_open() {
            let (fed, discarded, body_len) = (self.fed, self.discarded, self.body.len());
            self.boundary = Boundary { fed, skipping: self.splitter.is_skipping(), discarded, body_len };
        }
    }

    /// Whether a record may still continue.
    pub fn is_open(&self) -> bool {
        self.joiner.as_ref().is_some_and(LineJoiner::is_open)
    }

    /// Size of the body so far, in bytes.
    pub fn body_len(&self) -> usize {
        self.body.len()
    }

    /// Takes the body so far; `None` without a record.
    pub fn take_body(&mut self) -> Option<Bytes> {
        (!self.body.is_empty()).then(|| std::mem::take(&mut self.body).into())
    }

    /// Takes the numbers of records discarded since the last call.
    pub fn take_discarded(&mut self) -> Discarded {
        std::mem::take(&mut self.discarded)
    }

    /// The last position at which no record was open.
    pub fn boundary(&self) -> Boundary {
        self.boundary
    }

    /// The last position at which no record was open, and the body up to there.
    pub fn into_boundary(mut self) -> (Boundary, Bytes) {
        self.body.truncate(self.boundary.body_len);
        (self.boundary, self.body.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::framing::Framing;
    use super::*;
    use crate::config;
    use logweir_formats::RECORD_END;
    use proptest::prelude::*;

    fn builder(max: usize) -> BodyBuilder {
        let rules = config::Multiline { stack_traces: true, bytes_max: max, ..config::Multiline::default() };
        BodyBuilder::new(RecordSplitter::new(Framing::Lines, max), Some(Multiline::new(&rules)))
    }

    fn whole(input: &[u8], max: usize) -> (Boundary, Vec<u8>) {
        let mut builder = builder(max);
        builder.feed(input, false);
        let (boundary, body) = builder.into_boundary();
        (boundary, body.to_vec())
    }

    #[test]
    fn a_record_that_may_continue_is_left_for_the_next_time() {
        let (boundary, body) = whole(b"one\n two\nthree\n fo", 100);
        assert_eq!((boundary.fed, &*body), (9, &b"one\n two\x1e"[..]));
        let (boundary, body) = whole(b"2026-11-21T08:00:00.1Z stdout F one\n2026-11-21T08:00:00.1Z stdout P t\n", 100);
        assert_eq!((boundary.fed, &*body), (36, &b"2026-11-21T08:00:00.1Z stdout F one\x1e"[..]));
    }

    proptest! {
        /// Required after a crash: the same range of bytes yields the same records, and no record is in two ranges.
        #[test]
        fn a_range_between_boundaries_yields_the_same_body_again(
            lines in prop::collection::vec("[ a]?[a-z]{0,12}|2026-11-21T08:00:00.1Z std(out|err) [FP] ?[a-z]{0,5}", 0..20),
            max in 20_usize..80,
        ) {
            let input = lines.join("\n") + "\n";
            let input = input.as_bytes();
            let mut all = builder(max);
            all.feed(input, true);
            all.close();
            let expect = all.take_body().unwrap_or_default();
            let (mut at, mut skipping, mut bodies) = (0, false, Vec::new());
            while at < input.len() {
                // A reader's window: some bytes, or all of them if no record ends within these.
                let end = (at + 30).min(input.len());
                let compose = |end: usize, whole: bool| {
                    let splitter = RecordSplitter::new(Framing::Lines, max).within_line(skipping);
                    let rules = config::Multiline { stack_traces: true, bytes_max: max, ..config::Multiline::default() };
                    let mut builder = BodyBuilder::new(splitter, Some(Multiline::new(&rules)));
                    builder.feed(&input[at..end], whole);
                    if whole {
                        builder.close();
                    }
                    builder.into_boundary()
                };
                let (mut boundary, mut body) = compose(end, false);
                if boundary.fed == 0 {
                    (boundary, body) = compose(input.len(), true);
                }
                let (again, same) = compose(at + boundary.fed, true);
                prop_assert_eq!((&boundary.fed, &body), (&again.fed, &same));
                at += boundary.fed;
                skipping = boundary.skipping;
                bodies.extend_from_slice(&body);
            }
            let records = |body: &[u8]| body.split(|&byte| byte == RECORD_END).map(<[u8]>::to_vec).collect::<Vec<_>>();
            let (mut expect, mut got) = (records(&expect), records(&bodies));
            expect.sort();
            got.sort();
            prop_assert_eq!(expect, got);
        }
    }
}
