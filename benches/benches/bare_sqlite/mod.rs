//! SQLite's own limit: the same rows with one prepared INSERT, in logweir's schema, without any other work.

use std::path::Path;
use std::time::{Duration, Instant};

use logweir::config::Config;
use logweir_benches::corpus::Corpus;
use logweir_benches::subject::on_a_runtime;
use logweir_record::chunk::Chunk;
use logweir_store::DatabaseUrl;
use rusqlite::Connection;

/// The settings of the connection in logweir's store.
const SETUP: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
    PRAGMA cache_size = -32768; PRAGMA wal_autocheckpoint = 1024";
const INSERT_SQL: &str = "INSERT INTO logs (id, ts, severity, service, host, message, attributes) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Maximum number of rows per transaction.
pub const ROWS_MAX: u64 = 20_000;

/// A database that only gets rows.
pub struct BareSqlite {
    connection: Connection,
    corpus: Corpus,
    bodies: u64,
    rows: i64,
}

impl BareSqlite {
    /// Creates the file with logweir's schema.
    pub fn open(path: &Path, corpus: &Corpus) -> Self {
        let mut config = Config::in_dir("unused");
        config.database.url = DatabaseUrl::Sqlite(path.to_owned());
        let store = logweir_store::open(&config.database).expect("the store opens").store();
        on_a_runtime(async { store.prepare().await.expect("the schema") });
        let connection = Connection::open(path).expect("the file opens");
        connection.execute_batch(SETUP).expect("the settings");
        Self { connection, corpus: corpus.clone(), bodies: 0, rows: 0 }
    }

    /// Inserts the rows of the next `bodies` bodies and returns the duration.
    pub fn insert(&mut self, bodies: u64) -> Duration {
        let texts = |chunk: &Chunk| chunk.iter().map(|record| text(record.ts_us)).collect::<Vec<_>>();
        let chunks: Vec<_> = (self.bodies..self.bodies + bodies).map(|number| self.corpus.chunk(number)).collect();
        let prepared: Vec<_> = chunks.iter().map(|chunk| (chunk, texts(chunk))).collect();
        self.bodies += bodies;
        let bodies_max = usize::try_from(ROWS_MAX / self.corpus.events_per_body()).expect("a small number");
        let started = Instant::now();
        for transaction in prepared.chunks(bodies_max) {
            self.rows += insert(&mut self.connection, self.rows, transaction).expect("SQLite takes the rows");
        }
        started.elapsed()
    }
}

/// Runs one transaction and returns the number of rows inserted after the first `rows`.
fn insert(connection: &mut Connection, rows: i64, bodies: &[(&Chunk, Vec<String>)]) -> rusqlite::Result<i64> {
    let transaction = connection.transaction()?;
    let mut inserted = 0;
    {
        let mut statement = transaction.prepare_cached(INSERT_SQL)?;
        for (record, ts) in bodies.iter().flat_map(|(chunk, texts)| chunk.iter().zip(texts)) {
            inserted += 1;
            let severity = record.severity.number();
            let (service, host, message) = (record.service, record.host, record.message);
            statement.execute((rows + inserted, ts, severity, service, host, message, record.attributes))?;
        }
    }
    transaction.commit()?;
    Ok(inserted)
}

/// Formats a time as `YYYY-MM-DDTHH:MM:SS.ffffffZ`, like logweir.
fn text(ts_us: i64) -> String {
    let ts = jiff::Timestamp::from_microsecond(ts_us).expect("a time of this century");
    ts.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
