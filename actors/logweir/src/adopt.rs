//! Lets a journal continue that the database does not recognize, on an operator's word that no other copy is in use.

use std::path::PathBuf;

use logweir_engine::journal::{Frame, Journal};
use logweir_store::{self as store, LaneRow, Lease, StoreError};

use crate::config::{Config, ConfigError};
use crate::db_flusher::Session;
use crate::error::Error;
use crate::logweir::{open_journal, process_name};
use crate::progress::Progress;

/// Acquires the lease of the journal in `dir` although the database does not know its last run, and records that in the
/// journal. The next start continues from the database's cursors.
///
/// # Errors
/// The configuration is invalid, the journal cannot be opened, a process uses it, the database cannot be reached, or its
/// cursors are at frames that another copy has written.
pub async fn adopt_journal(config: Config, dir: PathBuf) -> Result<Lease, Error> {
    config.validate()?;
    let opened = store::open(&config.database).map_err(|error| ConfigError::at("database.url", error))?;
    let (journal, recovered) = open_journal(&config, dir).await?;
    let session =
        Session::new(opened.store(), journal.clone(), &recovered, process_name(), Progress::default()).of_only_copy();
    let lanes = opened.store().lanes(recovered.writer).await.map_err(failed)?;
    let lease = match check_cursors(&journal, lanes).await {
        Ok(()) => session.acquire_lease().await.map_err(failed),
        Err(error) => Err(error),
    };
    let sealed = tokio::task::spawn_blocking(move || journal.seal()).await;
    let sealed = sealed.map_err(|error| Error::Stage(format!("sealing the journal failed: {error}")))?;
    let lease = lease?;
    sealed.map_err(|error| Error::Disk(error.to_string()))?;
    Ok(lease)
}

fn failed(error: StoreError) -> Error {
    match error {
        StoreError::Fenced { .. } | StoreError::StaleCopy { .. } | StoreError::InUse { .. } => {
            Error::Fenced(error.to_string())
        }
        error => Error::Unavailable(error.to_string()),
    }
}

/// Refuses a journal that has another frame where the database's cursor is.
async fn check_cursors(journal: &Journal, lanes: Vec<LaneRow>) -> Result<(), Error> {
    for LaneRow { lane, last_seq: cursor, .. } in lanes.into_iter().filter(|row| row.last_seq > 0) {
        let mut reader = journal.reader(lane, cursor - 1);
        let first = tokio::task::spawn_blocking(move || reader.next_frames(1, 1)).await;
        let first = first.map_err(|error| Error::Stage(format!("the journal read task failed: {error}")))?;
        let first = first.map_err(|error| Error::Disk(format!("cannot read the journal: {error}")))?;
        if !first.first().is_none_or(|first| may_follow(first, cursor)) {
            return Err(Error::Fenced(format!(
                "lane {lane}: frame {cursor}, the last one that the database has, is not in this journal: another copy has \
                 written to the database. Save what only this one has with `logweir journal drain --adopt`"
            )));
        }
    }
    Ok(())
}

/// Whether the lane's first frame from the cursor on can be in one journal with the frame at the cursor.
fn may_follow(first: &Frame, cursor: u64) -> bool {
    // A lane that the journal has forgotten begins again.
    first.seq == cursor || first.lane_prev_seq == cursor || first.lane_prev_seq == 0
}

#[cfg(test)]
mod tests {
    use logweir_engine::journal::{JournalConfig, OnDurable};

    use super::*;

    async fn append(journal: &Journal, lane: u16) -> u64 {
        let credit = journal.reserve(1).await.unwrap();
        let (on_durable, durable) = OnDurable::send();
        journal.append(credit, lane, 1, 1, vec![0], on_durable).unwrap();
        durable.await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_cursor_at_a_frame_of_another_copy_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(JournalConfig::new(dir.path())).unwrap();
        let mut seqs = Vec::new();
        for lane in [0, 1, 0, 1] {
            seqs.push(append(&journal, lane).await);
        }
        let at = async |lane, last_seq| {
            check_cursors(&journal, vec![LaneRow { lane, last_seq, ..LaneRow::default() }]).await
        };
        for own in [0, seqs[0], seqs[2], seqs[3] + 9] {
            at(0, own).await.unwrap();
        }
        let error = at(0, seqs[1]).await.unwrap_err();
        assert!(matches!(&error, Error::Fenced(text) if text.contains("another copy")), "{error}");
        at(7, 3).await.unwrap();
    }
}
