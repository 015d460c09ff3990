//! Tailed files: globs, rotation, container logs; see `tailer` for how a file is followed and `checkpoint` for what is
//! remembered.
//!
//! One round after the other: read a piece of some files, write down what is on its way, hand it in, and move the offsets of
//! what is acknowledged. So memory is bounded by the round, files are read in turn, and after a crash exactly one round is
//! handed in again, with marks by which the journal knows it: each line is stored once. Files are looked at every `files.poll_ms`: that works on every volume, which inotify does not.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use logweir_engine::drain::Phase;
use logweir_engine::fault::kill_point;

use super::multiline::Multiline;
use super::source_client::{SourceClient, discard};
use crate::config::Config;
use crate::message::{AckLevel, RejectionKind};

mod checkpoint;
mod tailer;

use tailer::{COMPONENT, Piece, Settings, Tailer};

/// After a failure of the disk the next try waits.
const PAUSE: Duration = Duration::from_secs(1);

/// The most bytes that tailing holds.
#[must_use]
pub fn memory_bytes_max(config: &Config) -> usize {
    if config.files.include.is_empty() {
        return 0;
    }
    // A window, the body made of it, and what is open in between; and what is known of each file.
    let window = config.http.line_bytes_max + tailer::WINDOW_BYTES;
    tailer::FILES_PER_ROUND * (2 * window + 2 * config.multiline.bytes_max) + tailer::FILES_MAX * 2048
}

/// Reads files until the drain.
///
/// # Panics
/// The configuration was not checked.
pub async fn run(source_client: &SourceClient, config: &Config) {
    let source_client = SourceClient {
        // An offset that moved on less would not be a promise.
        ack: if source_client.ack == AckLevel::Received { AckLevel::Journal } else { source_client.ack },
        ..source_client.clone()
    };
    let exclude =
        config.files.exclude.iter().map(|glob| glob::Pattern::new(glob).expect("the configuration was checked"));
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
        let gathered;
        (tailer, gathered) = blocking(tailer, |tailer| tailer.gather(Instant::now())).await;
        let pieces = gathered.unwrap_or_else(|error| {
            failed(&config.data_dir, &error);
            Vec::new()
        });
        if pieces.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(config.files.poll_ms)) => {}
                () = source_client.drain.reached(Phase::Draining) => {}
            }
            continue;
        }
        kill_point("files.written_down");
        let taken = join_all(pieces.iter().map(|piece| hand_in(&source_client, piece))).await;
        kill_point("files.acknowledged");
        for (piece, taken) in pieces.iter().zip(taken) {
            if taken {
                tailer.acknowledge(piece.incarnation);
            }
        }
    }
    let (_, saved) = blocking(tailer, Tailer::save).await;
    if let Err(error) = saved {
        failed(&config.data_dir, &error);
    }
}

/// Opens the checkpoint, again and again until the disk lets it.
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
            Err(error) => failed(&dir, &error),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = source_client.drain.reached(Phase::Draining) => return None,
        }
    }
}

/// Whether the body is done with: taken, or such that nobody will ever take it. Otherwise the drain came first, and the next
/// start hands it in again.
async fn hand_in(source_client: &SourceClient, piece: &Piece) -> bool {
    let Err(refusal) = source_client.deliver(&piece.source_batch).await else { return true };
    let is_final = !matches!(refusal.kind, RejectionKind::Busy | RejectionKind::Unavailable);
    if is_final {
        tracing::error!(
            file = %piece.incarnation,
            reason = refusal.reason,
            "a piece of a file is not stored: {}",
            refusal.detail
        );
        discard(COMPONENT, refusal.reason, piece.source_batch.records());
    }
    is_final
}

/// Works on the files on a thread that may wait for a disk.
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

fn failed(data_dir: &Path, error: &std::io::Error) {
    metrics::counter!("logweir_files_checkpoint_errors_total").increment(1);
    tracing::error!(dir = %data_dir.display(), %error,
        "the checkpoint of the tailed files cannot be read or written: nothing is read until it can");
}
