//! Arbitrary bytes as the latest segment of a journal: the journal opens, and opens again.
#![no_main]

use std::path::Path;

use logweir_engine::journal::{Journal, JournalConfig, OpenError};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    std::fs::write(dir.path().join(format!("{:020}.wal", 1)), data).expect("a file");
    match Journal::open(config(dir.path())) {
        Ok(opened) => drop(opened),
        Err(OpenError::TooNew { .. }) => return,
        Err(error) => panic!("{error}"),
    }
    let (again, recovered) = Journal::open(config(dir.path())).expect("a journal that was opened opens again");
    assert!(recovered.damage.iter().all(|damage| damage.seq_first <= damage.seq_last + 1));
    drop(again);
});

fn config(dir: &Path) -> JournalConfig {
    JournalConfig {
        segment_bytes: 64 << 10,
        quota_bytes: 1 << 20,
        queue_bytes_max: 1 << 20,
        ..JournalConfig::new(dir)
    }
}
