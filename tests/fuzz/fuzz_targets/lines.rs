#![no_main]

use logweir_formats::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    logweir_fuzz::body(Format::Lines, data);
    logweir_fuzz::each_line_is_one_record(Format::Lines, data);
});
