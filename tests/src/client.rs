//! Clients: threads that post batches, trust only complete responses, and record the outcomes.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ledger::{Key, Ledger, Outcome, Post, write_line};

/// Default time limit, so long that no slow machine reaches it.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Time limit for the retries of a post with a key.
const RESEND_FOR: Duration = PATIENCE;

/// What the clients send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Concurrent clients, each with its own connection and one post in flight.
    pub clients: usize,
    /// Records per post.
    pub records: u32,
    /// Length of a message, in bytes.
    pub message_bytes: usize,
    /// `?ack=`.
    pub ack: &'static str,
    /// A client's pause after each post.
    pub pause: Duration,
    /// Posts per client, after which it stops.
    pub posts_max: u32,
    /// Whether each post has an `Idempotency-Key` and is retried until it is acknowledged.
    pub keyed: bool,
    /// Bearer token.
    pub token: Option<&'static str>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            clients: 4,
            records: 20,
            message_bytes: 120,
            ack: "journal",
            pause: Duration::from_millis(2),
            posts_max: u32::MAX,
            keyed: false,
            token: None,
        }
    }
}

impl Load {
    /// Bodies of about 4 MiB, so that a few of them fill a journal segment.
    #[must_use]
    pub fn large() -> Self {
        Self { clients: 2, records: 32, message_bytes: 128 << 10, ..Self::default() }
    }

    /// Starts the clients, which continue through rejections and lost connections until [`Running::stop`].
    #[must_use]
    pub fn start(self, ledger: &Arc<Ledger>, to: SocketAddr) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..self.clients)
            .map(|_| {
                let (ledger, stop) = (ledger.clone(), stop.clone());
                std::thread::spawn(move || {
                    let mut client = Client::new(&ledger, to);
                    for _ in 0..self.posts_max {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let rest = match client.post(self) {
                            Outcome::Acknowledged => self.pause,
                            Outcome::Unknown => self.pause.max(Duration::from_millis(10)),
                        };
                        std::thread::sleep(rest);
                    }
                })
            })
            .collect();
        Running { stop, threads }
    }
}

/// Running clients.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Stops the clients after their current post and waits for them.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.join();
    }

    /// Waits until each client has sent its `posts_max`.
    pub fn finish(mut self) {
        self.join();
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            thread.join().expect("no client panics");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // If this is dropped while clients are running, the test has already failed.
            let _ = thread.join();
        }
    }
}

/// A client: sends sequentially over one keep-alive connection.
pub struct Client<'a> {
    ledger: &'a Ledger,
    agent: ureq::Agent,
    to: SocketAddr,
    id: u32,
    next: u32,
}

impl<'a> Client<'a> {
    /// Creates a new client.
    #[must_use]
    pub fn new(ledger: &'a Ledger, to: SocketAddr) -> Self {
        Self { ledger, agent: agent(Duration::from_secs(60)), to, id: ledger.new_client(), next: 0 }
    }

    /// Key of the next record.
    #[must_use]
    pub fn next_key(&self) -> Key {
        Key { client: self.id, number: self.next }
    }

    /// Sends a post of new records and records its outcome.
    pub fn post(&mut self, load: Load) -> Outcome {
        self.send_judged(load).0
    }

    /// As [`Client::post`], but returns the response; `None` without one.
    pub fn send(&mut self, load: Load) -> Option<Answer> {
        self.send_judged(load).1
    }

    fn send_judged(&mut self, load: Load) -> (Outcome, Option<Answer>) {
        let post = Post { client: self.id, first: self.next, count: load.records, outcome: Outcome::Unknown };
        self.next += load.records;
        let now = now_text();
        let mut body = String::with_capacity(load.records as usize * (load.message_bytes + 160));
        for key in post.keys() {
            write_line(&mut body, key, load.message_bytes, &now);
        }
        let url = format!("http://{}/ingest?ack={}", self.to, load.ack);
        let idempotency_key = load.keyed.then(|| format!("{}-{}", post.client, post.first));
        let deadline = Instant::now() + RESEND_FOR;
        loop {
            let answer = self.request(&url, idempotency_key.as_deref(), load.token, &body);
            let outcome = answer.as_ref().map_or(Outcome::Unknown, |answer| self.judge(answer, post));
            if outcome == Outcome::Acknowledged || !load.keyed || Instant::now() > deadline {
                self.ledger.enter(Post { outcome, ..post });
                return (outcome, answer);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn request(&self, url: &str, idempotency_key: Option<&str>, token: Option<&str>, body: &str) -> Option<Answer> {
        let mut request = self.agent.post(url).header("content-type", "application/x-ndjson");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        request.send(body).ok().and_then(|response| read(response).ok())
    }

    fn judge(&self, answer: &Answer, post: Post) -> Outcome {
        match answer.status {
            200 if answer.json()["accepted"].as_u64() == Some(u64::from(post.count)) => Outcome::Acknowledged,
            // A rejection does not guarantee that nothing was stored, unless it says so.
            429 | 503 => {
                if answer.retry_after.is_none() {
                    self.ledger.record_violation(format!("{} without Retry-After: {}", answer.status, answer.body));
                }
                Outcome::Unknown
            }
            status => {
                self.ledger.record_violation(format!("{post:?} got {status} {}", answer.body));
                Outcome::Unknown
            }
        }
    }
}

/// Opens so many connections, or as many as are accepted and wait to be, and sends nothing.
#[must_use]
pub fn idle_connections(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only use the limit.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    let connect = |_| TcpStream::connect_timeout(&to, Duration::from_millis(500)).ok();
    (0..count).map_while(connect).collect()
}

/// A response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The `Retry-After` header.
    pub retry_after: Option<String>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null if it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// Creates an HTTP client that returns a response for every status and waits up to `within`.
#[must_use]
pub fn agent(within: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(within)).http_status_as_error(false).build().into()
}

/// Posts `body` once.
///
/// # Errors
/// No complete response.
pub fn post_body(agent: &ureq::Agent, url: &str, kind: &str, body: &str) -> Result<Answer, ureq::Error> {
    read(agent.post(url).header("content-type", kind).send(body)?)
}

/// Gets `url` once.
///
/// # Errors
/// No complete response.
pub fn get(agent: &ureq::Agent, url: &str) -> Result<Answer, ureq::Error> {
    read(agent.get(url).call()?)
}

/// Gets `url` once, with a token.
///
/// # Errors
/// No complete response.
pub fn get_as(agent: &ureq::Agent, token: &str, url: &str) -> Result<Answer, ureq::Error> {
    read(agent.get(url).header("authorization", format!("Bearer {token}")).call()?)
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<Answer, ureq::Error> {
    let retry_after =
        response.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(256 << 20).read_to_string()?;
    Ok(Answer { status, retry_after, body })
}

/// Returns the current time as RFC 3339.
#[must_use]
pub fn now_text() -> String {
    jiff::Timestamp::now().to_string()
}
