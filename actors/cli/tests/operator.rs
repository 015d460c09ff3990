//! The operator's commands on a real journal and a real SQLite file: what is there is proved, what was taken away is named.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, these are their helpers")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use logweir::config::Config;
use logweir_engine::journal::{Appended, Journal, JournalConfig, LaneId, OnDurable};
use logweir_record::chunk::Chunk;
use logweir_record::codec;
use logweir_record::record::{Record, Severity};
use logweir_store::{self as store, Claim, LaneRow};
use logweir_store::{Batch, BatchFrame};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

const ROWS: usize = 10;

/// A volume with a journal, and the store beside it, as a server leaves them.
struct Volume {
    dir: TempDir,
    runtime: Runtime,
    writer: Uuid,
    journal: Journal,
    store: Arc<dyn store::LogStore>,
    lease: store::Lease,
}

impl Volume {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (journal, recovered) = Journal::open(JournalConfig {
            segment_bytes: 17 << 20,
            quota_bytes: 1 << 30,
            queue_bytes_max: 16 << 20,
            ..JournalConfig::new(dir.path().join("journal"))
        })
        .unwrap();
        let mut database = Config::default().database;
        database.url = logweir_store::DatabaseUrl::Sqlite(dir.path().join("logweir.db"));
        let store = store::open(&database).unwrap().store();
        let claim = Claim::new(recovered.writer, recovered.run, "test");
        let lease = runtime.block_on(async {
            store.prepare().await.unwrap();
            store.acquire_lease(&claim).await.unwrap()
        });
        Self { dir, runtime, writer: recovered.writer, journal, store, lease }
    }

    /// Appends a frame of ten records and waits for the disk.
    fn append(&self, lane: LaneId) -> BatchFrame {
        let mut chunk = Chunk::with_capacity(0, ROWS, 1000);
        for row in 0..ROWS {
            let message = format!("message {row}");
            chunk.push(Record {
                ts_us: 1_700_000_000_000_000 + row as i64,
                severity: Severity::INFO,
                service: "shop",
                host: "pod-1",
                message: &message,
                attributes: "{\"a\":1}",
            });
        }
        let (codec, payload) = codec::encode(&chunk).unwrap();
        let credit = self.runtime.block_on(self.journal.reserve(payload.len())).unwrap();
        let (on_durable, stored) = OnDurable::send();
        let Appended { seq, lane_records, payload_crc, .. } =
            self.journal.append(credit, lane, codec, ROWS as u32, payload, on_durable).unwrap();
        stored.blocking_recv().unwrap().unwrap();
        BatchFrame { seq, lane_records, payload_crc, dedup_key: None, chunk: Arc::new(chunk) }
    }

    fn flush(&self, lane: LaneId, frames: Vec<BatchFrame>) {
        self.runtime.block_on(async {
            let (mut writer, LaneRow { last_seq, rows, .. }) = self.store.open_lane(&self.lease, lane).await.unwrap();
            writer.flush(&Batch::new(lane, last_seq, rows, 0, frames)).await.unwrap();
        });
    }

    fn database(&self) -> Connection {
        Connection::open(self.dir.path().join("logweir.db")).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logweir"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LOGWEIR") || name.to_string_lossy().contains("_URL") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.dir.path()).args(arguments).output().unwrap()
    }

    fn verify(&self) -> (Option<i32>, serde_json::Value) {
        let output = self.run(&["verify", "--data-dir", ".", "-o", "json"]);
        let json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), json)
    }

    fn segment(&self) -> PathBuf {
        let files = std::fs::read_dir(self.dir.path().join("journal")).unwrap();
        let wal = |path: &Path| path.extension().is_some_and(|extension| extension == "wal");
        files.map(|entry| entry.unwrap().path()).find(|path| wal(path)).unwrap()
    }
}

/// Turns a bit in the payload of the `nth` frame whose records hold `needle`.
fn damage(path: &Path, needle: &[u8], nth: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = memchr::memmem::find_iter(&bytes, needle).nth(nth).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn journal_and_database_that_agree_are_proved_also_while_a_server_runs() {
    let volume = Volume::new();
    let frames = vec![volume.append(1), volume.append(1)];
    volume.append(2);
    volume.flush(1, frames);
    volume.append(1);
    let (code, verdict) = volume.verify();
    assert_eq!(code, Some(0), "{verdict:#}");
    assert_eq!((&verdict["verified"], &verdict["locked"]), (&true.into(), &true.into()));
    assert_eq!(verdict["writer"], volume.writer.to_string());
    let account = |lane: usize| {
        let lane = &verdict["lanes"][lane];
        ["accepted", "rows", "dead_lettered", "lost", "backlog"].map(|name| lane[name].as_u64().unwrap())
    };
    assert_eq!(account(0), [30, 20, 0, 0, 10]);
    assert_eq!(account(1), [10, 0, 0, 0, 10]);
    volume.journal.seal().unwrap();
    let (code, verdict) = volume.verify();
    assert_eq!((code, &verdict["locked"]), (Some(0), &false.into()));
    let table = volume.run(&["verify", "--data-dir", "."]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("verified: every accepted record is accounted for"));
}

#[test]
fn a_frame_that_was_damaged_before_it_was_stored_is_named() {
    let volume = Volume::new();
    let first = volume.append(1);
    let second = volume.append(1);
    volume.append(1);
    volume.flush(1, vec![first]);
    volume.journal.seal().unwrap();
    damage(&volume.segment(), b"message 0", 1);
    let (code, verdict) = volume.verify();
    assert_eq!(code, Some(1), "{verdict:#}");
    let gap = &verdict["lanes"][0]["gaps"][0];
    let seq = second.seq;
    assert_eq!((&gap["seq_first"], &gap["seq_last"], &gap["records"]), (&seq.into(), &seq.into(), &10.into()));
    let text = String::from_utf8(volume.run(&["verify", "--data-dir", "."]).stdout).unwrap();
    assert!(text.contains(&format!("lane 1: WRONG: seq {seq}..{seq}: 10 records")), "{text}");

    let check = volume.run(&["journal", "check", "--dir", ".", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!((check.status.code(), &report["damage"][0]["seq_first"]), (Some(1), &seq.into()));
}

#[test]
fn a_frame_that_was_damaged_after_it_was_stored_costs_nothing() {
    let volume = Volume::new();
    let frames = vec![volume.append(1), volume.append(1)];
    volume.flush(1, frames);
    volume.journal.seal().unwrap();
    damage(&volume.segment(), b"message 0", 0);
    let (code, verdict) = volume.verify();
    assert_eq!(code, Some(0), "{verdict:#}");
    assert_eq!(verdict["damage"].as_array().unwrap().len(), 1);
}

#[test]
fn rows_that_somebody_took_out_of_the_table_are_missed() {
    let volume = Volume::new();
    volume.flush(1, vec![volume.append(1)]);
    assert_eq!(volume.database().execute("DELETE FROM logs WHERE message = 'message 3'", []).unwrap(), 1);
    let (code, verdict) = volume.verify();
    assert_eq!(code, Some(1));
    assert!(verdict["lanes"][0]["wrong"][0].as_str().unwrap().contains("1 missing"), "{verdict:#}");
    let kept = volume.run(&["verify", "--data-dir", ".", "--set", "database.retention_days=30"]);
    assert_eq!(kept.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&kept.stdout).contains("1 of 10 rows are no longer in the table: retention (30 days)")
    );
}

#[test]
fn a_store_that_is_not_there_is_69_and_is_not_made() {
    let volume = Volume::new();
    volume.append(1);
    let output = volume.run(&["verify", "--data-dir", ".", "--database-url", "sqlite:other.db"]);
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!volume.dir.path().join("other.db").exists());
    let output = volume.run(&["verify", "--data-dir", ".", "--database-url", "postgres://u:hunter2@127.0.0.1:1/db"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"));
}

#[test]
fn dump_prints_every_record_with_its_place() {
    let volume = Volume::new();
    volume.append(1);
    let second = volume.append(2);
    let lines = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let output = volume.run(&[&["journal", "dump", "--dir", "."], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(lines(&[]).len(), 2 * ROWS);
    let lane = lines(&["--lane", "2"]);
    assert_eq!(lane.len(), ROWS);
    assert_eq!(
        lane[3],
        serde_json::json!({
            "ts": "2023-11-14T22:13:20.000003Z", "severity": 9, "severity_text": "INFO", "service": "shop",
            "host": "pod-1", "message": "message 3", "attributes": {"a": 1}, "lane": 2, "seq": second.seq, "row": 3,
        })
    );
    assert_eq!(lines(&["--from-seq", &second.seq.to_string()]).len(), ROWS);
    let locked = volume.run(&["journal", "repair", "--dir", "."]);
    assert_eq!(locked.status.code(), Some(69), "a server runs");
}

#[test]
fn dead_letters_are_listed_replayed_corrected_and_purged() {
    let volume = Volume::new();
    volume.flush(1, vec![volume.append(1)]);
    let database = volume.database();
    let lane: i64 = database.query_row("SELECT lane_id FROM logweir_lane", [], |row| row.get(0)).unwrap();
    // Three of the ten, as if the store had rejected them.
    for row in 1..=3_i64 {
        let id = (lane << 44) | row;
        assert_eq!(database.execute("DELETE FROM logs WHERE id = ?1", [id]).unwrap(), 1);
        let raw = if row == 1 { "no record" } else { RAW };
        database
            .execute(
                "INSERT INTO logweir_dead_letter VALUES (?1, ?2, 1, 1, ?3, '22021', 'bad', ?4, '2023-11-14T22:13:20.000000Z')",
                rusqlite::params![id, volume.writer.as_bytes().to_vec(), row, raw],
            )
            .unwrap();
    }
    database.execute("UPDATE logweir_lane SET rows = rows - 3, dead = dead + 3", []).unwrap();
    assert_eq!(volume.verify().0, Some(0));

    let run = |arguments: &[&str]| {
        let output = volume.run(&[&["dead-letters"], arguments, &["--data-dir", "."]].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&["list", "-o", "ndjson"]).1.lines().count(), 3);
    assert_eq!(run(&["list", "--limit", "2"]).1.matches("22021 bad").count(), 2);
    let (code, output) = run(&["replay", "--all"]);
    assert!(code == Some(1) && output.contains("replayed 2 dead letters, 1 failed"), "{output}");
    let id = ((lane << 44) | 1).to_string();
    assert_eq!(run(&["replay", "--id", "77"]).0, Some(1));
    assert_eq!(run(&["replay", "--id", &id, "--record", "[]"]).0, Some(64));
    assert_eq!(run(&["replay", "--id", &id, "--record", RAW]).0, Some(0));
    assert_eq!(run(&["list"]).1, "no dead letters\n");
    let (code, verdict) = volume.verify();
    assert_eq!((code, &verdict["lanes"][0]["stored"]["replayed"]), (Some(0), &3.into()), "{verdict:#}");
    assert_eq!(run(&["purge", "--older-than", "7d"]).1, "purged 0 dead letters\n");
}

const RAW: &str =
    r#"{"ts":"2023-11-14T22:13:20Z","severity":9,"service":"shop","host":"","message":"fixed","attributes":{}}"#;
