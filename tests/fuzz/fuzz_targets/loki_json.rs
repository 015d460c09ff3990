#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| logweir_fuzz::body(logweir_formats::Format::LokiJson, data));
