//! The first byte selects the format of all lines.
#![no_main]

use logweir_formats::Rules;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let names = Rules::default().format_names();
    let names: Vec<_> = names.split(", ").collect();
    let format = Rules::default().format_named(names[usize::from(choice) % names.len()]).expect("a listed format");
    logweir_fuzz::body(format, data);
});
