//! Stage producer: decompresses bodies and passes them to the lane's parser. There is one per lane.
//!
//! - Sources submit bodies through an [`IntakeHandle`], the only entry point. It picks the lane and rejects a body at
//!   once when the mailbox is full.
//! - The memory of a body is bounded regardless of its compression: see `decompress`.

use logweir_engine::fault::kill_point;
use logweir_engine::mailbox::{Closed, Mailbox};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};

use crate::message::{Delivery, Encoding, RawChunk, Rejection};

pub(crate) mod decompress;
mod intake;
#[cfg(feature = "server")]
pub(crate) mod source_client;
#[cfg(feature = "server")]
pub(crate) mod framing;
#[cfg(feature = "server")]
mod container;
#[cfg(feature = "server")]
pub(crate) mod multiline;
#[cfg(feature = "server")]
mod lines;
#[cfg(feature = "server")]
pub(crate) mod stream;
#[cfg(feature = "server")]
pub(crate) mod syslog;
#[cfg(feature = "server")]
pub(crate) mod files;
#[cfg(feature = "server")]
pub(crate) mod demo;

pub(crate) use decompress::decompress;
pub use intake::IntakeHandle;

/// The stage.
pub(crate) struct Producer {
    context: StageContext,
    parser: Mailbox<RawChunk>,
    decompressed_bytes_max: usize,
    bodies: u64,
    bytes: u64,
    rejected: u64,
}

impl Producer {
    /// A producer that sends bodies of up to `decompressed_bytes_max` to `parser`.
    #[must_use]
    pub fn new(context: StageContext, parser: Mailbox<RawChunk>, decompressed_bytes_max: usize) -> Self {
        Self { context, parser, decompressed_bytes_max, bodies: 0, bytes: 0, rejected: 0 }
    }
}

impl Stage for Producer {
    type Message = Delivery;

    async fn receive(&mut self, delivery: Delivery) -> Result<(), Exit> {
        kill_point("stage.producer");
        let Delivery { stream: _, body, encoding, format, defaults, received_us, dedup_key, ack, reply } = delivery;
        self.bodies += 1;
        self.bytes += body.len() as u64;
        metrics::counter!("logweir_received_bytes_total").increment(body.len() as u64);
        let body = match encoding {
            Encoding::Identity if body.len() <= self.decompressed_bytes_max => body,
            _ => match decompress(&body, encoding, self.decompressed_bytes_max) {
                Ok(plain) => plain,
                Err(rejection) => {
                    self.rejected += 1;
                    reply.send(Err(rejection));
                    return Ok(());
                }
            },
        };
        // Here, since a sender may compress a body differently when it sends it again.
        let dedup_key = dedup_key.map(|dedup_key| dedup_key.with_body(&body));
        let raw = RawChunk { body, format, defaults, received_us, dedup_key, ack, reply };
        if let Err(Closed(raw)) = self.context.send(&self.parser, raw).await {
            raw.reply.send(Err(Rejection::draining()));
        }
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        vec![
            Counter { name: "bodies", value: self.bodies },
            Counter { name: "bytes", value: self.bytes },
            Counter { name: "rejected", value: self.rejected },
        ]
    }
}
