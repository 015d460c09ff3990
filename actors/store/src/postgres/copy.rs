//! Rows in the binary COPY format, written straight from the columnar chunks.
//!
//! No allocation per record: rows are encoded into one buffer that is sent in chunks.
//! The row count that the server returns is compared with the number of rows sent, since the server loads a stream that
//! is cut at a row boundary or lacks its trailer without an error.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, CopyInSink, Error, Statement};

use super::types::{EPOCH_US, JSONB_VERSION};
use crate::protocol::rows::Row;
use logweir_record::timestamp;

/// Lists the columns in the order in which [`Encoder`] writes them.
pub(super) const COPY_SQL: &str =
    "COPY $logs (id, ts, severity, service, host, message, attributes) FROM STDIN (FORMAT binary)";
/// Start of a row: 7 columns, then length and value of id (8), ts (8) and severity (2).
const FIXED: [u8; 32] = {
    let mut fixed = [0; 32];
    (fixed[1], fixed[5], fixed[17], fixed[29]) = (7, 8, 8, 2);
    fixed
};
/// Size at which a chunk is sent: large enough to amortize a write, small enough for the L2 cache.
const CHUNK_BYTES: usize = 128 << 10;

/// Why a COPY failed.
pub(super) enum CopyError {
    /// The server did not start it: not because of a row.
    Start(Error),
    /// While rows were inserted.
    Rows(Error),
}

/// Copies `rows` into the table. Returns the number of rows sent and the number that the server counted.
pub(super) async fn copy<'a>(
    client: &Client,
    statement: &Statement,
    rows: impl Iterator<Item = Row<'a>>,
) -> Result<(u64, u64), CopyError> {
    let sink = client.copy_in::<_, Bytes>(statement).await.map_err(CopyError::Start)?;
    send(sink, rows).await.map_err(CopyError::Rows)
}

async fn send<'a>(sink: CopyInSink<Bytes>, rows: impl Iterator<Item = Row<'a>>) -> Result<(u64, u64), Error> {
    let mut sink = std::pin::pin!(sink);
    let mut encoder = Encoder::new();
    let mut sent = 0;
    for row in rows {
        encoder.row(&row);
        sent += 1;
        if encoder.buffer.len() >= CHUNK_BYTES {
            sink.feed(encoder.chunk()).await?;
        }
    }
    encoder.buffer.put_i16(-1);
    sink.feed(encoder.chunk()).await?;
    let counted = sink.as_mut().finish().await?;
    if encoder.clamped > 0 {
        metrics::counter!("logweir_store_clamped_timestamps_total").increment(encoder.clamped);
    }
    Ok((sent, counted))
}

/// Returns the chunks that [`copy`] sends, without the two-byte trailer and without a server.
#[cfg(feature = "__bench")]
pub(crate) fn chunks<'a>(rows: impl Iterator<Item = Row<'a>>) -> impl Iterator<Item = Bytes> {
    let mut encoder = Encoder::new();
    let mut rows = rows;
    std::iter::from_fn(move || {
        for row in rows.by_ref() {
            encoder.row(&row);
            if encoder.buffer.len() >= CHUNK_BYTES {
                return Some(encoder.chunk());
            }
        }
        (!encoder.buffer.is_empty()).then(|| encoder.chunk())
    })
}

struct Encoder {
    buffer: BytesMut,
    clamped: u64,
}

impl Encoder {
    fn new() -> Self {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0");
        buffer.put_i32(0); // flags
        buffer.put_i32(0); // length of the header's extension
        Self { buffer, clamped: 0 }
    }

    fn row(&mut self, row: &Row<'_>) {
        let record = &row.record;
        let ts_us = timestamp::clamp(record.ts_us);
        self.clamped += u64::from(ts_us != record.ts_us);
        let texts = record.service.len() + record.host.len() + record.message.len() + record.attributes.len();
        // One capacity check for the whole row, and one copy for all fixed-width columns.
        self.buffer.reserve(FIXED.len() + 4 * 4 + 1 + texts);
        let mut fixed = FIXED;
        fixed[6..14].copy_from_slice(&row.id.to_be_bytes());
        fixed[18..26].copy_from_slice(&(ts_us - EPOCH_US).to_be_bytes());
        fixed[31] = record.severity.number();
        self.buffer.put_slice(&fixed);
        for text in [record.service, record.host, record.message] {
            self.buffer.put_i32(length(text.len()));
            self.buffer.put_slice(text.as_bytes());
        }
        if record.attributes.is_empty() {
            self.buffer.put_i32(-1);
        } else {
            self.buffer.put_i32(length(record.attributes.len() + 1));
            self.buffer.put_u8(JSONB_VERSION);
            self.buffer.put_slice(record.attributes.as_bytes());
        }
    }

    fn chunk(&mut self) -> Bytes {
        let chunk = self.buffer.split().freeze();
        self.buffer.reserve(CHUNK_BYTES + CHUNK_BYTES / 8);
        chunk
    }
}

fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("a frame holds at most 16 MiB")
}
