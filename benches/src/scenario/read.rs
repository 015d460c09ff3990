//! Reading: queries over a day of events in PostgreSQL, how soon the live tail shows what was acknowledged, and what ten
//! people who query cost intake.

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

/// The events happen over this time, which ends now.
const DAY_US: i64 = 86_400_000_000;
/// Each query so often, or as often as fits into this time; the first is not counted.
const TIMES: usize = 21;
const ASKING: Duration = Duration::from_secs(15);
/// Records whose way into the tail is measured.
const TAIL_RECORDS: u32 = 500;
const TAIL_PAUSE: Duration = Duration::from_millis(10);
/// People who query, each with so much time to look at an answer.
const PEOPLE: usize = 10;
const LOOKING: Duration = Duration::from_secs(1);
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name, a path and a goal for its median.
type Question = (&'static str, &'static str, Option<&'static str>);

const QUESTIONS: [Question; 8] = [
    ("last hour, service and severity", "query?query=service:checkout%20severity%3E=warn&start=-1h", Some("≤ 200")),
    ("last hour, a word and severity", "query?query=retry%20severity%3E=error&start=-1h", Some("≤ 200")),
    ("last hour, an attribute", "query?query=status:217&start=-1h", Some("≤ 200")),
    ("last day, a rare word", "query?query=zzzzunheard&start=-24h", None),
    ("histogram of a day", "hits?start=-24h", Some("≤ 200")),
    ("histogram of a day, one service", "hits?query=service:checkout&start=-24h", Some("≤ 200")),
    ("histogram of an hour, a word", "hits?query=retry&start=-1h", None),
    ("facets of an hour", "facets?start=-1h&fields=service,host,severity,status", None),
];

/// What the page asks for when it is opened.
const FIRST_SCREEN: [&str; 5] = [
    "/",
    "/api/v1/query?start=-1h&limit=200",
    "/api/v1/hits?start=-1h",
    "/api/v1/facets?start=-1h&fields=severity,service,host",
    "/api/v1/fields?start=-1h",
];

/// `options.events` over a day, then everything that reads.
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
    rounds.add_with_goal("all that the page asks for at first", "ms", "≤ 1000", median);
    if let Some((median, worst)) = drawn(to) {
        rounds.add_with_goal("the page in Chromium, from opened to drawn", "ms", Some("≤ 1000"), median);
        rounds.add("the page in Chromium, slowest", "ms", worst);
    }
    let tail = tail(to);
    rounds.add("acknowledged to seen in the tail p50", "ms", tail.value_at_quantile(0.5) as f64 / 1000.0);
    rounds.add_with_goal(
        "acknowledged to seen in the tail p99",
        "ms",
        "≤ 500",
        tail.value_at_quantile(0.99) as f64 / 1000.0,
    );
    report.take(rounds);
    intake(options, &mut subject, report);
}

/// Median and worst of the times that all `paths` together take, in milliseconds.
fn ask(to: SocketAddr, paths: &[String]) -> (f64, f64) {
    often(|| {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for path in paths {
                scope.spawn(move || fetch(to, path));
            }
        });
        begun.elapsed().as_secs_f64() * 1000.0
    })
}

/// Median and worst of what `once` gives, the first left out.
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

/// Milliseconds from opening the page until its records and its histogram are drawn; nothing where no Chromium is.
fn drawn(to: SocketAddr) -> Option<(f64, f64)> {
    const DRAWN: &str = "const done = arguments[arguments.length - 1];
        const look = () => document.querySelector('.row:not(.head)') && document.querySelector('.total')?.innerText
            && !document.querySelector('.histogram.busy') ? done(performance.now()) : requestAnimationFrame(look);
        look();";
    std::process::Command::new("chromedriver").arg("--version").output().ok()?;
    let browser = Browser::open(to, Screen::Desktop);
    Some(often(|| {
        browser.goto("/");
        browser.js_later(DRAWN).as_f64().expect("a time")
    }))
}

fn fetch(to: SocketAddr, path: &str) {
    let answer = get(&agent(PATIENCE), &format!("http://{to}{path}")).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
}

/// Microseconds from the answer to a record until the tail shows it.
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
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(None), "the tail begins");
    let agent = agent(PATIENCE);
    let url = format!("http://{to}/ingest?service=tailed");
    let mut told = HashMap::new();
    for number in 0..TAIL_RECORDS {
        let answer = post_body(&agent, &url, "text/plain", &format!("probe-{number}-")).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        told.insert(number, Instant::now());
        std::thread::sleep(TAIL_PAUSE);
    }
    let mut latency_us = histogram();
    while !told.is_empty() {
        let note = seen.recv_timeout(PATIENCE).expect("each record is seen");
        if let Some((number, at)) = note
            && let Some(acknowledged) = told.remove(&number)
        {
            let micros = at.saturating_duration_since(acknowledged).as_micros();
            latency_us.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX).max(1));
        }
    }
    latency_us
}

/// The rate of intake alone, and while people query, in turn.
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
            sent.accepted as f64 / (ended - sent.begun.into_std()).as_secs_f64()
        };
        let alone = rate(subject);
        let people = People::start(subject.server().http);
        let beside = rate(subject);
        rounds.add("answers to ten people meanwhile", "", f64::from(people.stop()));
        rounds.add("first byte sent to last row committed", "events/s", alone);
        rounds.add("the same while ten people query", "events/s", beside);
        rounds.add_with_goal("of the rate without them", "x", "≥ 0.90", beside / alone);
    }
    report.take(rounds);
}

/// Ten people, each of whom asks, looks for a second, and asks again.
struct People {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u32>>,
}

impl People {
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

    /// How many answers they had.
    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("nobody is let down")).sum()
    }
}
