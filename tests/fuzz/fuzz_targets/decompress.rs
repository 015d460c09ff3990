//! The first byte selects the encoding. The output stays within its limit.
#![no_main]

use bytes::Bytes;
use logweir::internal::decompress;
use logweir::message::Encoding;

const PLAIN_BYTES_MAX: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let encodings = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd, Encoding::Deflate, Encoding::Snappy];
    let encoding = encodings[usize::from(choice) % encodings.len()];
    if let Ok(plain) = decompress(&Bytes::copy_from_slice(data), encoding, PLAIN_BYTES_MAX) {
        assert!(plain.len() <= PLAIN_BYTES_MAX || encoding == Encoding::Identity);
    }
});
