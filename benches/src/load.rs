//! The load generator: one thread, prepared bodies, and a minimal HTTP client, so that its own cost is negligible.
//!
//! Closed loop: each connection sends its next body after the response to the previous one. Open loop: bodies are sent
//! on a schedule, and a latency counts from the time at which the body *should* have been sent, so that a slow response
//! does not hide the delay of the bodies behind it (coordinated omission).

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

/// Delay before a rejected body is retried.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// A load.
#[derive(Clone)]
pub struct Load {
    /// The server.
    pub to: SocketAddr,
    /// Path and query.
    pub path: String,
    /// The bodies.
    pub corpus: Corpus,
    /// Number of the first body.
    pub first: u64,
    /// Number of bodies.
    pub bodies: u64,
    /// Connections, each with one body in flight.
    pub connections: usize,
    /// Scheduled events per second; `None` for a closed loop.
    pub rate: Option<f64>,
}

/// The acknowledgment of a body.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// Time of the response.
    pub at: Instant,
    /// Lane of its frame.
    pub lane: u64,
    /// Sequence number of its frame.
    pub seq: u64,
}

/// Result of a load.
pub struct Sent {
    /// Number of accepted events.
    pub accepted: u64,
    /// Number of responses that requested a retry.
    pub retried: u64,
    /// Time from the first byte to the last response.
    pub took: Duration,
    /// Time of the first byte.
    pub started: Instant,
    /// Microseconds from the (scheduled) sending time to the complete response.
    pub latency_us: Histogram<u64>,
    /// CPU seconds of the generator.
    pub cpu_seconds: f64,
    /// One per body, in the order of the responses; empty for a peer that does not return sequence numbers.
    pub receipts: Vec<Receipt>,
}

struct Totals {
    next: Cell<u64>,
    /// Bodies that are due.
    due: Arc<Semaphore>,
    accepted: Cell<u64>,
    retried: Cell<u64>,
    latency_us: RefCell<Histogram<u64>>,
    receipts: RefCell<Vec<Receipt>>,
}

impl Load {
    /// Sends all bodies and returns after the last response.
    ///
    /// # Panics
    /// If the server is unreachable, or rejects a body permanently.
    #[must_use]
    pub fn run(self) -> Sent {
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let tasks = tokio::task::LocalSet::new();
            runtime.block_on(tasks.run_until(self.send()))
        });
        thread.expect("a thread").join().expect("the load generator does not panic")
    }

    /// Returns when body `nth` should be sent, relative to the first.
    fn due(&self, nth: u64, rate: f64) -> Duration {
        Duration::from_secs_f64((nth * self.corpus.events_per_body()) as f64 / rate)
    }

    /// Signals due bodies from a separate thread: the runtime's timer has a resolution of milliseconds, which is more
    /// than the measured latencies.
    fn throttle(&self, rate: f64, started: Instant, due: Arc<Semaphore>) -> JoinHandle<()> {
        let (load, connections) = (self.clone(), self.connections);
        std::thread::spawn(move || {
            for nth in 0..load.bodies {
                let at = started + load.due(nth, rate);
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                due.add_permits(1);
            }
            due.add_permits(connections);
        })
    }

    async fn send(self) -> Sent {
        let totals = Rc::new(Totals {
            next: Cell::new(self.first),
            due: Arc::new(Semaphore::new(0)),
            accepted: Cell::new(0),
            retried: Cell::new(0),
            latency_us: RefCell::new(histogram()),
            receipts: RefCell::new(Vec::with_capacity(usize::try_from(self.bodies).expect("fits memory"))),
        });
        let mut clients = Vec::new();
        for _ in 0..self.connections {
            clients.push(Client::connect(&self).await);
        }
        let (cpu, started) = (thread_cpu_seconds(), Instant::now());
        let pacer = self.rate.map(|rate| self.throttle(rate, started, Arc::clone(&totals.due)));
        let tasks: Vec<_> = clients
            .into_iter()
            .map(|client| tokio::task::spawn_local(client.work(self.clone(), started, Rc::clone(&totals))))
            .collect();
        for task in tasks {
            task.await.expect("a connection does not panic");
        }
        let took = started.elapsed();
        drop(pacer.map(JoinHandle::join));
        let cpu_seconds = thread_cpu_seconds() - cpu;
        let totals = Rc::into_inner(totals).expect("all tasks have ended");
        Sent {
            accepted: totals.accepted.get(),
            retried: totals.retried.get(),
            took,
            started,
            latency_us: totals.latency_us.into_inner(),
            cpu_seconds,
            receipts: totals.receipts.into_inner(),
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

    async fn work(mut self, load: Load, started: Instant, totals: Rc<Totals>) {
        let events = load.corpus.events_per_body();
        loop {
            if totals.next.get() >= load.first + load.bodies {
                return;
            }
            if load.rate.is_some() {
                // One per scheduled body, and one per connection to end with.
                totals.due.acquire().await.expect("the semaphore is never closed").forget();
            }
            let number = totals.next.get();
            if number >= load.first + load.bodies {
                return;
            }
            totals.next.set(number + 1);
            let since = load.rate.map_or_else(Instant::now, |rate| started + load.due(number - load.first, rate));
            loop {
                let status = self.exchange(&load, number).await;
                match status {
                    200..=299 => break,
                    429 | 503 => {
                        totals.retried.set(totals.retried.get() + 1);
                        sleep(REFUSED_PAUSE).await;
                    }
                    _ => panic!("status {status}: {}", String::from_utf8_lossy(&self.answer)),
                }
            }
            let at = Instant::now();
            let micros = u64::try_from((at - since).as_micros()).unwrap_or(u64::MAX);
            totals.latency_us.borrow_mut().saturating_record(micros);
            totals.accepted.set(totals.accepted.get() + number_after(&self.answer, b"\"accepted\":").unwrap_or(events));
            let place = number_after(&self.answer, b"\"lane\":").zip(number_after(&self.answer, b"\"seq\":"));
            if let Some((lane, seq)) = place {
                totals.receipts.borrow_mut().push(Receipt { at, lane, seq });
            }
        }
    }

    /// Sends body `number` and reads the complete response.
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
            let read = self.stream.read_buf(&mut self.answer).await.expect("the server responds");
            assert!(read > 0, "the server closed the connection: {}", String::from_utf8_lossy(&self.answer));
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
