//! A journal of 256 MiB left by a killed process: recovering it, and reading all of it back as chunks; compared with a
//! bare sequential read with CRC-32C of the same bytes. Both read from the page cache.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::timed_ratio;
use logweir_benches::subject::on_a_runtime;
use logweir_engine::journal::{Journal, JournalConfig, OnDurable};
use logweir_record::codec;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const BACKLOG_BYTES: u64 = 256 * MIB;
/// The spare file that becomes the next segment.
const SPARE: &str = "spare.tmp";

fn config(dir: &Path) -> JournalConfig {
    JournalConfig {
        segment_bytes: 64 * MIB,
        quota_bytes: 8192 * MIB,
        queue_bytes_max: 32 << 20,
        ..JournalConfig::new(dir)
    }
}

/// A journal left by a killed process: 256 MiB, nothing committed, no seal.
struct Left {
    dir: TempDir,
    /// Its segments, oldest first, with the bytes in use.
    segments: Vec<(PathBuf, u64)>,
    records: u64,
}

impl Left {
    fn new() -> Self {
        let dir = on_the_disk();
        let records = fill(dir.path());
        let paths = std::fs::read_dir(dir.path()).expect("the directory").map(|entry| entry.expect("an entry").path());
        let mut segments: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
            .map(|path| {
                let bytes = std::fs::read(&path).expect("a segment");
                let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1);
                (path, used)
            })
            .collect();
        segments.sort();
        Self { dir, segments, records }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_, used)| used).sum()
    }

    /// Copies the journal. Only the newest segment and the spare are written to again, so the others are hard links.
    fn copy(&self) -> TempDir {
        let dir = on_the_disk();
        let (newest, older) = self.segments.split_last().expect("the journal has segments");
        let place = |path: &Path| dir.path().join(path.file_name().expect("a file"));
        for (path, _) in older {
            std::fs::hard_link(path, place(path)).expect("a link");
        }
        for path in [newest.0.clone(), self.dir.path().join(SPARE)].iter().filter(|path| path.exists()) {
            std::fs::copy(path, place(path)).expect("a copy");
            File::open(place(path)).and_then(|file| file.sync_all()).expect("fsync");
        }
        dir
    }

    /// Recovers a copy of the journal.
    fn open(&self) -> (Journal, TempDir, Duration) {
        let dir = self.copy();
        let started = Instant::now();
        let (journal, recovered) = Journal::open(config(dir.path())).expect("the journal opens");
        let took = started.elapsed();
        assert!(!recovered.clean && recovered.damage.is_empty(), "expected an unclean, undamaged journal");
        assert_eq!(recovered.lanes[&0].records, self.records, "not all records were recovered");
        (journal, dir, took)
    }

    fn bare_read(&self) -> Duration {
        let started = Instant::now();
        let mut buffer = vec![0; 1 << 20];
        for (path, used) in &self.segments {
            let mut file = File::open(path).expect("a segment").take(*used);
            let mut crc = 0;
            loop {
                let read = file.read(&mut buffer).expect("the disk reads");
                if read == 0 {
                    break;
                }
                crc = crc32c::crc32c_append(crc, &buffer[..read]);
            }
            std::hint::black_box(crc);
        }
        started.elapsed()
    }
}

fn on_the_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

/// Fills a journal and leaves it without a seal. Returns the number of records.
fn fill(dir: &Path) -> u64 {
    let (journal, _) = Journal::open(config(dir)).expect("the journal opens");
    let mut corpus = Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000);
    let (mut bytes, mut records, mut seq) = (0, 0, 0);
    on_a_runtime(async {
        for number in 0.. {
            if bytes >= BACKLOG_BYTES {
                break;
            }
            let chunk = corpus.chunk(number);
            let (id, payload) = codec::encode(&chunk).expect("the chunk can be encoded");
            bytes += payload.len() as u64;
            records += chunk.len() as u64;
            let credit = journal.reserve(payload.len()).await.expect("space is available");
            let count = u32::try_from(chunk.len()).expect("a small chunk");
            seq =
                journal.append(credit, 0, id, count, payload, OnDurable::send().0).expect("the append is accepted").seq;
        }
        journal.durable(seq).await.expect("the disk writes");
    });
    records
}

/// Reads and decodes the whole lane.
fn replay(journal: &Journal, records: u64) -> Duration {
    let started = Instant::now();
    let (mut reader, mut replayed) = (journal.reader(0, 0), 0);
    loop {
        let frames = reader.next_frames(20_000, 8 << 20).expect("the disk reads");
        if frames.is_empty() {
            break;
        }
        for frame in frames {
            replayed += codec::decode(frame.codec, &frame.payload).expect("the frame can be decoded").len() as u64;
        }
    }
    assert_eq!(replayed, records, "not all records were read");
    started.elapsed()
}

fn bench(criterion: &mut Criterion) {
    let left = Left::new();
    let (journal, _dir, _) = left.open();
    let mut group = criterion.benchmark_group("recovery");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Bytes(left.bytes()));
    group.bench_function("open", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| left.open().2).sum());
    });
    group.bench_function("replay: read, check, decode", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| replay(&journal, left.records)).sum());
    });
    group.bench_function("bare read and CRC-32C", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| left.bare_read()).sum());
    });
    group.finish();
    timed_ratio("recovery: open / bare read and CRC-32C", || left.open().2, || left.bare_read());
    timed_ratio("replay / bare read and CRC-32C", || replay(&journal, left.records), || left.bare_read());
}

criterion_group!(benches, bench);
criterion_main!(benches);
