//! Stage parser: turns bodies into columnar chunks. The formats are in `logweir_formats`; the stage adds mailboxes and
//! metrics.

use std::sync::Arc;

use logweir_engine::fault::kill_point;
use logweir_engine::mailbox::{Closed, Mailbox};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use logweir_formats::{ItemOutcome, Memory, Parsed, Rules, parse_by};

use crate::message::{ParsedChunk, RawChunk, Rejection};

/// The stage.
pub(crate) struct Parser {
    context: StageContext,
    batcher: Mailbox<ParsedChunk>,
    line_bytes_max: usize,
    rules: Arc<Rules>,
    memory: Memory,
    records: u64,
    parse_errors: u64,
    discarded: u64,
}

impl Parser {
    /// A parser that sends chunks to `batcher` and discards lines above `line_bytes_max`.
    #[must_use]
    pub fn new(context: StageContext, batcher: Mailbox<ParsedChunk>, line_bytes_max: usize) -> Self {
        let (rules, memory) = (Arc::default(), Memory::default());
        Self { context, batcher, line_bytes_max, rules, memory, records: 0, parse_errors: 0, discarded: 0 }
    }

    /// Applies these configured rules.
    #[must_use]
    pub fn with_rules(self, rules: Arc<Rules>) -> Self {
        Self { rules, ..self }
    }

    /// Counts once per body, never per record.
    fn count(&mut self, parsed: &Parsed) {
        self.records += u64::from(parsed.report.accepted);
        self.parse_errors += u64::from(parsed.report.parse_errors);
        self.discarded += parsed.too_long;
        metrics::counter!("logweir_received_records_total").increment(parsed.report.accepted.into());
        for &(format, count) in &parsed.parse_errors {
            metrics::counter!("logweir_parse_errors_total", "format" => format).increment(count);
        }
        if parsed.too_long > 0 {
            let labels = [("component", "parser"), ("reason", "line_too_long"), ("intentional", "false")];
            metrics::counter!("logweir_discarded_records_total", &labels).increment(parsed.too_long);
        }
        let unsupported = parsed.report.items.iter().filter(|item| item.outcome == ItemOutcome::Unsupported).count();
        if unsupported > 0 {
            let labels = [("component", "parser"), ("reason", "unsupported_action"), ("intentional", "true")];
            metrics::counter!("logweir_discarded_records_total", &labels).increment(unsupported as u64);
        }
        for (cause, count) in parsed.sanitized.causes() {
            if count > 0 {
                metrics::counter!("logweir_sanitized_values_total", "cause" => cause).increment(count);
            }
        }
    }
}

impl Stage for Parser {
    type Message = RawChunk;

    async fn receive(&mut self, raw: RawChunk) -> Result<(), Exit> {
        kill_point("stage.parser");
        let RawChunk { body, format, defaults, received_us, dedup_key, ack, reply } = raw;
        let Self { rules, memory, line_bytes_max, .. } = self;
        let parsed = match parse_by(rules, memory, &body, format, &defaults, received_us, *line_bytes_max) {
            Ok(parsed) => parsed,
            Err(rejection) => {
                let _ = reply.send(Err(rejection.into()));
                return Ok(());
            }
        };
        drop(body);
        self.count(&parsed);
        let Parsed { chunk, report, .. } = parsed;
        let message = ParsedChunk { chunk, report, dedup_key, ack, reply };
        if let Err(Closed(message)) = self.context.waiting(self.batcher.send(message)).await {
            let _ = message.reply.send(Err(Rejection::draining()));
        }
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        vec![
            Counter { name: "records", value: self.records },
            Counter { name: "parse_errors", value: self.parse_errors },
            Counter { name: "discarded", value: self.discarded },
        ]
    }
}
