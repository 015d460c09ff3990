//! Stage parser: turns bodies into columnar chunks. The formats are in `logweir_formats`; the stage adds mailboxes and
//! metrics.

use std::sync::Arc;

use logweir_engine::fault::kill_point;
use logweir_engine::mailbox::{Closed, Mailbox};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use logweir_formats::{Format, ItemOutcome, Memory, Parsed, Rules, parse_by};
use logweir_record::timestamp;
use tokio::time::{Duration, Instant};

use crate::horizon::Horizon;
use crate::message::{ParsedChunk, RawChunk, Rejection};

/// Interval between warnings about the event times of records.
const WARN_EVERY: Duration = Duration::from_secs(300);

/// The stage.
pub(crate) struct Parser {
    context: StageContext,
    batcher: Mailbox<ParsedChunk>,
    line_bytes_max: usize,
    rules: Arc<Rules>,
    horizon: Horizon,
    warned: Option<Instant>,
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
        let (horizon, warned) = (Horizon::default(), None);
        Self {
            context,
            batcher,
            line_bytes_max,
            rules,
            horizon,
            warned,
            memory,
            records: 0,
            parse_errors: 0,
            discarded: 0,
        }
    }

    /// Applies these configured rules.
    #[must_use]
    pub fn with_rules(self, rules: Arc<Rules>) -> Self {
        Self { rules, ..self }
    }

    /// Counts the records beyond `horizon`.
    #[must_use]
    pub fn with_horizon(self, horizon: Horizon) -> Self {
        Self { horizon, ..self }
    }

    /// Counts the records that the database will not keep, or keeps for longer than intended; warns now and then.
    fn count_beyond(&mut self, parsed: &mut Parsed, format: Format) {
        let chunk = &parsed.chunk;
        let beyond = self.horizon.examine(chunk.times(), chunk.received_us());
        if beyond.ahead > 0 {
            metrics::counter!("logweir_records_ahead_total", "format" => format_label(format))
                .increment(beyond.ahead.into());
        }
        let Some(oldest) = beyond.oldest.and_then(|at| chunk.get(at)) else { return };
        parsed.report.beyond_retention = beyond.expired;
        metrics::counter!("logweir_records_beyond_retention_total", "format" => format_label(format))
            .increment(beyond.expired.into());
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(
                records = beyond.expired,
                oldest = timestamp::text(oldest.ts_us),
                service = oldest.service,
                "accepted records that are older than database.retention_days: the next maintenance deletes them; check the \
                 sender's clock, or raise database.retention_days (later ones are counted in \
                 logweir_records_beyond_retention_total)"
            );
        }
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

/// The protocol or format that a sender chose.
fn format_label(format: Format) -> &'static str {
    match format {
        Format::LokiJson | Format::LokiProtobuf => "loki",
        Format::OtlpJson | Format::OtlpProtobuf => "otlp",
        Format::ElasticBulk => "elasticsearch",
        Format::SplunkEvents => "splunk",
        Format::Ndjson | Format::Json => "json",
        Format::Plain => "plain",
        Format::AccessLog => "access_log",
        Format::Line(name) => name,
        Format::Custom(_) => "custom",
        _ => "auto",
    }
}

impl Stage for Parser {
    type Message = RawChunk;

    async fn receive(&mut self, raw: RawChunk) -> Result<(), Exit> {
        kill_point("stage.parser");
        let RawChunk { body, format, defaults, received_us, dedup_key, ack, reply } = raw;
        let Self { rules, memory, line_bytes_max, .. } = self;
        let mut parsed = match parse_by(rules, memory, &body, format, &defaults, received_us, *line_bytes_max) {
            Ok(parsed) => parsed,
            Err(rejection) => {
                reply.send(Err(rejection.into()));
                return Ok(());
            }
        };
        drop(body);
        self.count(&parsed);
        self.count_beyond(&mut parsed, format);
        let Parsed { chunk, report, .. } = parsed;
        let message = ParsedChunk { chunk, report, dedup_key, ack, reply };
        if let Err(Closed(message)) = self.context.send(&self.batcher, message).await {
            message.reply.send(Err(Rejection::draining()));
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
