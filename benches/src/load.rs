//! The load generator: one thread, prepared bodies, a bare HTTP client, so that it costs next to nothing.
//!
//! Closed loop: each connection sends its next body when the last is answered. Open loop: bodies leave by a timetable,
//! and a latency counts from the time at which the body *should* have left, so that a slow answer does not hide the
//! waiting of those behind it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::corpus::Corpus;
use crate::meter::{histogram, thread_cpu_seconds};

/// A refused body is sent again after this.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// What is sent where.
#[derive(Clone)]
pub struct Load {
    /// The server.
    pub to: SocketAddr,
    /// Path and query.
    pub path: String,
    /// The bodies.
    pub corpus: Corpus,
    /// Bodies from this number …
    pub first: u64,
    /// … so many.
    pub bodies: u64,
    /// Connections, each with one body on the way.
    pub connections: usize,
    /// Events per second of the timetable; none for a closed loop.
    pub rate: Option<f64>,
}

/// When the body with this place in the journal was answered.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// When.
    pub at: Instant,
    /// Its lane.
    pub lane: u64,
    /// Its frame.
    pub seq: u64,
}

/// What came of it.
pub struct Sent {
    /// Events that were accepted.
    pub accepted: u64,
    /// Answers that asked to send again.
    pub refused: u64,
    /// From the first byte to the last answer.
    pub took: Duration,
    /// The first byte.
    pub begun: Instant,
    /// Microseconds from (planned) sending to the whole answer.
    pub latency_us: Histogram<u64>,
    /// What the generator itself cost.
    pub cpu_seconds: f64,
    /// One for each body, in the order of the answers; none from a peer that tells no place.
    pub receipts: Vec<Receipt>,
}

struct Tally {
    next: Cell<u64>,
    /// Bodies whose time has come.
    due: Arc<Semaphore>,
    accepted: Cell<u64>,
    refused: Cell<u64>,
    latency_us: RefCell<Histogram<u64>>,
    receipts: RefCell<Vec<Receipt>>,
}

impl Load {
    /// Sends everything and returns when the last answer is in.
    ///
    /// # Panics
    /// The server cannot be reached, or answers with something that no retry mends.
    #[must_use]
    pub fn run(self) -> Sent {
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let tasks = tokio::task::LocalSet::new();
            runtime.block_on(tasks.run_until(self.send()))
        });
        thread.expect("a thread").join().expect("the load generator does not panic")
    }

    /// When body `nth` should leave, after the first.
    fn due(&self, nth: u64, rate: f64) -> Duration {
        Duration::from_secs_f64((nth * self.corpus.events_per_body()) as f64 / rate)
    }

    /// Says when a body's time has come, from a thread of its own: the runtime's timer only knows milliseconds, which is
    /// more than what is measured.
    fn throttle(&self, rate: f64, begun: Instant, due: Arc<Semaphore>) -> JoinHandle<()> {
        let (load, connections) = (self.clone(), self.connections);
        std::thread::spawn(move || {
            for nth in 0..load.bodies {
                let at = begun + load.due(nth, rate);
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                due.add_permits(1);
            }
            due.add_permits(connections);
        })
    }

    async fn send(self) -> Sent {
        let tally = Rc::new(Tally {
            next: Cell::new(self.first),
            due: Arc::new(Semaphore::new(0)),
            accepted: Cell::new(0),
            refused: Cell::new(0),
            latency_us: RefCell::new(histogram()),
            receipts: RefCell::new(Vec::with_capacity(usize::try_from(self.bodies).expect("fits memory"))),
        });
        let mut clients = Vec::new();
        for _ in 0..self.connections {
            clients.push(Client::connect(&self).await);
        }
        let (cpu, begun) = (thread_cpu_seconds(), Instant::now());
        let pacer = self.rate.map(|rate| self.throttle(rate, begun, Arc::clone(&tally.due)));
        let tasks: Vec<_> = clients
            .into_iter()
            .map(|client| tokio::task::spawn_local(client.work(self.clone(), begun, Rc::clone(&tally))))
            .collect();
        for task in tasks {
            task.await.expect("a connection does not panic");
        }
        let took = begun.elapsed();
        drop(pacer.map(JoinHandle::join));
        let cpu_seconds = thread_cpu_seconds() - cpu;
        let tally = Rc::into_inner(tally).expect("all tasks have ended");
        Sent {
            accepted: tally.accepted.get(),
            refused: tally.refused.get(),
            took,
            begun,
            latency_us: tally.latency_us.into_inner(),
            cpu_seconds,
            receipts: tally.receipts.into_inner(),
        }
    }
}

struct Client {
    stream: TcpStream,
    corpus: Corpus,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    async fn connect(load: &Load) -> Self {
        let stream = TcpStream::connect(load.to).await.unwrap_or_else(|error| panic!("{}: {error}", load.to));
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream, corpus: load.corpus.clone(), request: Vec::new(), answer: Vec::with_capacity(4096) }
    }

    async fn work(mut self, load: Load, begun: Instant, tally: Rc<Tally>) {
        let events = load.corpus.events_per_body();
        loop {
            if tally.next.get() >= load.first + load.bodies {
                return;
            }
            if load.rate.is_some() {
                // One for each body of the timetable, and one for each connection to end on.
                tally.due.acquire().await.expect("it is never closed").forget();
            }
            let number = tally.next.get();
            if number >= load.first + load.bodies {
                return;
            }
            tally.next.set(number + 1);
            let since = load.rate.map_or_else(Instant::now, |rate| begun + load.due(number - load.first, rate));
            loop {
                let status = self.exchange(&load, number).await;
                match status {
                    200..=299 => break,
                    429 | 503 => {
                        tally.refused.set(tally.refused.get() + 1);
                        sleep(REFUSED_PAUSE).await;
                    }
                    _ => panic!("status {status}: {}", String::from_utf8_lossy(&self.answer)),
                }
            }
            let at = Instant::now();
            let micros = u64::try_from((at - since).as_micros()).unwrap_or(u64::MAX);
            tally.latency_us.borrow_mut().saturating_record(micros);
            tally.accepted.set(tally.accepted.get() + number_after(&self.answer, b"\"accepted\":").unwrap_or(events));
            let place = number_after(&self.answer, b"\"lane\":").zip(number_after(&self.answer, b"\"seq\":"));
            if let Some((lane, seq)) = place {
                tally.receipts.borrow_mut().push(Receipt { at, lane, seq });
            }
        }
    }

    /// Sends body `number` and reads the whole answer.
    async fn exchange(&mut self, load: &Load, number: u64) -> u16 {
        let body = self.corpus.body(number);
        self.request.clear();
        self.request.extend_from_slice(b"POST ");
        self.request.extend_from_slice(load.path.as_bytes());
        self.request
            .extend_from_slice(b" HTTP/1.1\r\nHost: bench\r\nContent-Type: application/x-ndjson\r\nContent-Length: ");
        self.request.extend_from_slice(body.len().to_string().as_bytes());
        self.request.extend_from_slice(b"\r\n\r\n");
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request).await.expect("the server reads");
        self.answer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.answer).await.expect("the server answers");
            assert!(read > 0, "the server hung up: {}", String::from_utf8_lossy(&self.answer));
            let Some(head) = memchr::memmem::find(&self.answer, b"\r\n\r\n") else { continue };
            let length = content_length(&self.answer[..head]);
            if self.answer.len() >= head + 4 + length {
                let status = self.answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
                return status.expect("an HTTP status");
            }
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    let head = head.to_ascii_lowercase();
    number_after(&head, b"content-length: ").map_or(0, |length| usize::try_from(length).expect("fits memory"))
}

fn number_after(text: &[u8], name: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(text, name)? + name.len();
    let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&text[at..at + digits]).ok()?.parse().ok()
}
