//! Append and group commit, compared with sequential bare `pwrite` + `fdatasync` of the same sizes into blocks that
//! have been written before, on the same disk.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::ratio::timed_ratio;
use logweir_benches::subject::on_a_runtime;
use logweir_engine::journal::{AppendError, Journal, JournalConfig, OnDurable};
use tempfile::TempDir;
use tokio::sync::oneshot::Receiver;

const MIB: u64 = 1 << 20;
/// Minimum number of bytes that a round appends.
const ROUND_BYTES: usize = 8 << 20;
/// Maximum number of appends of a round.
const ROUND_APPENDS_MAX: usize = 500;

/// Below the build directory, since `/tmp` can be in memory.
fn on_the_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

struct Ours {
    journal: Journal,
    _dir: TempDir,
}

impl Ours {
    fn open() -> Self {
        let dir = on_the_disk();
        let config = JournalConfig {
            segment_bytes: 64 * MIB,
            quota_bytes: 1024 * MIB,
            queue_bytes_max: 32 << 20,
            ..JournalConfig::new(dir.path().join("journal"))
        };
        let (journal, _) = Journal::open(config).expect("the journal opens");
        Self { journal, _dir: dir }
    }

    /// Appends `count` payloads with up to `waiters` of them in flight; commits what is durable.
    fn append(&self, payload: &[u8], waiters: usize, count: u64) -> Duration {
        let mut answers = VecDeque::new();
        let started = Instant::now();
        on_a_runtime(async {
            for nth in 0..count {
                if nth >= waiters as u64 {
                    self.commit_durable(answers.pop_front()).await;
                }
                let credit = self.journal.reserve(payload.len()).await.expect("space is available");
                let (on_durable, outcome) = OnDurable::send();
                answers.push_back(outcome);
                self.journal.append(credit, 0, 1, 1, payload.to_vec(), on_durable).expect("the append is accepted");
            }
            while let Some(outcome) = answers.pop_front() {
                self.commit_durable(Some(outcome)).await;
            }
        });
        started.elapsed()
    }

    async fn commit_durable(&self, outcome: Option<Receiver<Result<u64, AppendError>>>) {
        let seq = outcome.expect("an append").await.expect("the journal answers").expect("the append is durable");
        self.journal.commit(0, seq);
    }
}

/// A file with written blocks.
struct Bare {
    file: std::fs::File,
    _dir: TempDir,
}

impl Bare {
    fn open() -> Self {
        let dir = on_the_disk();
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(dir.path().join("bare"));
        let file = file.expect("a file");
        for step in 0..64 {
            file.write_all_at(&vec![0; 1 << 20], step * MIB).expect("space is available");
        }
        file.sync_all().expect("fsync");
        Self { file, _dir: dir }
    }

    fn append(&self, payload: &[u8], count: u64) -> Duration {
        let started = Instant::now();
        for nth in 0..count {
            let at = nth * payload.len() as u64 % (63 * MIB);
            self.file.write_all_at(payload, at).expect("the disk writes");
            self.file.sync_data().expect("fdatasync");
        }
        started.elapsed()
    }
}

fn bench(criterion: &mut Criterion) {
    let (ours, bare) = (Ours::open(), Bare::open());
    let sizes = [4 << 10, 64 << 10, 256 << 10];
    let mut group = criterion.benchmark_group("journal");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    for bytes in sizes {
        let payload = vec![0x5a; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("bare pwrite + fdatasync", bytes), |bencher| {
            bencher.iter_custom(|count| bare.append(&payload, count));
        });
        for waiters in [1, 8, 64] {
            group.bench_function(BenchmarkId::new(format!("append, {waiters} waiters"), bytes), |bencher| {
                bencher.iter_custom(|count| ours.append(&payload, waiters, count));
            });
        }
    }
    group.finish();
    for bytes in sizes {
        let payload = vec![0x5a; bytes];
        for waiters in [1, 8, 64] {
            // Twice as many, so that all waiters are used.
            let count = (ROUND_BYTES / bytes).min(ROUND_APPENDS_MAX).max(2 * waiters) as u64;
            let name = format!("journal append of {bytes} B, {waiters} waiters / pwrite + fdatasync");
            timed_ratio(&name, || ours.append(&payload, waiters, count), || bare.append(&payload, count));
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
