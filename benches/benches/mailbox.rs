//! One hop of a message to a stage, compared with the bare limits: an actix actor (whose mailbox bound is not
//! enforced), a bounded tokio channel, a bounded crossbeam channel.
//!
//! Every variant moves the same message through a queue of the same length, and the clock stops when the last message
//! has been handled. A message of logweir is a chunk of hundreds of records, so the cost of a hop is paid once per
//! chunk.

use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::ratio::timed_ratio;
use logweir_engine::drain::DrainControl;
use logweir_engine::mailbox::{Bound, Message};
use logweir_engine::stage::{Exit, Stage};
use logweir_engine::topology::{SYSTEM_ARBITER, StageSpec, Supervision, Topology};
use tokio::sync::{mpsc, oneshot};

const QUEUE: usize = 1024;

/// A message like a chunk's: of the same size, and with an allocation that is freed by the receiver. The last one of a
/// run signals its end.
struct Hop {
    last: Option<oneshot::Sender<()>>,
    chunk: Option<Box<[u8; CHUNK_BYTES]>>,
}

/// Size of a chunk inside its message, without its arrays.
const CHUNK_BYTES: usize = 256;

impl Message for Hop {
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

impl actix::Message for Hop {
    type Result = ();
}

fn handle(Hop { last, chunk }: Hop) {
    drop(std::hint::black_box(chunk));
    if let Some(last) = last {
        let _ = last.send(());
    }
}

struct Sink;

impl Stage for Sink {
    type Message = Hop;

    async fn receive(&mut self, hop: Hop) -> Result<(), Exit> {
        handle(hop);
        Ok(())
    }
}

impl Actor for Sink {
    type Context = Context<Self>;
}

impl Handler<Hop> for Sink {
    type Result = ();

    fn handle(&mut self, hop: Hop, _: &mut Self::Context) {
        handle(hop);
    }
}

/// The messages to send.
#[derive(Clone, Copy)]
struct Run {
    with_chunk: bool,
    count: u64,
}

/// Returns the messages of a run; the receiver completes with the last one.
fn hops(run: Run) -> (impl Iterator<Item = Hop>, oneshot::Receiver<()>) {
    let (last, done) = oneshot::channel();
    let mut last = Some(last);
    let hop = move |nth| Hop {
        last: if nth + 1 == run.count { last.take() } else { None },
        chunk: run.with_chunk.then(|| Box::new([0; CHUNK_BYTES])),
    };
    ((0..run.count).map(hop), done)
}

fn mailbox(arbiter: &str, run: Run) -> Duration {
    actix_rt::System::new().block_on(async {
        let supervision = Supervision { stall_ms: 60_000, restarts_max: 0, restart_window_ms: 1 };
        let mut topology = Topology::new("bench", supervision, DrainControl::default().watch());
        let bound = Bound { messages_max: QUEUE, bytes_max: QUEUE * 1024 };
        let spec = StageSpec { name: "sink".to_owned(), arbiter: arbiter.to_owned(), bound, tick_ms: None };
        let mailbox = topology.spawn(spec, |_| Sink).external();
        let (hops, done) = hops(run);
        let began = Instant::now();
        for hop in hops {
            mailbox.send(hop).await.expect("the sink is open");
        }
        done.await.expect("the sink signals the end");
        began.elapsed()
    })
}

/// An actor without logweir. Its bound is not enforced, so the sender waits once per queue length.
#[expect(clippy::disallowed_methods, reason = "this is the bare limit")]
fn bare_actix(same_thread: bool, run: Run) -> Duration {
    actix_rt::System::new().block_on(async {
        let arbiter = (!same_thread).then(actix_rt::Arbiter::new);
        let sink: Addr<Sink> = match &arbiter {
            None => Sink.start(),
            Some(arbiter) => Sink::start_in_arbiter(&arbiter.handle(), |_| Sink),
        };
        let (hops, done) = hops(run);
        let began = Instant::now();
        for (index, hop) in hops.enumerate() {
            if index % QUEUE == QUEUE - 1 {
                sink.send(hop).await.expect("the sink is open");
            } else {
                sink.do_send(hop);
            }
        }
        done.await.expect("the sink signals the end");
        let elapsed = began.elapsed();
        if let Some(arbiter) = arbiter {
            arbiter.stop();
        }
        elapsed
    })
}

async fn send_all(sender: mpsc::Sender<Hop>, run: Run) -> Duration {
    let (hops, done) = hops(run);
    let began = Instant::now();
    for hop in hops {
        sender.send(hop).await.expect("the sink is open");
    }
    done.await.expect("the sink signals the end");
    began.elapsed()
}

async fn receive_all(mut receiver: mpsc::Receiver<Hop>) {
    while let Some(hop) = receiver.recv().await {
        handle(hop);
    }
}

fn bare_tokio(same_thread: bool, run: Run) -> Duration {
    actix_rt::System::new().block_on(async {
        let (sender, receiver) = mpsc::channel(QUEUE);
        if same_thread {
            actix_rt::spawn(receive_all(receiver));
        } else {
            std::thread::spawn(|| actix_rt::System::new().block_on(receive_all(receiver)));
        }
        send_all(sender, run).await
    })
}

fn bare_crossbeam(run: Run) -> Duration {
    let (sender, receiver) = crossbeam_channel::bounded(QUEUE);
    std::thread::spawn(move || receiver.into_iter().for_each(handle));
    let (hops, done) = hops(run);
    let began = Instant::now();
    for hop in hops {
        sender.send(hop).expect("the sink is open");
    }
    done.blocking_recv().expect("the sink signals the end");
    began.elapsed()
}

fn hop(criterion: &mut Criterion) {
    for (message, with_chunk) in [("message", false), ("chunk", true)] {
        let mut group = criterion.benchmark_group(format!("mailbox/{message}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
        group.throughput(Throughput::Elements(1));
        let of = move |count| Run { with_chunk, count };
        for (place, same_thread) in [("same_thread", true), ("other_thread", false)] {
            let arbiter = if same_thread { SYSTEM_ARBITER } else { "other" };
            group.bench_function(BenchmarkId::new("mailbox", place), |b| {
                b.iter_custom(|count| mailbox(arbiter, of(count)));
            });
            group.bench_function(BenchmarkId::new("actix", place), |b| {
                b.iter_custom(|count| bare_actix(same_thread, of(count)));
            });
            group.bench_function(BenchmarkId::new("tokio", place), |b| {
                b.iter_custom(|count| bare_tokio(same_thread, of(count)));
            });
        }
        group.bench_function(BenchmarkId::new("crossbeam", "other_thread"), |b| {
            b.iter_custom(|count| bare_crossbeam(of(count)));
        });
        group.finish();
    }
    let run = Run { with_chunk: true, count: 200_000 };
    for (place, arbiter, same_thread) in [("same thread", SYSTEM_ARBITER, true), ("other thread", "other", false)] {
        let name = format!("mailbox hop of a chunk, {place} / bare actix do_send");
        timed_ratio(&name, || mailbox(arbiter, run), || bare_actix(same_thread, run));
    }
}

criterion_group!(benches, hop);
criterion_main!(benches);
