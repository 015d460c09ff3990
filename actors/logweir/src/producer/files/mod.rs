//! Tailed files: globs, rotation, container logs. See `tailer` for how a file is followed and `checkpoint` for what is
//! persisted.
//!
//! It works in rounds: read a window of some files, persist the ranges in flight, submit them, and advance the offsets
//! of those acknowledged. So memory is bounded per round, files are read in turn, and after a crash exactly one round
//! is submitted again, with dedup keys by which the journal recognizes it: each line is stored once. Files are polled
//! every `files.poll_ms`, which works on every volume; inotify does not.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use logweir_engine::drain::Phase;
use logweir_engine::fault::kill_point;
use logweir_engine::journal::Journal;

use super::multiline::Multiline;
use super::source_client::{SourceClient, discard};
use crate::config::Config;
use crate::message::{AckLevel, RejectionKind};

mod checkpoint;
mod gone;
mod tailer;

use tailer::{COMPONENT, Piece, Settings, Tailer};

/// Delay after a disk error.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Upper bound of the memory used by tailing, in bytes.
#[must_use]
pub fn memory_bytes_max(config: &Config) -> usize {
    if config.files.include.is_empty() {
        return 0;
    }
    // A window, the body built from it, and what is open in between; and the state of each file.
    let window = config.http.line_bytes_max + tailer::WINDOW_BYTES;
    let positions = (tailer::FILES_MAX + gone::GONE_MAX) * 2048;
    tailer::FILES_PER_ROUND * (2 * window + 2 * config.multiline.bytes_max) + positions
}

/// Tails files until the drain. The journal forgets the files that the checkpoint does not know any more.
///
/// # Panics
/// If the configuration was not validated and a glob is invalid.
pub async fn run(source_client: &SourceClient, config: &Config, journal: &Journal) {
    let source_client = SourceClient {
        // An offset that advances on less than the journal level could lose records.
        ack: if source_client.ack == AckLevel::Received { AckLevel::Journal } else { source_client.ack },
        ..source_client.clone()
    };
    let exclude =
        config.files.exclude.iter().map(|glob| glob::Pattern::new(glob).expect("checked with the configuration"));
    let settings = Settings {
        data_dir: config.data_dir.clone(),
        include: config.files.include.clone(),
        exclude: exclude.collect(),
        from_end: config.files.from_end,
        host: config.files.host.clone(),
        rescan: Duration::from_millis(config.files.rescan_ms),
        open_max: config.files.open_max,
        line_bytes_max: config.http.line_bytes_max,
        multiline: Multiline::new(&config.multiline),
        multiline_timeout: Duration::from_millis(config.multiline.timeout_ms),
    };
    let intake = source_client.intake.clone();
    let Some(mut tailer) = open(settings, &source_client, move || intake.new_stream()).await else { return };
    while source_client.drain.phase() < Phase::Draining {
        let pieces;
        (tailer, pieces) = blocking(tailer, |tailer| tailer.next_pieces(Instant::now())).await;
        let pieces = match pieces {
            Ok(pieces) => {
                if let Some(known) = tailer.take_incarnations() {
                    journal.retain_sources(&known);
                }
                pieces
            }
            Err(error) => {
                checkpoint_failed(&config.data_dir, &error);
                Vec::new()
            }
        };
        if pieces.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(config.files.poll_ms)) => {}
                () = source_client.drain.reached(Phase::Draining) => {}
            }
            continue;
        }
        kill_point("files.range_persisted");
        let finished = join_all(pieces.iter().map(|piece| submit(&source_client, piece))).await;
        kill_point("files.acknowledged");
        for (piece, finished) in pieces.iter().zip(finished) {
            if finished {
                tailer.acknowledge(piece.incarnation);
            }
        }
    }
    let (_, saved) = blocking(tailer, Tailer::save).await;
    if let Err(error) = saved {
        checkpoint_failed(&config.data_dir, &error);
    }
}

/// Opens the checkpoint, retrying while the disk returns errors.
async fn open(
    settings: Settings,
    source_client: &SourceClient,
    new_stream: impl Fn() -> u64 + Send + Sync + 'static,
) -> Option<Tailer> {
    let (settings, new_stream) = (Arc::new(settings), Arc::new(new_stream));
    loop {
        let (settings, new_stream) = (Arc::clone(&settings), Arc::clone(&new_stream));
        let dir = settings.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Tailer::open(settings, move || new_stream())).await;
        match opened.expect("opening does not panic") {
            Ok(tailer) => return Some(tailer),
            Err(error) => checkpoint_failed(&dir, &error),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_DELAY) => {}
            () = source_client.drain.reached(Phase::Draining) => return None,
        }
    }
}

/// Returns whether the body is finished: accepted, or rejected for good. Otherwise the drain started first, and the
/// next start submits it again.
async fn submit(source_client: &SourceClient, piece: &Piece) -> bool {
    let Err(rejection) = source_client.deliver(&piece.source_batch).await else { return true };
    let is_final = !matches!(rejection.kind, RejectionKind::Busy | RejectionKind::Unavailable);
    if is_final {
        tracing::error!(
            file = %piece.incarnation,
            reason = rejection.reason,
            "records of a file were not stored: {}",
            rejection.detail
        );
        discard(COMPONENT, rejection.reason, piece.source_batch.records());
    }
    is_final
}

/// Runs `work` on a thread that may block on the disk.
async fn blocking<T: Send + 'static>(
    mut tailer: Tailer,
    work: impl FnOnce(&mut Tailer) -> T + Send + 'static,
) -> (Tailer, T) {
    let worked = tokio::task::spawn_blocking(move || {
        let result = work(&mut tailer);
        (tailer, result)
    });
    worked.await.expect("reading files does not panic")
}

fn checkpoint_failed(data_dir: &Path, error: &std::io::Error) {
    metrics::counter!("logweir_files_checkpoint_errors_total").increment(1);
    tracing::error!(dir = %data_dir.display(), %error,
        "cannot read or write the checkpoint of the tailed files: retrying; tailing is paused meanwhile");
}
