//! The first byte names the format that all lines are read by.
#![no_main]

use logweir::parser::Rules;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let names = Rules::default().format_names();
    let names: Vec<_> = names.split(", ").collect();
    let format = Rules::default().format_named(names[usize::from(choice) % names.len()]).expect("it is in the list");
    logweir_fuzz::body(format, data);
});
