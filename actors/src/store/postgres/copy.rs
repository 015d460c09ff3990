//! Rows in the binary COPY format, written straight from the columnar chunks.
//!
//! No allocation per record: rows go into one buffer that is handed to the socket in pieces.
//! The rows that the server counts at the end are compared with those sent: a stream that is cut at a row's
//! border, or lacks its trailer, is loaded by the server without complaint.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, Error, Statement};

use super::types::{EPOCH_US, JSONB_VERSION};
use crate::store::rows::Row;
use crate::store::time;

/// The columns in the order in which [`Encoder`] writes them.
pub(super) const COPY_SQL: &str =
    "COPY logs (id, ts, severity, service, host, message, attributes) FROM STDIN (FORMAT binary)";
/// A row's beginning: 7 columns, then length and value of id (8), ts (8) and severity (2).
const FIXED: [u8; 32] = {
    let mut fixed = [0; 32];
    (fixed[1], fixed[5], fixed[17], fixed[29]) = (7, 8, 8, 2);
    fixed
};
/// A piece leaves when it has reached this: large enough that a write costs nothing, small enough to stay in the L2 cache.
const PIECE_BYTES: usize = 128 << 10;

/// Copies `rows` into the table and returns how many were sent and how many the server counted.
pub(super) async fn copy<'a>(
    client: &Client,
    statement: &Statement,
    rows: impl Iterator<Item = Row<'a>>,
) -> Result<(u64, u64), Error> {
    let sink = client.copy_in::<_, Bytes>(statement).await?;
    let mut sink = std::pin::pin!(sink);
    let mut encoder = Encoder::new();
    let mut sent = 0;
    for row in rows {
        encoder.row(&row);
        sent += 1;
        if encoder.buffer.len() >= PIECE_BYTES {
            sink.feed(encoder.piece()).await?;
        }
    }
    encoder.buffer.put_i16(-1);
    sink.feed(encoder.piece()).await?;
    let counted = sink.as_mut().finish().await?;
    if encoder.clamped > 0 {
        metrics::counter!("logweir_store_clamped_timestamps_total").increment(encoder.clamped);
    }
    Ok((sent, counted))
}

/// What [`copy`] sends before the two bytes at the end, without a server.
pub(in crate::store) fn pieces<'a>(rows: impl Iterator<Item = Row<'a>>) -> impl Iterator<Item = Bytes> {
    let mut encoder = Encoder::new();
    let mut rows = rows;
    std::iter::from_fn(move || {
        for row in rows.by_ref() {
            encoder.row(&row);
            if encoder.buffer.len() >= PIECE_BYTES {
                return Some(encoder.piece());
            }
        }
        (!encoder.buffer.is_empty()).then(|| encoder.piece())
    })
}

struct Encoder {
    buffer: BytesMut,
    clamped: u64,
}

impl Encoder {
    fn new() -> Self {
        let mut buffer = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0");
        buffer.put_i32(0); // flags
        buffer.put_i32(0); // length of the header's extension
        Self { buffer, clamped: 0 }
    }

    fn row(&mut self, row: &Row<'_>) {
        let record = &row.record;
        let ts_us = time::clamp(record.ts_us);
        self.clamped += u64::from(ts_us != record.ts_us);
        let texts = record.service.len() + record.host.len() + record.message.len() + record.attributes.len();
        // One look at the room for the whole row, and one copy for all that has a fixed width.
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

    fn piece(&mut self) -> Bytes {
        let piece = self.buffer.split().freeze();
        self.buffer.reserve(PIECE_BYTES + PIECE_BYTES / 8);
        piece
    }
}

fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("a frame holds at most 16 MiB")
}
