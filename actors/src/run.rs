//! The life of the server process: listen, recover, serve, drain, exit with a code that says why.
//!
//! Order matters: the configuration is valid before this starts, both ports are ours before the journal is touched, the
//! admin listener answers while the journal is read, intake is open before the database answers, and the listeners
//! outlive the stages so that requests in flight get their answer.

use std::future::Future;
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use actix_web::dev::ServerHandle;
use logweir_engine::drain::{DrainControl, DrainEvent, Phase};
use logweir_engine::fault;
use logweir_engine::stage::Exit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Duration, timeout};
use tracing_subscriber::EnvFilter;

use crate::cache;
use crate::config::{Config, DatabaseUrl, Role};
use crate::http::{self, Running, Shared};
use crate::logweir::{Logweir, ShutdownReport, process_name};
use crate::message::Defaults;
use crate::metric_help;
use crate::producer::framing::Framing;
use crate::producer::multiline::Multiline;
use crate::producer::source_client::SourceClient;
use crate::producer::stream::StreamSource;
use crate::producer::{demo, files, syslog};
use crate::progress::Progress;
use crate::query_throttle::QueryThrottle;
use crate::search::Searcher;
use crate::store;

/// How long requests that are at work when intake closes may take to hand their bodies in.
const INTAKE_PATIENCE: Duration = Duration::from_secs(1);
/// How long they then have for their last bytes, once everything behind them has stopped.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// How often the metrics are looked after.
const UPKEEP: Duration = Duration::from_secs(5);
/// The demo makes the same services in every run.
const DEMO_SEED: u64 = 1;

/// Libraries that say at `info` what only concerns themselves; `log.level` may ask for more.
const QUIET: &str = "actix_server=warn,refinery_core=warn,fred=warn";

/// Buckets of every `_seconds` histogram: from a fast fsync to a slow transaction.
const SECONDS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Buckets of `logweir_journal_group_frames`.
const FRAMES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0];

/// Runs the server until a signal, the end of standard input, a drain request or a failure; returns the exit code.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    process(&config.clone(), serve(config))
}

/// Empties the journal in `dir` into the database and seals it; returns the exit code.
#[must_use]
pub fn drain_journal(config: Config, dir: &Path, adopt: bool) -> ExitCode {
    let dir = dir.to_owned();
    process(&config.clone(), async move {
        let stopped = crate::logweir::drain_journal(config, dir, adopt).await?;
        close(&stopped);
        stopped.failure.map_or(Ok(()), Err)
    })
}

/// What every command that runs the engine has around it.
fn process(config: &Config, work: impl Future<Output = Result<(), Exit>>) -> ExitCode {
    let _armed = fault::arm_from_environment();
    log_to_stderr(config);
    let system = actix_rt::System::new();
    let outcome = system.block_on(work);
    // Dropping the runtime would wait for a read of standard input that may never end.
    std::mem::forget(system);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            tracing::error!(exit_code = exit.code, "{}", exit.reason);
            ExitCode::from(exit.code)
        }
    }
}

async fn serve(config: Config) -> Result<(), Exit> {
    let config = Arc::new(config);
    let data = listen("http.listen", config.http.listen)?;
    let admin = listen("admin.listen", config.admin.listen)?;
    let syslog = syslog::bind(&config.syslog).map_err(|detail| Exit::new(Exit::UNAVAILABLE, detail))?;
    let mut signals = signals()?;
    let (drain, progress, drain_asked) = (DrainControl::default(), Progress::default(), Arc::new(Notify::new()));
    let asked = Arc::clone(&drain_asked);
    let prometheus = metrics_recorder()?;
    actix_rt::spawn(upkeep(prometheus.clone()));
    let shared = Shared::new(
        Arc::clone(&config),
        drain.watch(),
        progress.clone(),
        prometheus,
        Arc::new(move || asked.notify_one()),
        process_name(),
    )
    .map_err(|error| Exit::new(Exit::CONFIG, format!("gateway.tls_ca_file, gateway.tls_cert_file: {error}")))?;
    let admin = http::serve_admin(&shared, admin).map_err(|error| unavailable("admin.listen", &error))?;
    actix_rt::spawn(admin.server);
    if config.role == Role::Gateway {
        let data = serve_gateway(&shared, data, admin.address).await?;
        tokio::select! {
            _ = signals.recv() => {}
            () = drain_asked.notified() => {}
        }
        stop_gateway(&drain, config.shutdown.linger_ms, &mut signals, [data, admin.handle]).await;
        return Ok(());
    }

    let logweir = Logweir::start_seen(Arc::clone(&config), drain, progress).await?;
    shared.search_with(logweir.searcher());
    shared.letters_of(logweir.store());
    shared.start(Running {
        intake: logweir.intake(),
        journal: logweir.journal(),
        observer: logweir.observer(),
        tail: logweir.tail(),
        alerts: logweir.alerts(),
        writer: logweir.recovered().writer,
    });
    let data = http::serve_data(&shared, data).map_err(|error| unavailable("http.listen", &error))?;
    actix_rt::spawn(data.server);
    announce(&config, &logweir, data.address, admin.address);
    let sources_ended = sources(&config, &logweir, syslog, &shared);

    let mut failure = None;
    let first = tokio::select! {
        _ = signals.recv() => DrainEvent::Signal,
        () = drain_asked.notified() => DrainEvent::Requested,
        () = sources_ended => DrainEvent::Requested,
        exit = logweir.failed() => {
            failure = Some(exit);
            DrainEvent::Requested
        }
    };
    let intake_idle = async {
        let _ = timeout(INTAKE_PATIENCE, shared.idle()).await; // who is slower gets 503
    };
    let stopped = logweir.stop_on(first, &mut signals, intake_idle).await;
    for handle in [data.handle, admin.handle] {
        let _ = timeout(LAST_ANSWERS, handle.stop(true)).await;
    }
    close(&stopped);
    failure.or(stopped.failure).map_or(Ok(()), Err)
}

/// A gateway answers from the store and from the processors; it has no journal and no stages.
async fn serve_gateway(shared: &Shared, data: TcpListener, admin: SocketAddr) -> Result<ServerHandle, Exit> {
    let config = &shared.config;
    let wrong = |error: &dyn std::fmt::Display| Exit::new(Exit::CONFIG, error.to_string());
    let opened = store::open(&config.database).map_err(|error| wrong(&error))?;
    let cache = cache::open(&config.cache, config.database.ca_file.as_deref()).await.map_err(|error| wrong(&error))?;
    let throttle = QueryThrottle::default();
    let reader = opened.reader(Duration::from_millis(config.query.timeout_ms), throttle.clone());
    shared.search_with(Searcher::new(reader, cache, config.query));
    shared.letters_of(opened.store());
    if let Some(gateway) = shared.gateway.clone() {
        actix_rt::spawn(async move { gateway.look_up(&throttle).await });
    }
    let data = http::serve_data(shared, data).map_err(|error| unavailable("http.listen", &error))?;
    actix_rt::spawn(data.server);
    let names: Vec<String> = shared.config.gateway.processors.iter().map(ToString::to_string).collect();
    eprintln!(
        "logweir {version}: a gateway to {processors}\n\
         \x20 look at         http://{data}/   http://{data}/api/v1/pipeline   http://{admin}/metrics",
        version = crate::VERSION,
        processors = names.join(", "),
        data = data.address,
    );
    Ok(data.handle)
}

/// The way down of a gateway: readiness goes at once, answers go on for the linger, then what is at work ends.
async fn stop_gateway(
    drain: &DrainControl,
    linger_ms: u64,
    signals: &mut mpsc::Receiver<()>,
    listeners: [ServerHandle; 2],
) {
    drain.advance(Phase::Closing);
    // A second signal is in a hurry.
    let _ = timeout(Duration::from_millis(linger_ms), signals.recv()).await;
    drain.advance(Phase::Draining);
    for listener in listeners {
        let _ = timeout(LAST_ANSWERS, listener.stop(true)).await;
    }
    drain.advance(Phase::Done);
    eprintln!("logweir stopped: a gateway keeps nothing");
}

fn listen(key: &str, address: std::net::SocketAddr) -> Result<TcpListener, Exit> {
    TcpListener::bind(address).map_err(|error| {
        let detail =
            format!("{key}: cannot listen on {address}: {error}; choose another address or stop what is there");
        Exit::new(Exit::UNAVAILABLE, detail)
    })
}

fn unavailable(key: &str, error: &std::io::Error) -> Exit {
    Exit::new(Exit::UNAVAILABLE, format!("{key}: the listener cannot be served: {error}"))
}

fn log_to_stderr(config: &Config) {
    // The filter was checked with the configuration.
    let quiet = format!("{QUIET},{}", config.log.level);
    let filter = EnvFilter::try_new(quiet).unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    // An error means that the embedding program logs already.
    let _ = if config.log.json { log.json().try_init() } else { log.try_init() };
}

fn metrics_recorder() -> Result<PrometheusHandle, Exit> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_frames".to_owned()), &FRAMES));
    let handle = builder.and_then(PrometheusBuilder::install_recorder);
    let handle = handle.map_err(|error| Exit::new(Exit::SOFTWARE, format!("metrics cannot be recorded: {error}")))?;
    metric_help::describe();
    Ok(handle)
}

/// Folds the samples of histograms: without it they pile up when nobody scrapes.
async fn upkeep(prometheus: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        prometheus.run_upkeep();
    }
}

/// Starts the producers beside HTTP; the future completes when standard input was read to its end. The way down waits for
/// what they have read.
fn sources(
    config: &Arc<Config>,
    logweir: &Logweir,
    syslog: syslog::Listeners,
    shared: &Shared,
) -> impl Future<Output = ()> + use<> {
    let source_client = SourceClient {
        intake: logweir.intake(),
        progress: logweir.progress(),
        drain: logweir.watch(),
        ack: config.ack,
    };
    if config.sources.demo_rate > 0 {
        let (source_client, rate) = (source_client.clone(), config.sources.demo_rate);
        actix_rt::spawn(async move { demo::run(&source_client, rate, DEMO_SEED).await });
    }
    {
        let (source_client, config, in_flight) = (source_client.clone(), Arc::clone(config), shared.in_flight());
        actix_rt::spawn(async move {
            syslog::serve(syslog, &source_client, &config.syslog).await;
            drop(in_flight);
        });
    }
    if !config.files.include.is_empty() {
        let (source_client, config, in_flight) = (source_client.clone(), Arc::clone(config), shared.in_flight());
        actix_rt::spawn(async move {
            files::run(&source_client, &config).await;
            drop(in_flight);
        });
    }
    let wait = Duration::from_millis(config.multiline.timeout_ms);
    let stdin = StreamSource {
        source_client,
        component: "stdin",
        framing: Framing::Lines,
        record_bytes_max: config.http.line_bytes_max,
        multiline: Some((Multiline::new(&config.multiline), wait)),
        idle_timeout: None,
        defaults: Defaults::default(),
    };
    let reads_stdin = config.sources.stdin;
    async move {
        if !reads_stdin {
            return std::future::pending().await;
        }
        match stdin.run(tokio::io::stdin()).await {
            Ok(summary) => {
                tracing::info!(records = summary.records, discarded = summary.discarded, "standard input has ended");
            }
            Err(error) => tracing::error!(%error, "standard input cannot be read any more"),
        }
    }
}

/// What a person who has just started it wants to know.
fn announce(config: &Config, logweir: &Logweir, data: std::net::SocketAddr, admin: std::net::SocketAddr) {
    let recovered = logweir.recovered();
    let holders = logweir.memory_bytes_max();
    let memory_bytes_max: usize = holders.iter().map(|(_, bytes)| bytes).sum();
    tracing::info!(writer = %recovered.writer, clean = recovered.clean, torn_bytes = recovered.torn_bytes,
        damage = recovered.damage.len(), dir = %config.data_dir.display(), "journal open");
    for damage in &recovered.damage {
        tracing::error!(
            segment = damage.segment,
            offset = damage.offset,
            seq_first = damage.seq_first,
            seq_last = damage.seq_last,
            "damage in the journal, kept aside in quarantine/: {}",
            damage.what
        );
    }
    tracing::info!(memory_bytes_max, ?holders, "memory stays below this");
    let read = match &config.database.url {
        DatabaseUrl::Sqlite(path) => {
            format!("sqlite3 -header -column {} 'select ts, service, severity, message from logs'", path.display())
        }
        DatabaseUrl::Postgres(_) => {
            "psql YOUR_DATABASE -c 'select ts, service, severity, message from logs'".to_owned()
        }
        DatabaseUrl::Blackhole => "nothing: the store is a blackhole".to_owned(),
    };
    eprintln!(
        "logweir {version}: {store}, cache {cache}, memory_bytes_max={memory_bytes_max}\n\
         \x20 post lines to   http://{data}/ingest\n\
         \x20 try             curl -sS http://{data}/ingest -d '{{\"level\":\"info\",\"service\":\"hello\",\"msg\":\"first record\"}}'\n\
         \x20 look at         http://{data}/api/v1/status   http://{admin}/metrics\n\
         \x20 read back       {read}",
        version = crate::VERSION,
        store = logweir.store().name(),
        cache = logweir.cache().name(),
    );
}

/// The one line that says what became of everything.
fn close(stopped: &ShutdownReport) {
    for stage in &stopped.stuck {
        tracing::warn!(stage, "was still at work at the deadline; what it held is in the journal");
    }
    let sum = &stopped.accounting;
    let caveat =
        if sum.asked { "" } else { " (the database was not reached: what it has counts as left in the journal)" };
    eprintln!(
        "logweir stopped: accepted={} committed={} dead_lettered={} lost={} left_in_journal={}{caveat}",
        sum.accepted, sum.committed, sum.dead, sum.lost, sum.backlog
    );
}

/// SIGTERM and SIGINT, as often as they come.
fn signals() -> Result<mpsc::Receiver<()>, Exit> {
    let stream = |kind| {
        signal(kind).map_err(|error| Exit::new(Exit::UNAVAILABLE, format!("signals cannot be received: {error}")))
    };
    let (mut terminate, mut interrupt) = (stream(SignalKind::terminate())?, stream(SignalKind::interrupt())?);
    let (sender, receiver) = mpsc::channel(4);
    actix_rt::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "stopping");
            if sender.try_send(()).is_err_and(|error| matches!(error, TrySendError::Closed(()))) {
                return;
            }
        }
    });
    Ok(receiver)
}
