//! Invariants for arbitrary bytes. A target is one line that selects the format.

use logweir_formats::{Defaults, Format};
use logweir_formats::{NAME_BYTES_MAX, Parsed, parse};
use logweir_record::codec;

/// Time of arrival.
const RECEIVED_US: i64 = 1_763_640_000_000_000;
/// Longer lines are discarded.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A body of `format` yields records that the stores accept, or a rejection that is the sender's fault.
pub fn body(format: Format, data: &[u8]) {
    let Parsed { chunk, report, .. } = match parse(data, format, &Defaults::default(), RECEIVED_US, LINE_BYTES_MAX) {
        Ok(parsed) => parsed,
        Err(rejection) => {
            assert!(!rejection.detail.is_empty(), "{rejection}");
            return;
        }
    };
    chunk.validate().expect("a valid chunk");
    assert_eq!(chunk.len(), report.accepted as usize);
    for record in chunk.iter() {
        assert!((1..=NAME_BYTES_MAX).contains(&record.service.len()), "service {:?}", record.service);
        assert!(record.host.len() <= NAME_BYTES_MAX, "host {:?}", record.host);
        for text in [record.service, record.host, record.message, record.attributes] {
            assert!(!text.contains('\0'), "PostgreSQL rejects NUL: {text:?}");
        }
        if !record.attributes.is_empty() {
            let attributes: serde_json::Value = serde_json::from_str(record.attributes)
                .unwrap_or_else(|error| panic!("{error}: {}", record.attributes));
            assert!(attributes.is_object(), "{attributes}");
        }
    }
    let (id, payload) = codec::encode(&chunk).expect("a chunk that fits into a frame");
    assert_eq!(codec::decode(id, &payload).expect("the encoded chunk"), chunk);
}

/// Each non-blank line is a record or is counted as too long: none is lost or duplicated.
pub fn each_line_is_one_record(format: Format, data: &[u8]) {
    let parsed = parse(data, format, &Defaults::default(), RECEIVED_US, LINE_BYTES_MAX);
    if let Ok(Parsed { report, .. }) = parsed {
        let text = String::from_utf8_lossy(data);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines = text.split('\n').filter(|line| !line.trim_ascii().is_empty()).count();
        assert_eq!(lines, (report.accepted + report.rejected) as usize);
    }
}
