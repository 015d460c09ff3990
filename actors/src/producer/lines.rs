//! Bytes become bodies of records: one place for lines, frames, joining and limits, for every source that reads a stream.

use bytes::Bytes;

use super::framing::{Content, Cutter};
use super::multiline::{Joiner, Multiline, push_record};

/// Makes a body of what it is fed. Holds a body and an open record, never its input.
#[derive(Debug)]
pub struct Composer {
    cutter: Cutter,
    /// None where frames are records.
    joiner: Option<Joiner>,
    body: Vec<u8>,
    fed: usize,
    discarded: Discarded,
    whole: Boundary,
}

/// Records that are not kept, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Above the limit.
    pub too_long: u64,
    /// A counted frame whose end never came.
    pub incomplete: u64,
}

/// A place in the input at which no record is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Bytes of the input before it.
    pub fed: usize,
    /// The input goes on inside of a line that is too long.
    pub skipping: bool,
    /// Records before it that are not kept.
    pub discarded: Discarded,
    body_len: usize,
}

impl Composer {
    /// Cuts with `cutter` and joins by `rules`, if there are any.
    pub fn new(cutter: Cutter, rules: Option<Multiline>) -> Self {
        Self {
            cutter,
            joiner: rules.map(Joiner::new),
            body: Vec::new(),
            fed: 0,
            discarded: Discarded::default(),
            whole: Boundary { skipping: cutter.is_skipping(), ..Boundary::default() },
        }
    }

    /// Takes the records off the head of `input`; returns how many bytes that were. Nothing follows at an `end`.
    pub fn feed(&mut self, input: &[u8], end: bool) -> usize {
        let mut used = 0;
        while let Some((content, bytes)) = self.cutter.next(&input[used..], end) {
            match (content, &mut self.joiner) {
                (Content::Skipped, _) => {}
                (Content::Record(record), None) => push_record(&mut self.body, record),
                (Content::Record(line), Some(joiner)) => {
                    if joiner.push(line, &mut self.body) && joiner.is_open() {
                        let (fed, discarded, body_len) = (self.fed, self.discarded, self.body.len());
                        self.whole = Boundary { fed, skipping: false, discarded, body_len };
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
            self.note_boundary();
        }
        used
    }

    /// Ends what is open.
    pub fn close(&mut self) {
        self.joiner.iter_mut().for_each(|joiner| joiner.close(&mut self.body));
        self.note_boundary();
    }

    fn note_boundary(&mut self) {
        if !self.is_open() {
            let (fed, discarded, body_len) = (self.fed, self.discarded, self.body.len());
            self.whole = Boundary { fed, skipping: self.cutter.is_skipping(), discarded, body_len };
        }
    }

    /// Whether a record may still go on.
    pub fn is_open(&self) -> bool {
        self.joiner.as_ref().is_some_and(Joiner::is_open)
    }

    /// Bytes of the body so far.
    pub fn body_len(&self) -> usize {
        self.body.len()
    }

    /// The body so far; none without a record.
    pub fn take_body(&mut self) -> Option<Bytes> {
        (!self.body.is_empty()).then(|| std::mem::take(&mut self.body).into())
    }

    /// What was not kept since the last call.
    pub fn take_discarded(&mut self) -> Discarded {
        std::mem::take(&mut self.discarded)
    }

    /// The last place at which no record was open.
    pub fn whole(&self) -> Boundary {
        self.whole
    }

    /// The last place at which no record was open, and the body up to there.
    pub fn into_whole(mut self) -> (Boundary, Bytes) {
        self.body.truncate(self.whole.body_len);
        (self.whole, self.body.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::framing::Framing;
    use super::*;
    use crate::config;
    use crate::message::RECORD_END;
    use proptest::prelude::*;

    fn composer(max: usize) -> Composer {
        let rules = config::Multiline { stack_traces: true, bytes_max: max, ..config::Multiline::default() };
        Composer::new(Cutter::new(Framing::Lines, max), Some(Multiline::new(&rules)))
    }

    fn whole(input: &[u8], max: usize) -> (Boundary, Vec<u8>) {
        let mut composer = composer(max);
        composer.feed(input, false);
        let (boundary, body) = composer.into_whole();
        (boundary, body.to_vec())
    }

    #[test]
    fn what_may_go_on_is_left_for_the_next_time() {
        let (boundary, body) = whole(b"one\n two\nthree\n fo", 100);
        assert_eq!((boundary.fed, &*body), (9, &b"one\n two\x1e"[..]));
        let (boundary, body) = whole(b"2026-11-21T08:00:00.1Z stdout F one\n2026-11-21T08:00:00.1Z stdout P t\n", 100);
        assert_eq!((boundary.fed, &*body), (36, &b"2026-11-21T08:00:00.1Z stdout F one\x1e"[..]));
    }

    proptest! {
        /// What a crash asks for: the same range of the same bytes makes the same records, and no record is in two ranges.
        #[test]
        fn a_range_that_was_whole_once_makes_the_same_body_again(
            lines in prop::collection::vec("[ a]?[a-z]{0,12}|2026-11-21T08:00:00.1Z std(out|err) [FP] ?[a-z]{0,5}", 0..20),
            max in 20_usize..80,
        ) {
            let input = lines.join("\n") + "\n";
            let input = input.as_bytes();
            let mut all = composer(max);
            all.feed(input, true);
            all.close();
            let expect = all.take_body().unwrap_or_default();
            let (mut at, mut skipping, mut bodies) = (0, false, Vec::new());
            while at < input.len() {
                // A window as a reader has it: some bytes, and all that there are if nothing ends in these.
                let end = (at + 30).min(input.len());
                let compose = |end: usize, whole: bool| {
                    let cutter = Cutter::new(Framing::Lines, max).in_a_line(skipping);
                    let rules = config::Multiline { stack_traces: true, bytes_max: max, ..config::Multiline::default() };
                    let mut composer = Composer::new(cutter, Some(Multiline::new(&rules)));
                    composer.feed(&input[at..end], whole);
                    if whole {
                        composer.close();
                    }
                    composer.into_whole()
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
