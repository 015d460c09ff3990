//! Life cycle of the server process: listen, recover, serve, drain, exit with a code for the reason.
//!
//! Order matters: the configuration is validated first, both ports are bound before the journal is opened, the admin
//! listener responds while the journal is read, records are accepted before the database responds, and the listeners
//! outlive the stages so that requests in flight are answered.

use std::future::Future;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use actix_web::dev::ServerHandle;
use logweir_engine::drain::{DrainControl, DrainEvent, Phase};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Duration, timeout};

use crate::cache;
use crate::config::{Config, ConfigError, Role};
use crate::config::{Unit, show_number};
use crate::control_group::Limits;
use crate::error::Error;
use crate::gateway::elsewhere;
use crate::http::{self, Running, Shared};
use crate::logweir::{Logweir, ShutdownReport, process_name};
use crate::metric_help;
use crate::producer::framing::Framing;
use crate::producer::multiline::Multiline;
use crate::producer::source_client::SourceClient;
use crate::producer::stream::StreamSource;
use crate::producer::{demo, files, syslog};
use crate::progress::Progress;
use crate::resources;
use crate::search::Searcher;
use logweir_formats::Defaults;
use logweir_store as store;
use logweir_store::throttle::QueryThrottle;
use logweir_store::{DatabaseUrl, LogStore};

/// How long requests in progress may take to submit their bodies after intake has closed.
const INTAKE_PATIENCE: Duration = Duration::from_secs(1);
/// How long they then have to finish their responses, once the stages have stopped.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// Interval at which a gateway asks its database for its version.
const LEARN_EVERY: Duration = Duration::from_secs(30);
/// Interval of the metrics' upkeep.
const UPKEEP: Duration = Duration::from_secs(5);
/// The demo generates the same services in every run.
const DEMO_SEED: u64 = 1;

/// Buckets of every `_seconds` histogram: from a fast fsync to a slow transaction.
const SECONDS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Buckets of `logweir_journal_group_frames`.
const FRAMES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0];

/// Prints a message for the operator: the addresses, the final accounting.
type Print<'a> = &'a dyn Fn(&str);

/// Runs the server until a signal, the end of standard input, a drain request or a failure. Needs a running actix system.
/// `print` is called with messages for the operator, `version` among them, on this thread: it must not wait for a reader.
///
/// # Errors
/// Why it could not start, or had to stop.
pub async fn serve(mut config: Config, version: &str, print: Print<'_>) -> Result<(), Error> {
    resources::fit_descriptors(&mut config).map_err(Error::Unavailable)?;
    let limits = Limits::of_this_process();
    tracing::debug!(?limits, "limits of the control group");
    resources::compare_cores(&config, limits);
    let config = Arc::new(config);
    let data = listen("http.listen", config.http.listen)?;
    let admin = listen("admin.listen", config.admin.listen)?;
    let syslog = syslog::bind(&config.syslog).map_err(|detail| Error::Unavailable(detail.to_string()))?;
    let mut signals = signals()?;
    let (drain, progress, drain_requested) = (DrainControl::default(), Progress::default(), Arc::new(Notify::new()));
    let requested = Arc::clone(&drain_requested);
    let prometheus = metrics_recorder()?;
    actix_rt::spawn(upkeep(prometheus.clone()));
    let shared = Shared::new(
        Arc::clone(&config),
        drain.watch(),
        progress.clone(),
        prometheus,
        Arc::new(move || requested.notify_one()),
        process_name(),
    )
    .map_err(|error| ConfigError::at("gateway.tls_ca_file", error))?;
    let admin = http::serve_admin(&shared, admin).map_err(|error| unavailable("admin.listen", &error))?;
    actix_rt::spawn(admin.server);
    if config.role == Role::Gateway {
        let data = serve_gateway(&shared, data, admin.address, version, print).await?;
        tokio::select! {
            _ = signals.recv() => {}
            () = drain_requested.notified() => {}
        }
        stop_gateway(&drain, config.shutdown.linger_ms, &mut signals, [data, admin.handle], print).await;
        return Ok(());
    }

    let starting = Logweir::start_observed(Arc::clone(&config), drain, progress);
    let Some((started, is_stopping)) = until_second_signal(starting, &mut signals, print).await else {
        print("logweir stopped during startup: no record was accepted");
        return Ok(());
    };
    let logweir = started?;
    shared.set_searcher(logweir.searcher());
    shared.set_dead_letter_store(logweir.store());
    shared.start(Running {
        intake: logweir.intake(),
        journal: logweir.journal(),
        observer: logweir.observer(),
        tail: logweir.tail(),
        alerts: logweir.alerts(),
        writer: logweir.recovered().writer,
        run: logweir.recovered().run,
    });
    let data = http::serve_data(&shared, data).map_err(|error| unavailable("http.listen", &error))?;
    actix_rt::spawn(data.server);
    announce(&config, &logweir, data.address, admin.address, version, print);
    let sources_ended = sources(&config, &logweir, syslog, &shared);

    let mut failure = None;
    let first = tokio::select! {
        () = std::future::ready(()), if is_stopping => DrainEvent::Signal,
        _ = signals.recv() => DrainEvent::Signal,
        () = drain_requested.notified() => DrainEvent::Requested,
        () = sources_ended => DrainEvent::Requested,
        exit = logweir.failed() => {
            failure = Some(exit);
            DrainEvent::Requested
        }
    };
    let intake_idle = async {
        let _ = timeout(INTAKE_PATIENCE, shared.idle()).await; // slower requests are answered 503
    };
    let stopped = logweir.stop_on(first, &mut signals, intake_idle).await;
    for handle in [data.handle, admin.handle] {
        let _ = timeout(LAST_ANSWERS, handle.stop(true)).await;
    }
    print_report(&stopped, print);
    failure.or(stopped.failure).map_or(Ok(()), Err)
}

/// Serves a gateway: it queries the store and the processors, and has no journal and no stages.
async fn serve_gateway(
    shared: &Shared,
    data: TcpListener,
    admin: SocketAddr,
    version: &str,
    print: Print<'_>,
) -> Result<ServerHandle, Error> {
    let config = &shared.config;
    let opened = store::open(&config.database).map_err(|error| ConfigError::at("database.url", error))?;
    let cache = cache::open(&config.cache, config.database.ca_file.as_deref())
        .await
        .map_err(|error| ConfigError::at("cache.url", error))?;
    let throttle = QueryThrottle::default();
    let reader = opened.reader(Duration::from_millis(config.query.timeout_ms), throttle.clone());
    shared.set_dead_letter_store(opened.store());
    shared.progress.names(opened.store().name(), cache.name());
    actix_rt::spawn(learn(opened.store(), shared.progress.clone()));
    if let Some(gateway) = shared.gateway.clone() {
        let searcher = Searcher::new(reader, cache, Arc::new(gateway.clone()), config.query);
        shared.set_searcher(searcher.clone());
        actix_rt::spawn(async move { gateway.look_up(&throttle).await });
        actix_rt::spawn(async move { elsewhere::watch(&searcher).await });
    }
    let data = http::serve_data(shared, data).map_err(|error| unavailable("http.listen", &error))?;
    actix_rt::spawn(data.server);
    let names: Vec<String> = shared.config.gateway.processors.iter().map(ToString::to_string).collect();
    print(&format!(
        "logweir {version}: gateway to {processors}\n\
         \x20 web UI    {data}/\n\
         \x20 metrics   {admin}/metrics\n\
         \x20 status    {data}/api/v1/pipeline",
        processors = names.join(", "),
        data = base_url(data.address, config.http.tls().is_some()),
        admin = base_url(admin, false),
    ));
    Ok(data.handle)
}

/// Keeps up what the status says of a gateway's database. Never completes.
async fn learn(store: Arc<dyn LogStore>, progress: Progress) {
    loop {
        store.learn().await;
        progress.store(store.name(), store.version());
        tokio::time::sleep(LEARN_EVERY).await;
    }
}

/// Stops a gateway: readiness turns 503 at once, requests are answered during the linger, then those in progress are
/// finished.
async fn stop_gateway(
    drain: &DrainControl,
    linger_ms: u64,
    signals: &mut mpsc::Receiver<()>,
    listeners: [ServerHandle; 2],
    print: Print<'_>,
) {
    drain.advance(Phase::Closing);
    // A second signal ends the linger.
    let _ = timeout(Duration::from_millis(linger_ms), signals.recv()).await;
    drain.advance(Phase::Draining);
    for listener in listeners {
        let _ = timeout(LAST_ANSWERS, listener.stop(true)).await;
    }
    drain.advance(Phase::Done);
    print("logweir stopped");
}

fn listen(key: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).map_err(|error| {
        let how = match error.kind() {
            ErrorKind::AddrInUse => "stop the other process, or choose another address",
            ErrorKind::PermissionDenied => "choose a port above 1023, or grant CAP_NET_BIND_SERVICE",
            ErrorKind::AddrNotAvailable => "choose an address of this machine",
            _ => "choose another address",
        };
        Error::Unavailable(format!("cannot listen on {address} ({key}): {error}; {how}"))
    })
}

fn unavailable(key: &str, error: &std::io::Error) -> Error {
    Error::Unavailable(format!("cannot serve {key}: {error}"))
}

fn metrics_recorder() -> Result<PrometheusHandle, Error> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_frames".to_owned()), &FRAMES));
    let handle = builder.and_then(PrometheusBuilder::install_recorder);
    let handle = handle.map_err(|error| Error::Stage(format!("cannot record metrics: {error}")))?;
    metric_help::describe();
    Ok(handle)
}

/// Aggregates the samples of histograms: they accumulate if no scrape does it.
async fn upkeep(prometheus: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        prometheus.run_upkeep();
    }
}

/// Starts the sources other than HTTP; the future completes when standard input has been read to its end. The shutdown
/// waits for the records that they have read.
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
        let journal = logweir.journal();
        actix_rt::spawn(async move {
            files::run(&source_client, &config, &journal).await;
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
                tracing::info!(records = summary.records, discarded = summary.discarded, "end of standard input");
            }
            Err(error) => tracing::error!(%error, "cannot read standard input"),
        }
    }
}

/// URL of a listener as a browser on this machine can open it.
fn base_url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    match address.ip() {
        ip if ip.is_unspecified() => format!("{scheme}://localhost:{}", address.port()),
        _ => format!("{scheme}://{address}"),
    }
}

/// Logs how the journal was opened, and prints where to find everything.
fn announce(config: &Config, logweir: &Logweir, data: SocketAddr, admin: SocketAddr, version: &str, print: Print<'_>) {
    let recovered = logweir.recovered();
    let dir = config.data_dir.display();
    if recovered.created {
        tracing::info!(writer = %recovered.writer, %dir, "journal created");
    } else if recovered.clean {
        tracing::info!(writer = %recovered.writer, %dir, "journal opened");
    } else {
        tracing::info!(writer = %recovered.writer, %dir, torn_bytes = recovered.torn_bytes, damage = recovered.damage.len(),
            "journal recovered after an unclean shutdown");
    }
    for damage in &recovered.damage {
        tracing::error!(
            segment = damage.segment,
            offset = damage.offset,
            seq_first = damage.seq_first,
            seq_last = damage.seq_last,
            "the journal is damaged; the bytes were moved to quarantine/: {}",
            damage.reason
        );
    }
    let parts = logweir.memory_bytes_max();
    let memory_bytes_max: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    for (part, bytes) in parts.iter().filter(|(_, bytes)| *bytes > 0) {
        tracing::debug!(part, bytes, "memory limit");
    }
    resources::compare_memory(memory_bytes_max, Limits::of_this_process());
    resources::compare_volume(config, logweir.journal().stats().bytes);
    let query = match &config.database.url {
        DatabaseUrl::Blackhole => "(the blackhole stores nothing)".to_owned(),
        _ => {
            format!("logweir query --url {}", base_url(data, config.http.tls().is_some()))
        }
    };
    print(&format!(
        "logweir {version}: {store}, cache {cache}, at most {mib} of memory (memory_bytes_max={memory_bytes_max})\n\
         \x20 web UI    {data}/\n\
         \x20 metrics   {admin}/metrics\n\
         \x20 status    {data}/api/v1/status\n\
         \x20 send      curl -sS {data}/ingest -d '{{\"level\":\"info\",\"service\":\"hello\",\"msg\":\"first record\"}}'\n\
         \x20 query     {query}",
        store = logweir.store().name(),
        cache = logweir.cache().name(),
        mib = show_number(memory_bytes_max.next_multiple_of(1 << 20) as u64, Unit::Bytes),
        data = base_url(data, config.http.tls().is_some()),
        admin = base_url(admin, false),
    ));
}

/// Prints the final accounting, in one line.
pub fn print_report(stopped: &ShutdownReport, print: Print<'_>) {
    for stage in &stopped.stuck {
        tracing::warn!(stage, "stage canceled at the shutdown deadline; its records are in the journal");
    }
    let sum = &stopped.accounting;
    let caveat = if sum.cursors_known {
        ""
    } else {
        " (the database was unreachable: left_in_journal may include committed records)"
    };
    print(&format!(
        "logweir stopped: accepted={} committed={} dead_lettered={} lost={} left_in_journal={}{caveat}",
        sum.accepted, sum.committed, sum.dead_lettered, sum.lost, sum.backlog
    ));
}

/// Waits for the startup, and returns with its result whether a signal has arrived meanwhile. With a second signal,
/// `None` is returned at once: opening a large journal takes a while, and can be aborted at any point.
async fn until_second_signal<T>(
    startup: impl Future<Output = T>,
    signals: &mut mpsc::Receiver<()>,
    print: Print<'_>,
) -> Option<(T, bool)> {
    let mut startup = std::pin::pin!(startup);
    tokio::select! {
        started = &mut startup => return Some((started, false)),
        _ = signals.recv() => {}
    }
    print("logweir: stopping as soon as the journal is open; a second signal stops at once");
    tokio::select! {
        started = &mut startup => Some((started, true)),
        _ = signals.recv() => None,
    }
}

/// Every SIGTERM, SIGINT and SIGHUP. The last is sent when a terminal closes, and would end the process without a drain.
fn signals() -> Result<mpsc::Receiver<()>, Error> {
    let stream = |kind| signal(kind).map_err(|error| Error::Unavailable(format!("cannot receive signals: {error}")));
    let (mut terminate, mut interrupt) = (stream(SignalKind::terminate())?, stream(SignalKind::interrupt())?);
    // With `nohup` it stays ignored.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut hang_up = if ignores_hang_up(&status) { None } else { Some(stream(SignalKind::hangup())?) };
    let (sender, receiver) = mpsc::channel(4);
    actix_rt::spawn(async move {
        loop {
            let hung_up = async {
                match &mut hang_up {
                    Some(hang_up) => hang_up.recv().await,
                    None => std::future::pending().await,
                }
            };
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hung_up => "SIGHUP",
            };
            tracing::info!(signal = name, "signal received");
            if sender.try_send(()).is_err_and(|error| matches!(error, TrySendError::Closed(()))) {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Whether the process that started this one made it ignore SIGHUP; from `/proc/self/status`.
fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_shown_as_one_that_can_be_opened() {
        let url = |address: &str, tls| base_url(address.parse().unwrap(), tls);
        assert_eq!(url("0.0.0.0:8080", false), "http://localhost:8080");
        assert_eq!(url("[::]:8080", true), "https://localhost:8080");
        assert_eq!(url("10.0.0.1:80", false), "http://10.0.0.1:80");
    }

    #[test]
    fn nohup_is_noticed() {
        assert!(ignores_hang_up("Name:\tlogweir\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        for status in ["SigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n", "SigIgn:\t?\n", ""] {
            assert!(!ignores_hang_up(status), "{status}");
        }
    }
}
