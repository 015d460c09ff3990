//! A batch of 20,000 records on its way into the database: collecting it from chunks, counting its volume, writing it as
//! COPY rows; the last two beside a memcpy of the rows' bytes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir::batcher::BatchBuilder;
use logweir::config::BatchLimits;
use logweir::message::{Batch, BatchFrame};
use logweir::store::bench::{copy_rows, count_volume};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::ratio;
use tokio::time::Instant;

const RECORDS: usize = 20_000;

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
            chunk: Arc::new(chunk),
        });
    }
    frames
}

fn build(frames: &[BatchFrame]) -> Batch {
    let limits = BatchLimits { rows_max: RECORDS, bytes_max: usize::MAX, linger_ms: 50 };
    let mut builder = BatchBuilder::new(0, limits);
    let now = Instant::now();
    for frame in frames {
        let left = builder.push(frame.clone(), frame.seq - 1, 0, now);
        assert!(left.iter().all(Option::is_none), "all of it is one batch");
    }
    builder.take().expect("it is open")
}

/// Each piece is gone before the next is made, as on the way into a socket.
fn send(batch: &Batch) {
    copy_rows(black_box(batch)).for_each(|piece| drop(black_box(piece)));
}

fn bench(criterion: &mut Criterion) {
    let frames = frames();
    let batch = build(&frames);
    let rows = copy_rows(&batch).collect::<Vec<_>>().concat();
    let mut copy = vec![0_u8; rows.len()];
    let mut group = criterion.benchmark_group("batch");
    group.sample_size(20).throughput(Throughput::Elements(batch.records()));
    group.bench_function("build", |bencher| bencher.iter(|| build(black_box(&frames))));
    group.bench_function("count volume", |bencher| bencher.iter(|| count_volume(black_box(&batch))));
    group.bench_function("COPY rows", |bencher| bencher.iter(|| send(&batch)));
    group.bench_function("bare memcpy of the rows", |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&rows)));
    });
    group.finish();
    let mut bare = || black_box(&mut copy).copy_from_slice(black_box(&rows));
    ratio("COPY rows / memcpy", || send(&batch), &mut bare);
    ratio("count volume / memcpy of the rows", || _ = black_box(count_volume(black_box(&batch))), &mut bare);
    println!("{} rows, {} bytes", batch.records(), rows.len());
}

criterion_group!(benches, bench);
criterion_main!(benches);
