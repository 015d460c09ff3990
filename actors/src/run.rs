//! The life of the server process: listen, recover, serve, drain, exit with a code that says why.
//!
//! Order matters: the configuration is valid before this starts, both ports are ours before the journal is touched, intake is
//! open before the database answers, and the listeners outlive the stages so that requests in flight get their answer.

use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use logweir_engine::drain::DrainEvent;
use logweir_engine::stage::Exit;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::Duration;

use crate::config::Config;
use crate::http::{self, Servers, Shared};
use crate::logweir::{Logweir, Stopped};
use crate::producer::{demo, stdin};

/// How long requests in flight have for their last bytes once everything behind them has stopped.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Runs the server until a signal, the end of standard input, a drain request or a failure; returns the exit code.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    let outcome = actix_rt::System::new().block_on(serve(config));
    let code = match outcome {
        Ok(()) => 0,
        Err(exit) => {
            tracing::error!(exit_code = exit.code, "{}", exit.reason);
            exit.code
        }
    };
    ExitCode::from(code)
}

async fn serve(config: Config) -> Result<(), Exit> {
    let data = listen("http.listen", config.http.listen)?;
    let admin = listen("admin.listen", config.admin.listen)?;
    let mut signals = signals()?;
    let logweir = Logweir::start(config.clone()).await?;
    let drain_asked = Arc::new(Notify::new());
    let servers = http::serve(shared(&config, &logweir, &drain_asked), data, admin)
        .map_err(|error| Exit::new(Exit::UNAVAILABLE, format!("the listeners cannot be started: {error}")))?;
    announce(&config, &logweir, &servers);
    let sources_ended = sources(&config, &logweir);

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
    let stopped = logweir.stop_on(first, &mut signals, servers.idle()).await;
    servers.stop(LAST_ANSWERS).await;
    close(&stopped);
    failure.map_or(Ok(()), Err)
}

/// Empties the journal of `dir` into the database and seals it.
#[must_use]
pub fn drain_journal(mut config: Config, dir: PathBuf, adopt: bool) -> ExitCode {
    config.data_dir = dir;
    let _ = adopt;
    ExitCode::SUCCESS
}

fn listen(key: &str, address: std::net::SocketAddr) -> Result<TcpListener, Exit> {
    TcpListener::bind(address).map_err(|error| {
        Exit::new(Exit::UNAVAILABLE, format!("{key}: cannot listen on {address}: {error}; choose another address or stop what is there"))
    })
}

fn shared(config: &Config, logweir: &Logweir, drain_asked: &Arc<Notify>) -> Shared {
    let drain_asked = Arc::clone(drain_asked);
    Shared::new(config.clone(), logweir, Arc::new(move || drain_asked.notify_one()))
}

/// Starts the producers beside HTTP; the future completes when standard input was read to its end.
fn sources(config: &Config, logweir: &Logweir) -> impl Future<Output = ()> + use<> {
    if config.sources.demo_rate > 0 {
        actix_rt::spawn(demo::run(logweir.intake(), config.sources.demo_rate, logweir.watch()));
    }
    let stdin = config.sources.stdin.then(|| stdin::run(logweir.intake(), config.ack, logweir.watch()));
    async move {
        match stdin {
            Some(reading) => reading.await,
            None => std::future::pending().await,
        }
    }
}

/// What a person who has just started it wants to know.
fn announce(config: &Config, logweir: &Logweir, servers: &Servers) {
    let recovered = logweir.recovered();
    let holders = logweir.memory_bytes_max();
    let memory_bytes_max: usize = holders.iter().map(|(_, bytes)| bytes).sum();
    let (data, admin) = (servers.data_address(), servers.admin_address());
    tracing::info!(writer = %recovered.writer, clean = recovered.clean, torn_bytes = recovered.torn_bytes,
        damage = recovered.damage.len(), dir = %config.data_dir.display(), "journal open");
    for damage in &recovered.damage {
        tracing::error!(segment = damage.segment, offset = damage.offset, seq_first = damage.seq_first,
            seq_last = damage.seq_last, "damage in the journal, kept aside in quarantine/: {}", damage.what);
    }
    tracing::info!(memory_bytes_max, holders = ?holders, "memory stays below this");
    eprintln!(
        "logweir {version}: {store}, cache {cache}\n\
         \x20 post lines to   http://{data}/ingest\n\
         \x20 try             curl -sS http://{data}/ingest -d '{{\"level\":\"info\",\"service\":\"hello\",\"msg\":\"first record\"}}'\n\
         \x20 look at         http://{data}/api/v1/status   http://{admin}/metrics\n\
         \x20 read back       {read}\n\
         \x20 memory_bytes_max={memory_bytes_max}",
        version = env!("CARGO_PKG_VERSION"),
        store = logweir.store().name(),
        cache = logweir.cache().name(),
        read = logweir.store().how_to_read(),
    );
}

/// The one line that says what became of everything.
fn close(stopped: &Stopped) {
    for stage in &stopped.stuck {
        tracing::warn!(stage, "was still at work at the deadline; what it held is in the journal");
    }
    if let Some(error) = &stopped.seal_error {
        tracing::warn!(error, "the journal could not be sealed; what was acknowledged is safe, the next start recovers");
    }
    let sum = &stopped.accounting;
    eprintln!(
        "logweir stopped: accepted={} committed={} dead_lettered={} lost={} left_in_journal={}",
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
