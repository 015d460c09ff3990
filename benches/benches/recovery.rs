//! A journal with a backlog: opening it, and reading all of it back as chunks, beside a bare sequential read with CRC-32C
//! of the same files.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::timed_ratio;
use logweir_benches::subject::on_a_runtime;
use logweir_engine::codec;
use logweir_engine::journal::{Journal, JournalConfig};

const MIB: u64 = 1 << 20;
const BACKLOG_BYTES: u64 = 256 * MIB;

fn config(dir: &Path) -> JournalConfig {
    JournalConfig {
        dir: dir.to_owned(),
        segment_bytes: 64 * MIB,
        quota_bytes: 8192 * MIB,
        ballast_bytes: 0,
        queue_bytes_max: 32 << 20,
        retain_segments: 0,
    }
}

/// Fills a journal; returns how many bytes of payload it holds.
fn fill(dir: &Path) -> u64 {
    let (journal, _) = Journal::open(config(dir)).expect("it opens");
    let mut corpus = Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000);
    let mut bytes = 0;
    on_a_runtime(async {
        for number in 0.. {
            if bytes >= BACKLOG_BYTES {
                break;
            }
            let chunk = corpus.chunk(number);
            let (id, payload) = codec::encode(&chunk).expect("it fits");
            bytes += payload.len() as u64;
            let credit = journal.reserve(payload.len()).await.expect("there is room");
            let records = u32::try_from(chunk.len()).expect("a small chunk");
            journal.append(credit, 0, id, records, payload, Box::new(drop)).expect("it is taken");
        }
        journal.seal().expect("it seals");
    });
    bytes
}

fn open(dir: &Path) -> (Journal, Duration) {
    let begun = Instant::now();
    let (journal, recovered) = Journal::open(config(dir)).expect("it opens");
    assert!(recovered.damage.is_empty());
    (journal, begun.elapsed())
}

/// Reads and decodes the whole lane.
fn replay(journal: &Journal) -> Duration {
    let begun = Instant::now();
    let (mut reader, mut records) = (journal.reader(0, 0), 0);
    loop {
        let frames = reader.next_frames(20_000, 8 << 20).expect("the disk reads");
        if frames.is_empty() {
            break;
        }
        for frame in frames {
            records += codec::decode(frame.codec, &frame.payload).expect("it decodes").len();
        }
    }
    assert!(records > 100_000);
    begun.elapsed()
}

fn bare_read(dir: &Path) -> Duration {
    let begun = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let mut crc = 0;
    for entry in std::fs::read_dir(dir).expect("the directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            let mut file = File::open(path).expect("a segment");
            loop {
                let read = file.read(&mut buffer).expect("the disk reads");
                if read == 0 {
                    break;
                }
                crc = crc32c::crc32c_append(crc, &buffer[..read]);
            }
        }
    }
    std::hint::black_box(crc);
    begun.elapsed()
}

fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bytes = fill(dir.path());
    let mut group = criterion.benchmark_group("recovery");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("open", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| open(dir.path()).1).sum());
    });
    let (journal, _) = open(dir.path());
    group.bench_function("replay: read, check, decode", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| replay(&journal)).sum());
    });
    group.bench_function("bare read and CRC-32C", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| bare_read(dir.path())).sum());
    });
    group.finish();
    timed_ratio("replay / bare read and CRC-32C", || replay(&journal), || bare_read(dir.path()));
}

criterion_group!(benches, bench);
criterion_main!(benches);
