//! The process that serves a connection, as the server has announced it.
//!
//! A server announces its own process; a pooler announces a key of its own, since the server connection can change.
//! The client library keeps the announced number to itself, but sends it with a request to cancel a statement. So such a
//! request is written to memory instead of to the server.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio_postgres::Client;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// Length, code, process and key of a request to cancel.
const CANCEL_BYTES: usize = 16;

/// Returns the number of the process that was announced for `client`, or `None` if it cannot be told.
pub(super) async fn announced_process(client: &Client) -> Option<i32> {
    let (ours, mut theirs) = tokio::io::duplex(4 * CANCEL_BYTES);
    // The answer to the question whether TLS is supported, if it is asked.
    theirs.write_all(b"S").await.ok()?;
    client.cancel_token().cancel_query_raw(ours, InMemory).await.ok()?;
    let mut sent = Vec::new();
    theirs.read_to_end(&mut sent).await.ok()?;
    let request = sent.get(sent.len().checked_sub(CANCEL_BYTES)?..)?;
    Some(i32::from_be_bytes(request.get(8..12)?.try_into().ok()?))
}

/// "TLS" that passes everything on.
struct InMemory;

struct Passed(DuplexStream);

impl TlsConnect<DuplexStream> for InMemory {
    type Stream = Passed;
    type Error = io::Error;
    type Future = Ready<io::Result<Passed>>;

    fn connect(self, stream: DuplexStream) -> Self::Future {
        ready(Ok(Passed(stream)))
    }
}

impl TlsStream for Passed {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Passed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Passed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
