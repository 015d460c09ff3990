//! CPU time of opening a journal whose segments all repeat what is remembered: it must grow with the journal, not with
//! its square. `cargo bench -p logweir-engine --bench keyed_recovery -- [KEYS] [SEGMENTS]` writes SEGMENTS × 64 MiB, by
//! default 60, and prints the CPU seconds of an open at half of them and at all, and their ratio.

use std::path::Path;
use std::time::Duration;

use logweir_engine::journal::{DedupKey, DedupKind, Journal, JournalConfig, NewFrame, OnDurable};

const SEGMENT_BYTES: u64 = 64 << 20;
/// Four of them fill a segment.
const BULK_BYTES: usize = 15 << 20;

fn config(dir: &Path) -> JournalConfig {
    JournalConfig { segment_bytes: SEGMENT_BYTES, quota_bytes: 1 << 40, ..JournalConfig::new(dir) }
}

fn append(runtime: &tokio::runtime::Runtime, journal: &Journal, dedup_key: Option<DedupKey>, payload: Vec<u8>) -> u64 {
    let bytes = payload.len() + dedup_key.map_or(0, |_| DedupKey::BYTES);
    let credit = runtime.block_on(journal.reserve(bytes)).expect("space is available");
    let frame = NewFrame { lane: 0, codec: 1, records: 1, dedup_key, payload };
    journal.append_frame(credit, frame, OnDurable::send().0).expect("the append is accepted").seq
}

/// CPU time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

fn key(nth: u64, kind: DedupKind) -> DedupKey {
    let mut key = [1; 16];
    key[8..].copy_from_slice(&nth.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    DedupKey { key, kind }
}

/// Adds `segments` to the journal, then opens it as after a kill. Returns the CPU time of that.
fn measure(dir: &Path, keys: u64, segments: u64) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (journal, _) = Journal::open(config(dir)).expect("the journal opens");
    for nth in 0..keys {
        // Known from the second round on.
        let request = key(nth, DedupKind::Request { body: Some(nth) });
        let source = key(nth | 1 << 60, DedupKind::Source { position: 7 });
        for dedup_key in [Some(request), Some(source).filter(|_| nth < keys / 4)].into_iter().flatten() {
            if journal.find_duplicate(&dedup_key).is_none() {
                append(&runtime, &journal, Some(dedup_key), b"keyed".to_vec());
            }
        }
    }
    let mut seq = 0;
    while (journal.stats().segments as u64) < segments {
        seq = append(&runtime, &journal, None, vec![7; BULK_BYTES]);
        runtime.block_on(journal.durable(seq)).expect("the disk writes");
    }
    runtime.block_on(journal.durable(seq)).expect("the disk writes");
    drop(journal);
    // The threads of the journal that was dropped end on their own; until then it is locked.
    std::thread::sleep(Duration::from_secs(1));
    let before = cpu();
    let (journal, recovered) = Journal::open(config(dir)).expect("the journal opens");
    let took = cpu() - before;
    assert!(!recovered.clean && recovered.damage.is_empty());
    let known = (0..keys).filter(|&nth| journal.find_duplicate(&key(nth, DedupKind::Request { body: None })).is_some());
    println!("{segments} segments, {} of {keys} keys known: {:.2} CPU-s", known.count(), took.as_secs_f64());
    took
}

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse().ok());
    let (keys, segments) = (numbers.next().unwrap_or(49_000), numbers.next().unwrap_or(60));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let half = measure(dir.path(), keys, segments / 2);
    std::thread::sleep(Duration::from_secs(1));
    let all = measure(dir.path(), keys, segments);
    println!("ratio {:.2} for twice the segments", all.as_secs_f64() / half.as_secs_f64().max(0.01));
}
