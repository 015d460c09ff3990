//! However a stream is cut into pieces, the same records come out of it.
#![no_main]

use logweir::producer::framing::{Content, Cutter, Framing};

const RECORD_BYTES_MAX: usize = 256;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else { return };
    for framing in [Framing::Lines, Framing::Syslog] {
        let whole = cut(framing, data, data.len().max(1));
        assert_eq!(cut(framing, data, usize::from(step).max(1)), whole);
        assert!(whole.iter().all(|record| record.len() <= RECORD_BYTES_MAX));
    }
});

fn cut(framing: Framing, data: &[u8], step: usize) -> Vec<Vec<u8>> {
    let mut cutter = Cutter::new(framing, RECORD_BYTES_MAX);
    let (mut records, mut pending) = (Vec::new(), Vec::new());
    let mut pieces = data.chunks(step).peekable();
    while let Some(piece) = pieces.next() {
        pending.extend_from_slice(piece);
        let end = pieces.peek().is_none();
        while let Some((content, used)) = cutter.next(&pending, end) {
            if let Content::Record(record) = content {
                records.push(record.to_vec());
            }
            assert!(used > 0, "it goes on");
            pending.drain(..used);
        }
    }
    records
}
