//! TimescaleDB beside daily partitions: the page's questions over a closed day, and what storing costs.
//!
//! The day is asked about as daily partitions with their indexes, as a chunk, and as a compressed chunk. Milliseconds
//! are the API's; buffers are those of the statements that the program sends, which the server explains
//! (`AUTO_EXPLAIN`). `LOGWEIR_TEST_PG_BIN` names the programs of a server that has the extension.

use std::time::{Duration, Instant};

use logweir_record::timestamp::{DAY_US, date, text};
use logweir_tests::client::{agent, get};

use super::store::measure;
use super::{MILLION, Options};
use crate::report::{Report, Rounds};
use crate::subject::{Database, Setup, Subject};

/// The day that is asked about, counted back from today: its partition is closed, and has its indexes.
const DAYS_AGO: i64 = 3;
/// Repetitions of each question, the first of which is dropped, and the time limit for them.
const TIMES: i64 = 12;
const ASKING: Duration = Duration::from_secs(20);
/// Time limit of everything else.
const PATIENCE: Duration = Duration::from_secs(600);

/// Name, and what follows `/api/v1/`; `{n}` is another number each time, since histograms are cached.
const QUESTIONS: [(&str, &str); 11] = [
    ("newest 100", "query?limit=100"),
    ("a service, 100", "query?query=service:checkout&limit=100"),
    ("severity, 100", "query?query=severity%3E=error&limit=100"),
    ("a host, 100", "query?query=host:node-07&limit=100"),
    ("a service and severity, 100", "query?query=service:checkout%20severity%3E=error&limit=100"),
    ("a word, 100", "query?query=upstream&limit=100"),
    ("a word that does not occur", "query?query=zzzzabsent&limit=100"),
    ("an attribute, 100", "query?query=status:217&limit=100"),
    ("histogram (counters)", "hits?"),
    ("histogram of a word", "hits?query=upstream%20NOT%20zzzz{n}"),
    ("facets", "facets?fields=service,host,severity,status"),
];

/// The server explains each statement of this database in its log.
const AUTO_EXPLAIN: [&str; 5] = [
    "session_preload_libraries = 'auto_explain'",
    "auto_explain.log_min_duration = 0",
    "auto_explain.log_analyze = on",
    "auto_explain.log_buffers = on",
    "auto_explain.log_timing = off",
];

/// Milliseconds and buffers per question.
type Answers = Vec<(f64, f64)>;

/// Asks about a day in each of its forms.
pub fn read(options: &Options, report: &mut Report) {
    let day_us = (options.base_us.div_euclid(DAY_US) - DAYS_AGO) * DAY_US;
    let (plain, plain_bytes) = plain(options, day_us);
    let [(open, open_bytes), (compressed, compressed_bytes)] = chunk(options, day_us);
    let mut rounds = Rounds::new("read, TimescaleDB");
    for (nth, (what, _)) in QUESTIONS.iter().enumerate() {
        let forms = [("plain", &plain), ("open chunk", &open), ("compressed", &compressed)];
        for (form, answers) in forms {
            rounds.add(format!("{what}: {form}"), "ms", answers[nth].0);
        }
        for (form, answers) in &forms[1..] {
            rounds.add_with_goal(format!("{what}: {form}, relative"), "x plain", "≤ 3", answers[nth].0 / plain[nth].0);
        }
        for (form, answers) in forms {
            rounds.add(format!("{what}: {form}, buffers"), "", answers[nth].1);
        }
    }
    for (form, bytes) in [("plain", plain_bytes), ("open chunk", open_bytes), ("compressed", compressed_bytes)] {
        rounds.add(format!("size: {form}"), "B/record", bytes);
    }
    report.take(rounds);
}

/// The day as a partition with its indexes. Returns the bytes per record, too.
fn plain(options: &Options, day_us: i64) -> (Answers, f64) {
    let database = Database::start_with(&[("shared_preload_libraries", "")]);
    let setup = options.setup.clone().with("database.url", database.url());
    let subject = Subject::start(&options.binary, &setup);
    database.prepared();
    drop(subject);
    // An index that is there while records come in is larger than one that is built when the day is over.
    let mut subject = Subject::start(&options.binary, &setup.clone().with("database.maintenance", false));
    let (year, month, day) = date(day_us / DAY_US);
    let name = format!("logs_p{year:04}{month:02}{day:02}");
    let (from, to) = (text(day_us), text(day_us + DAY_US));
    database.run(&format!("CREATE TABLE {name} PARTITION OF logs FOR VALUES FROM ('{from}') TO ('{to}')"));
    fill(options, day_us, &mut subject);
    drop(subject);
    // It builds the indexes.
    let subject = Subject::start(&options.binary, &setup);
    let indexes = format!(
        "SELECT count(*) FROM pg_index WHERE indrelid = '{name}'::regclass AND indisvalid AND indexrelid::regclass::text ~ \
         'service_ts_idx|message_trgm_idx'"
    );
    let deadline = Instant::now() + PATIENCE;
    while database.number(&indexes) < 2.0 {
        assert!(Instant::now() < deadline, "the indexes are not built");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(subject);
    let answers = ask(options, &database, &setup, day_us);
    let bytes = database.number(&format!("SELECT pg_total_relation_size('{name}')")) / database.rows() as f64;
    (answers, bytes)
}

/// The day as a chunk, then compressed.
fn chunk(options: &Options, day_us: i64) -> [(Answers, f64); 2] {
    let database = Database::start();
    let setup = options.setup.clone().with("database.url", database.url()).with("database.compress_after_days", 30);
    let mut subject = Subject::start(&options.binary, &setup);
    database.prepared();
    let settings = "SELECT count(*) FROM timescaledb_information.compression_settings WHERE hypertable_name = 'logs'";
    let deadline = Instant::now() + PATIENCE;
    while database.number(settings) < 2.0 {
        assert!(Instant::now() < deadline, "compression is not set up; is TimescaleDB installed?");
        std::thread::sleep(Duration::from_millis(100));
    }
    fill(options, day_us, &mut subject);
    drop(subject);
    let bytes = |database: &Database| database.number("SELECT hypertable_size('logs')") / database.rows() as f64;
    let open = (ask(options, &database, &setup, day_us), bytes(&database));
    database.run("SELECT compress_chunk(c) FROM show_chunks('logs') c");
    let compressed = (ask(options, &database, &setup, day_us), bytes(&database));
    [open, compressed]
}

/// Stores the events over the day.
fn fill(options: &Options, day_us: i64, subject: &mut Subject) {
    let events = i64::try_from(options.events.max(1)).expect("a count");
    let day = Options {
        base_us: day_us,
        setup: options.setup.clone(),
        binary: options.binary.clone(),
        ack: options.ack.clone(),
        ..*options
    };
    let corpus =
        day.corpus().spread((DAY_US - 1) / (events + i64::try_from(day.corpus().events_per_body()).unwrap_or(0)));
    let _ = day.load(subject, &corpus).run();
    let _ = subject.emptied();
}

/// Asks each question: often, for the time; then once, for the buffers.
fn ask(options: &Options, database: &Database, setup: &Setup, day_us: i64) -> Answers {
    database.run("VACUUM (ANALYZE) logs");
    let setup = setup.clone().with("database.maintenance", false);
    let mut subject = Subject::start(&options.binary, &setup);
    let agent = agent(PATIENCE);
    let fetch = |subject: &mut Subject, path: &str, time: i64| {
        let (start, end) = (text(day_us + time), text(day_us + DAY_US));
        let path = path.replace("{n}", &time.to_string());
        let url = format!("http://{}/api/v1/{path}&start={start}&end={end}", subject.server().http);
        let started = Instant::now();
        let answer = get(&agent, &url).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(answer.status, 200, "{url}: {}", answer.body);
        started.elapsed().as_secs_f64() * 1000.0
    };
    let medians: Vec<f64> = QUESTIONS
        .iter()
        .map(|(_, path)| {
            let end = Instant::now() + ASKING;
            let mut all: Vec<f64> = (0..TIMES)
                .map_while(|time| (time < 2 || Instant::now() < end).then(|| fetch(&mut subject, path, time)))
                .skip(1)
                .collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        })
        .collect();
    drop(subject);
    for setting in AUTO_EXPLAIN {
        database.set(setting);
    }
    let mut subject = Subject::start(&options.binary, &setup);
    let buffers = QUESTIONS.map(|(_, path)| {
        fetch(&mut subject, path, TIMES);
        let before = database.log().len();
        fetch(&mut subject, path, TIMES + 1);
        buffers(&database.log()[before..])
    });
    for setting in AUTO_EXPLAIN {
        database.reset(setting);
    }
    medians.into_iter().zip(buffers).collect()
}

/// The buffers that the explained statements about records or counters have used: those of the first node of each plan.
fn buffers(log: &str) -> f64 {
    let plans = log.split("Query Text: ").skip(1).filter(|plan| plan.contains("log_volume") || plan.contains("logs"));
    plans
        .filter_map(|plan| plan.lines().find(|line| line.contains("Buffers: ")))
        .flat_map(|line| line.split([' ', ',']))
        .filter_map(|word| word.strip_prefix("hit=").or_else(|| word.strip_prefix("read=")))
        .filter_map(|number| number.parse::<f64>().ok())
        .sum()
}

/// Stores the same events in daily partitions, in a chunk, and directly compressed, in turns.
pub fn ingest(options: &Options, report: &mut Report) {
    const FORMS: [&str; 3] = ["plain", "TimescaleDB", "direct compress"];
    let corpus = options.corpus();
    let mut stores = FORMS.map(|form| {
        let preloaded: &[_] = if form == "plain" { &[("shared_preload_libraries", "")] } else { &[] };
        let database = Database::start_with(preloaded);
        let mut setup = options.setup.clone().with("database.url", database.url());
        if form == "direct compress" {
            setup = setup.with("database.direct_compress", true);
        }
        let subject = Subject::start(&options.binary, &setup);
        database.prepared();
        (form, database, subject)
    });
    let mut rounds = Rounds::new("ingest, TimescaleDB");
    for round in 0..options.rounds {
        if round == 1 {
            rounds.forget();
        }
        let mut plain = None;
        for (form, database, subject) in &mut stores {
            database.empty();
            let mut ignored = Rounds::new("");
            let run = measure(options, subject, &corpus, Some(database), &mut ignored);
            assert_eq!(database.rows() as f64, run.events, "{form}: not every accepted event is a row");
            let (rate, cpu) = (run.rate(), run.database_cpu);
            let (plain_rate, plain_cpu) = *plain.get_or_insert((rate, cpu));
            rounds.add(format!("{form}: first byte sent to last row committed"), "events/s", rate);
            rounds.add(format!("{form}: rate, relative"), "x plain", rate / plain_rate);
            rounds.add(format!("{form}: CPU of PostgreSQL"), "s/M", cpu);
            rounds.add(format!("{form}: CPU of PostgreSQL, relative"), "x plain", cpu / plain_cpu);
            rounds.add(format!("{form}: CPU of logweir"), "s/M", run.own_cpu);
            let is_plain = *form == "plain";
            let size = if is_plain {
                "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('logs')"
            } else {
                "SELECT hypertable_size('logs')"
            };
            rounds.add(format!("{form}: size"), "B/record", database.number(size) / run.events);
            if *form == "TimescaleDB" {
                let before = database.cpu_seconds();
                database.run("SELECT compress_chunk(c) FROM show_chunks('logs') c");
                let cpu = (database.cpu_seconds() - before) / (run.events / MILLION);
                rounds.add(format!("{form}: compression afterwards, CPU"), "s/M", cpu);
                rounds.add(format!("{form}: size when compressed"), "B/record", database.number(size) / run.events);
            }
        }
    }
    report.take(rounds);
}
