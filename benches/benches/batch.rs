//! A batch of 20,000 records: collecting it from chunks, compared with a copy of the list; counting its volume,
//! compared with one pass over its records.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir::Config;
use logweir::internal::BatchBuilder;
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::ratio;
use logweir_store::bench::count_volume;
use logweir_store::{Batch, BatchFrame};
use tokio::time::Instant;

const RECORDS: usize = 20_000;
/// Repetitions per measured run, so that it is long enough for the clock.
const TIMES: usize = 50;

fn frames() -> Vec<BatchFrame> {
    let mut corpus = Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000);
    let (mut frames, mut records) = (Vec::new(), 0);
    for number in 0.. {
        let chunk = corpus.chunk(number);
        records += chunk.len();
        if records > RECORDS {
            break;
        }
        frames.push(BatchFrame {
            seq: number + 1,
            lane_records: records as u64,
            payload_crc: 0,
            dedup_key: None,
            chunk: Arc::new(chunk),
        });
    }
    frames
}

fn build(frames: &[BatchFrame]) -> Batch {
    let mut limits = Config::default().batch;
    (limits.rows_max, limits.bytes_max) = (RECORDS, usize::MAX);
    let mut builder = BatchBuilder::new(0, limits);
    let now = Instant::now();
    for frame in frames {
        let left = builder.push(frame.clone(), frame.seq - 1, 0, now);
        assert!(left.iter().all(Option::is_none), "all chunks fit into one batch");
    }
    builder.take().expect("the batch is not empty")
}

/// The minimum work of counting: reads each record's time, severity and service.
fn pass(batch: &Batch) -> i64 {
    let records = batch.frames().iter().flat_map(|frame| frame.chunk.iter());
    records.fold(0, |sum, record| {
        let service = record.service.as_bytes().first().copied().unwrap_or_default();
        sum ^ record.ts_us ^ i64::from(record.severity.number()) ^ i64::from(service)
    })
}

fn bench(criterion: &mut Criterion) {
    let frames = frames();
    let batch = build(&frames);
    let mut group = criterion.benchmark_group("batch");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(batch.records()));
    group.bench_function("build", |bencher| bencher.iter(|| build(black_box(&frames))));
    group.bench_function("count volume", |bencher| bencher.iter(|| count_volume(black_box(&batch))));
    group.bench_function("copy of the list", |bencher| bencher.iter(|| black_box(&frames).clone()));
    group.bench_function("one pass over the records", |bencher| bencher.iter(|| pass(black_box(&batch))));
    group.finish();
    let build = || (0..TIMES).for_each(|_| drop(black_box(build(black_box(&frames)))));
    ratio("batch build / copy of the list", build, || {
        (0..TIMES).for_each(|_| drop(black_box(black_box(&frames).clone())))
    });
    let count = || (0..TIMES).for_each(|_| _ = black_box(count_volume(black_box(&batch))));
    ratio("count volume / one pass over the records", count, || {
        (0..TIMES).for_each(|_| _ = black_box(pass(black_box(&batch))))
    });
    println!("{} records in {} chunks", batch.records(), frames.len());
}

criterion_group!(benches, bench);
criterion_main!(benches);
