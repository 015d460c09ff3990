//! The database's own limit: the same rows with binary COPY from prepared bytes, in the same schema, without any other
//! work.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, NoTls};

use crate::corpus::Corpus;

const COPY_SQL: &str = "COPY logs (id, ts, severity, service, host, message, attributes) FROM STDIN (FORMAT binary)";
/// PostgreSQL's epoch, 2000-01-01, in microseconds since 1970.
const EPOCH_US: i64 = 946_684_800_000_000;
/// Size of a chunk of the stream; the same as logweir's.
const PIECE_BYTES: usize = 128 << 10;

/// Encoded rows, split into transactions.
pub struct Rows {
    transactions: Vec<Vec<Bytes>>,
    /// Number of rows.
    pub rows: u64,
}

impl Rows {
    /// Encodes the rows of the first `bodies` bodies, with at least `rows_per_transaction` per transaction.
    #[must_use]
    pub fn new(corpus: &Corpus, bodies: u64, rows_per_transaction: u64) -> Self {
        let mut corpus = corpus.clone();
        let (mut transactions, mut rows) = (Vec::new(), 0);
        let mut open = Transaction::new();
        for number in 0..bodies {
            for record in corpus.chunk(number).iter() {
                rows += 1;
                open.row(i64::try_from(rows).expect("a count"), &record);
            }
            if open.rows >= rows_per_transaction {
                transactions.push(std::mem::replace(&mut open, Transaction::new()).finish());
            }
        }
        if open.rows > 0 {
            transactions.push(open.finish());
        }
        Self { transactions, rows }
    }

    /// Copies them over this number of connections and returns the duration.
    ///
    /// # Panics
    /// If the server rejects the rows.
    pub async fn copy(&self, url: &str, connections: usize) -> Duration {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(connect(url).await);
        }
        let started = Instant::now();
        let work = clients.iter().enumerate().map(async |(nth, client)| {
            let statement = client.prepare(COPY_SQL).await.expect("COPY");
            for transaction in self.transactions.iter().skip(nth).step_by(connections) {
                client.batch_execute("BEGIN").await.expect("BEGIN");
                let sink = client.copy_in::<_, Bytes>(&statement).await.expect("COPY");
                let mut sink = std::pin::pin!(sink);
                for piece in transaction {
                    sink.feed(piece.clone()).await.expect("the server reads");
                }
                sink.as_mut().finish().await.expect("the server accepts the rows");
                client.batch_execute("COMMIT").await.expect("COMMIT");
            }
        });
        futures_util::future::join_all(work).await;
        started.elapsed()
    }
}

/// Connects a client on this runtime.
///
/// # Panics
/// If the server is unreachable.
pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the database accepts connections");
    tokio::spawn(connection);
    client
}

struct Transaction {
    pieces: Vec<Bytes>,
    open: BytesMut,
    rows: u64,
}

impl Transaction {
    fn new() -> Self {
        let mut open = BytesMut::with_capacity(PIECE_BYTES * 2);
        open.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        Self { pieces: Vec::new(), open, rows: 0 }
    }

    fn row(&mut self, id: i64, record: &logweir_record::record::Record<'_>) {
        let field = |open: &mut BytesMut, bytes: &[u8]| {
            open.put_i32(i32::try_from(bytes.len()).expect("a short text"));
            open.put_slice(bytes);
        };
        self.open.put_i16(7);
        field(&mut self.open, &id.to_be_bytes());
        field(&mut self.open, &(record.ts_us - EPOCH_US).to_be_bytes());
        field(&mut self.open, &i16::from(record.severity.number()).to_be_bytes());
        for text in [record.service, record.host, record.message] {
            field(&mut self.open, text.as_bytes());
        }
        self.open.put_i32(i32::try_from(record.attributes.len() + 1).expect("a short text"));
        self.open.put_u8(1);
        self.open.put_slice(record.attributes.as_bytes());
        self.rows += 1;
        if self.open.len() >= PIECE_BYTES {
            self.pieces.push(self.open.split().freeze());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.open.put_i16(-1);
        self.pieces.push(self.open.freeze());
        self.pieces
    }
}
