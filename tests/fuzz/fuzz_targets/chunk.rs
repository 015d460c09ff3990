//! A payload of the journal: whatever it is decoded to can be read.
#![no_main]

use logweir_engine::codec;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&id, payload)) = data.split_first() else { return };
    if let Ok(chunk) = codec::decode(id, payload) {
        chunk.validate().expect("decoding has validated it");
        chunk.iter().for_each(|record| drop(record.message.len() + record.attributes.len()));
    }
});
