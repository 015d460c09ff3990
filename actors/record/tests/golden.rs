//! The bytes of a chunk are frozen: what an older version wrote must stay readable.

use logweir_record::chunk::Chunk;
use logweir_record::codec;
use logweir_record::record::{Record, Severity};

#[test]
fn a_chunk_matches_the_golden_file() {
    let mut chunk = Chunk::with_capacity(1_700_000_000_000_000, 2, 64);
    chunk.push(Record {
        ts_us: 1_700_000_000_123_456,
        severity: Severity::INFO,
        service: "api",
        host: "node-1",
        message: "grüße, world",
        attributes: "{\"status\":200}",
    });
    chunk.push(Record { ts_us: -1, severity: Severity::FATAL, service: "", host: "", message: "", attributes: "" });
    let bytes = include_bytes!("golden/chunk-v1.bin");
    assert_eq!(codec::encode(&chunk).expect("encodes"), (codec::CHUNK_V1, bytes.to_vec()));
    assert_eq!(codec::decode(codec::CHUNK_V1, bytes).expect("decodes"), chunk);
}
