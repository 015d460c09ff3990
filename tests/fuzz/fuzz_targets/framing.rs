//! The records of a stream do not depend on how it is cut into pieces.
#![no_main]

use logweir::internal::{Content, Framing, RecordSplitter};

const RECORD_BYTES_MAX: usize = 256;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else { return };
    for framing in [Framing::Lines, Framing::Syslog] {
        let whole = split(framing, data, data.len().max(1));
        assert_eq!(split(framing, data, usize::from(step).max(1)), whole);
        assert!(whole.iter().all(|record| record.len() <= RECORD_BYTES_MAX));
    }
});

fn split(framing: Framing, data: &[u8], step: usize) -> Vec<Vec<u8>> {
    let mut splitter = RecordSplitter::new(framing, RECORD_BYTES_MAX);
    let (mut records, mut pending) = (Vec::new(), Vec::new());
    let mut pieces = data.chunks(step).peekable();
    while let Some(piece) = pieces.next() {
        pending.extend_from_slice(piece);
        let end = pieces.peek().is_none();
        while let Some((content, used)) = splitter.next(&pending, end) {
            if let Content::Record(record) = content {
                records.push(record.to_vec());
            }
            assert!(used > 0, "each step must consume input");
            pending.drain(..used);
        }
    }
    records
}
