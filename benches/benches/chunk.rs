//! Encoding a chunk for the journal and decoding it (which also validates it), compared with a memcpy of those bytes.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::ratio;
use logweir_record::codec;

const BODY_BYTES: usize = 64 << 10;
/// Repetitions per measured run, so that it is long enough for the clock.
const TIMES: usize = 200;

fn bench(criterion: &mut Criterion) {
    let chunk = Corpus::of_bodies(300, BODY_BYTES, 1_700_000_000_000_000).chunk(0);
    let (id, payload) = codec::encode(&chunk).expect("the chunk can be encoded");
    let mut copy = vec![0_u8; payload.len()];
    let mut group = criterion.benchmark_group("chunk");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| codec::encode(black_box(&chunk))));
    group.bench_function("decode", |bencher| bencher.iter(|| codec::decode(id, black_box(&payload))));
    group.bench_function("validate", |bencher| bencher.iter(|| black_box(&chunk).validate()));
    group.bench_function("bare memcpy", |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&payload)));
    });
    group.finish();
    let mut bare = || (0..TIMES).for_each(|_| black_box(&mut copy).copy_from_slice(black_box(&payload)));
    ratio(
        "chunk encode / memcpy",
        || (0..TIMES).for_each(|_| drop(black_box(codec::encode(black_box(&chunk))))),
        &mut bare,
    );
    let decode = || (0..TIMES).for_each(|_| drop(black_box(codec::decode(id, black_box(&payload)))));
    ratio("chunk decode and validate / memcpy", decode, &mut bare);
    let validate = || (0..TIMES).for_each(|_| black_box(&chunk).validate().expect("the chunk is valid"));
    ratio("chunk validate / memcpy", validate, &mut bare);
    println!("{} records, {} bytes", chunk.len(), payload.len());
}

criterion_group!(benches, bench);
criterion_main!(benches);
