//! Prints those lines of NDJSON on standard input that match a query:
//! `cargo run -p logweir-query --example filter 'severity>=warn "card declined"' < app.ndjson`.

use std::io::{self, BufRead};

use logweir_query::parse;
use logweir_record::record::{Record, Severity};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let query = std::env::args().nth(1).ok_or("missing query: expected one such as severity>=warn")?;
    let filter = parse(&query)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line)?;
        let text = |name: &str| members.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        let record = Record {
            ts_us: 0,
            severity: Severity::from_text(text("level")).unwrap_or_default(),
            service: text("service"),
            host: text("host"),
            message: text("message"),
            attributes: &line,
        };
        if filter.matches(&record) {
            println!("{line}");
        }
    }
    Ok(())
}
