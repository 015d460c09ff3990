//! Journal payloads: every chunk that decodes can be read.
#![no_main]

use logweir_record::codec;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&id, payload)) = data.split_first() else { return };
    if let Ok(chunk) = codec::decode(id, payload) {
        chunk.validate().expect("decoding validates the chunk");
        chunk.iter().for_each(|record| drop(record.message.len() + record.attributes.len()));
    }
});
