//! Encoding a batch of 20,000 records as rows of a binary COPY, compared with a memcpy of those bytes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::ratio;
use logweir_store::bench::copy_rows;
use logweir_store::{Batch, BatchFrame};

const RECORDS: u64 = 20_000;
/// Repetitions per measured run, so that it is long enough for the clock.
const TIMES: usize = 10;

fn batch() -> Batch {
    let mut corpus = Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000);
    let mut lane_records = 0;
    let frames = (0..RECORDS / corpus.events_per_body()).map(|number| {
        let chunk = Arc::new(corpus.chunk(number));
        lane_records += chunk.len() as u64;
        BatchFrame { seq: number + 1, lane_records, payload_crc: 0, dedup_key: None, chunk }
    });
    Batch::new(0, 0, 0, 0, frames.collect())
}

/// Drops each chunk before the next is encoded, as when writing to a socket.
fn encode(batch: &Batch) {
    copy_rows(black_box(batch)).for_each(|piece| drop(black_box(piece)));
}

fn bench(criterion: &mut Criterion) {
    let batch = batch();
    let rows = copy_rows(&batch).collect::<Vec<_>>().concat();
    let mut copy = vec![0_u8; rows.len()];
    let mut group = criterion.benchmark_group("copy_rows");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Bytes(rows.len() as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| encode(&batch)));
    group.bench_function("bare memcpy", |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&rows)));
    });
    group.finish();
    let bare = || (0..TIMES).for_each(|_| black_box(&mut copy).copy_from_slice(black_box(&rows)));
    ratio("COPY rows / memcpy", || (0..TIMES).for_each(|_| encode(&batch)), bare);
    println!("{} rows, {} bytes", batch.records(), rows.len());
}

criterion_group!(benches, bench);
criterion_main!(benches);
