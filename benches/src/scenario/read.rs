//! Queries over a day of events in PostgreSQL, the latency of the live tail, and the effect of ten querying clients on
//! intake.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use logweir_tests::browser::{Browser, Screen};
use logweir_tests::client::{agent, get, post_body};

use super::Options;
use crate::meter::histogram;
use crate::report::{Report, Rounds};
use crate::subject::{Database, Subject};

/// Time span of the events, which ends now.
const DAY_US: i64 = 86_400_000_000;
/// Repetitions of each query, or the time limit for them; the first is dropped.
const TIMES: usize = 21;
const ASKING: Duration = Duration::from_secs(15);
/// Number of records whose tail latency is measured.
const TAIL_RECORDS: u32 = 500;
const TAIL_PAUSE: Duration = Duration::from_millis(10);
/// Number of querying clients, and their pause after each response.
const PEOPLE: usize = 10;
const LOOKING: Duration = Duration::from_secs(1);
/// Time limit.
const PATIENCE: Duration = Duration::from_secs(60);

/// Name, path, and goal for the median.
type Question = (&'static str, &'static str, Option<&'static str>);

const QUESTIONS: [Question; 8] = [
    ("last hour, service and severity", "query?query=service:checkout%20severity%3E=warn&start=-1h", Some("≤ 200")),
    ("last hour, a word and severity", "query?query=retry%20severity%3E=error&start=-1h", Some("≤ 200")),
    ("last hour, an attribute", "query?query=status:217&start=-1h", Some("≤ 200")),
    ("last day, a word that does not occur", "query?query=zzzzabsent&start=-24h", None),
    ("histogram of a day", "hits?start=-24h", Some("≤ 200")),
    ("histogram of a day, one service", "hits?query=service:checkout&start=-24h", Some("≤ 200")),
    ("histogram of an hour, a word", "hits?query=retry&start=-1h", None),
    ("facets of an hour", "facets?start=-1h&fields=service,host,severity,status", None),
];

/// The web UI's initial requests.
const FIRST_SCREEN: [&str; 5] = [
    "/",
    "/api/v1/query?start=-1h&limit=200",
    "/api/v1/hits?start=-1h",
    "/api/v1/facets?start=-1h&fields=severity,service,host",
    "/api/v1/fields?start=-1h",
];

/// Stores `options.events` over a day, then measures all reads.
pub fn read(options: &Options, report: &mut Report) {
    let database = Database::start();
    let mut subject = Subject::start(&options.binary, &options.setup.clone().with("database.url", database.url()));
    database.prepared();
    let now_us = logweir_engine::clock::wall_us();
    let events = i64::try_from(options.events.max(1)).expect("a count");
    let past = Options {
        base_us: now_us - DAY_US,
        setup: options.setup.clone(),
        binary: options.binary.clone(),
        ack: options.ack.clone(),
        ..*options
    };
    let corpus = past.corpus().spread(DAY_US / events);
    let _ = past.load(&mut subject, &corpus).run();
    let _ = subject.emptied();
    database.run("VACUUM (ANALYZE) logs");

    let mut rounds = Rounds::new("read");
    rounds.add("events in the table", "M", database.rows() as f64 / super::MILLION);
    let to = subject.server().http;
    for (what, path, goal) in QUESTIONS {
        let paths = [format!("/api/v1/{path}")];
        let (median, worst) = ask(to, &paths);
        rounds.add_with_goal(what, "ms", goal, median);
        rounds.add(format!("{what}, slowest"), "ms", worst);
    }
    let (median, _) = ask(to, &FIRST_SCREEN.map(str::to_owned));
    rounds.add_with_goal("all initial requests of the web UI", "ms", "≤ 1000", median);
    if let Some((median, worst)) = drawn(to) {
        rounds.add_with_goal("the web UI in Chromium, from opened to drawn", "ms", Some("≤ 1000"), median);
        rounds.add("the web UI in Chromium, slowest", "ms", worst);
    }
    let tail = tail(to);
    rounds.add("acknowledged to visible in the live tail p50", "ms", tail.value_at_quantile(0.5) as f64 / 1000.0);
    rounds.add_with_goal(
        "acknowledged to visible in the live tail p99",
        "ms",
        "≤ 500",
        tail.value_at_quantile(0.99) as f64 / 1000.0,
    );
    report.take(rounds);
    intake(options, &mut subject, report);
}

/// Returns median and maximum of the total time of all `paths`, in milliseconds.
fn ask(to: SocketAddr, paths: &[String]) -> (f64, f64) {
    often(|| {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for path in paths {
                scope.spawn(move || fetch(to, path));
            }
        });
        started.elapsed().as_secs_f64() * 1000.0
    })
}

/// Returns median and maximum of `once`'s results, without the first.
fn often(once: impl FnMut() -> f64) -> (f64, f64) {
    let end = Instant::now() + ASKING;
    let mut all: Vec<f64> = std::iter::repeat_with(once)
        .take(TIMES)
        .enumerate()
        .take_while(|&(time, _)| time < 2 || Instant::now() < end)
        .map(|(_, one)| one)
        .skip(1)
        .collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() - 1])
}

/// Returns the milliseconds from opening the web UI until records and histogram are drawn; `None` without Chromium.
fn drawn(to: SocketAddr) -> Option<(f64, f64)> {
    const DRAWN: &str = "const done = arguments[arguments.length - 1];
        const poll = () => document.querySelector('.row:not(.head)') && document.querySelector('.total')?.innerText
            && !document.querySelector('.histogram.busy') ? done(performance.now()) : requestAnimationFrame(poll);
        poll();";
    std::process::Command::new("chromedriver").arg("--version").output().ok()?;
    let browser = Browser::open(to, Screen::Desktop);
    Some(often(|| {
        browser.goto("/");
        browser.js_async(DRAWN).as_f64().expect("a time")
    }))
}

fn fetch(to: SocketAddr, path: &str) {
    let answer = get(&agent(PATIENCE), &format!("http://{to}{path}")).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
}

/// Returns the microseconds from a record's acknowledgment until the tail sends it.
fn tail(to: SocketAddr) -> hdrhistogram::Histogram<u64> {
    let mut stream = TcpStream::connect(to).expect("the server");
    let request =
        format!("GET /api/v1/tail?query=service:tailed HTTP/1.1\r\nHost: {to}\r\nAccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the server reads");
    let (sender, seen) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let number = line.split_once("probe-").and_then(|(_, rest)| rest.split('-').next()?.parse::<u32>().ok());
            let note = number.map(|number| (number, Instant::now()));
            if (number.is_some() || line.starts_with("HTTP/1.1 200")) && sender.send(note).is_err() {
                return;
            }
        }
    });
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(None), "the tail does not start");
    let agent = agent(PATIENCE);
    let url = format!("http://{to}/ingest?service=tailed");
    let mut sent_at = HashMap::new();
    for number in 0..TAIL_RECORDS {
        let answer = post_body(&agent, &url, "text/plain", &format!("probe-{number}-")).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        sent_at.insert(number, Instant::now());
        std::thread::sleep(TAIL_PAUSE);
    }
    let mut latency_us = histogram();
    while !sent_at.is_empty() {
        let note = seen.recv_timeout(PATIENCE).expect("the tail sends each record");
        if let Some((number, at)) = note
            && let Some(acknowledged) = sent_at.remove(&number)
        {
            let micros = at.saturating_duration_since(acknowledged).as_micros();
            latency_us.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX).max(1));
        }
    }
    latency_us
}

/// Measures the intake rate alternately alone and with querying clients.
fn intake(options: &Options, subject: &mut Subject, report: &mut Report) {
    let corpus = options.corpus();
    let mut rounds = Rounds::new("read");
    for round in 0..options.rounds {
        if round == 1 {
            rounds.forget();
        }
        let rate = |subject: &mut Subject| {
            let sent = options.load(subject, &corpus).run();
            let ended = subject.emptied();
            sent.accepted as f64 / (ended - sent.started.into_std()).as_secs_f64()
        };
        let alone = rate(subject);
        let clients = Clients::start(subject.server().http);
        let beside = rate(subject);
        rounds.add("responses to ten querying clients", "", f64::from(clients.stop()));
        rounds.add("first byte sent to last row committed", "events/s", alone);
        rounds.add("the same while ten clients query", "events/s", beside);
        rounds.add_with_goal("relative to the rate without queries", "x", "≥ 0.90", beside / alone);
    }
    report.take(rounds);
}

/// Ten clients, each of which queries, pauses for a second, and repeats.
struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u32>>,
}

impl Clients {
    fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let person = |first: usize| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (agent, mut answers) = (agent(PATIENCE), 0);
                for (_, path, _) in QUESTIONS.iter().cycle().skip(first) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let answer = get(&agent, &format!("http://{to}/api/v1/{path}")).expect("an answer");
                    assert!(matches!(answer.status, 200 | 429 | 504), "{path}: {} {}", answer.status, answer.body);
                    answers += u32::from(answer.status == 200);
                    std::thread::sleep(LOOKING);
                }
                answers
            })
        };
        let threads = (0..PEOPLE).map(person).collect();
        Self { stop, threads }
    }

    /// Stops them and returns the number of responses.
    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("no client panics")).sum()
    }
}
