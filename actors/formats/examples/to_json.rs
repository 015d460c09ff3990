//! Reads lines from standard input and prints each record as JSON: `cargo run -p logweir-formats --example to_json < access.log`.

use std::io::{self, Read, Write};

use jiff::Timestamp;
use logweir_formats::{Defaults, Format, parse};
use logweir_record::json::RecordJson;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut body = Vec::new();
    io::stdin().read_to_end(&mut body)?;
    let now_us = Timestamp::now().as_microsecond();
    let defaults = Defaults { service: Some("example".into()), ..Defaults::default() };
    let parsed = parse(&body, Format::Auto, &defaults, now_us, 1 << 20)?;
    let mut out = io::stdout().lock();
    for record in parsed.chunk.iter() {
        serde_json::to_writer(&mut out, &RecordJson::from(record))?;
        out.write_all(b"\n")?;
    }
    for error in &parsed.report.errors {
        eprintln!("line {}: {}", error.line, error.error);
    }
    Ok(())
}
