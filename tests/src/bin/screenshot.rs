//! Takes the screenshot of the log explorer for the README: `make screenshot`, or with another file as the argument.
//!
//! Starts logweir with SQLite in a temporary directory, sends an hour of demo records, and opens the web UI in headless
//! Chromium. The records are the same in every run, except for their times.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use logweir::internal::Demo;
use logweir_tests::browser::{Browser, Screen};
use logweir_tests::process::{Server, Settings, free_addr};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const SEED: u64 = 11;
const MINUTES: i64 = 60;
/// Mean rate; it varies over the hour.
const RECORDS_PER_MINUTE: f64 = 420.0;
const ROW: &str = ".row:not(.head)";
/// Message of the record that is shown expanded; see `demo.rs`.
const FAILURE: &str = "charge failed: upstream timed out after 3000 ms";
/// Keeps the README quick to load.
const SIZE_MAX: usize = 250_000;

fn main() -> Result<(), Box<dyn Error>> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../actors/cli/docs/log-explorer.png");
    let target = std::env::args_os().nth(1).map_or(default, PathBuf::from);
    let folder = tempfile::Builder::new().prefix("logweir-screenshot-").tempdir()?;
    let settings = Settings::from([
        ("data_dir".to_owned(), folder.path().join("data").display().to_string()),
        ("http.listen".to_owned(), free_addr().to_string()),
        ("admin.listen".to_owned(), free_addr().to_string()),
    ]);
    let mut server = Server::start(&settings, "", folder.path().join("server.log"));
    server.ready().map_err(|exit| format!("{exit:?}: {}", server.log_text()))?;
    let sent = send_records(&server)?;

    let browser = Browser::open(server.http, Screen::Documentation);
    browser.color_scheme("light");
    browser.goto("/?zone=UTC&query=severity%3E%3Dwarn");
    browser.until("the search", |browser| browser.count(ROW) > 10 && browser.count(".histogram.busy") == 0);
    browser.until("the facets", |browser| browser.count(".facet li") > 10);
    // Expands a failure among the first rows.
    let row = browser.texts(&format!("{ROW} .message")).iter().take(8).position(|message| message == FAILURE);
    let row = row.ok_or_else(|| format!("no {FAILURE:?} among the first rows: try another SEED"))?;
    let _ = browser.js(&format!("document.querySelectorAll('{ROW} .toggle button')[{row}].click()"));
    browser.see(".detail", "trace_id");
    // The pointer and the focus stay out of the picture.
    let _ = browser.js("document.activeElement.blur()");
    let png = browser.png();
    if png.len() > SIZE_MAX {
        return Err(format!("the screenshot has {} bytes; expected at most {SIZE_MAX}", png.len()).into());
    }
    std::fs::create_dir_all(target.parent().ok_or("the target has no directory")?)?;
    std::fs::write(&target, &png)?;
    println!("{}: {} bytes, {sent} records", target.display(), png.len());
    Ok(())
}

/// Sends demo records of the last hour. Returns their number.
fn send_records(server: &Server) -> Result<usize, Box<dyn Error>> {
    let (mut demo, mut random) = (Demo::new(SEED), StdRng::seed_from_u64(SEED));
    let now = Timestamp::now();
    let mut sent = 0;
    for minute in (0..MINUTES).rev() {
        let start = now - SignedDuration::from_mins(minute + 1);
        // A slow wave with some noise, as traffic has it.
        #[allow(clippy::cast_precision_loss)]
        let wave = 1.0 + 0.35 * (minute as f64 / 9.0).sin() + random.random_range(-0.12..0.12);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let records = (RECORDS_PER_MINUTE * wave) as usize;
        let mut times: Vec<_> = (0..records).map(|_| random.random_range(0..60_000_000)).collect();
        times.sort_unstable();
        let mut body = String::new();
        for offset_us in times {
            writeln!(body, "{}", demo.next_line(start.as_microsecond() + offset_us))?;
        }
        let answer =
            server.post("/ingest?ack=committed", "application/x-ndjson", &body).ok_or("no response to /ingest")?;
        if answer.status != 200 {
            return Err(format!("/ingest returned {}: {}", answer.status, answer.body).into());
        }
        sent += records;
    }
    Ok(sent)
}
