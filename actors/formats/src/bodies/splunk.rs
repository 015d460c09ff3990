//! Events of Splunk's HTTP Event Collector: JSON objects, one after the other.
//!
//! - `time` is the record's time. A text `event` is parsed as a line, an object as a JSON record; anything else is the
//!   message as JSON text.
//! - `host` is the host; the service is `service.name` or `service` of `fields`, else `sourcetype`. A `level` or
//!   `severity` of `fields` is the severity of an event that has none. `source`, `sourcetype`, `index` and the rest of
//!   `fields` are attributes.
//! - An invalid event rejects the whole body, so that the sender need not guess which events are stored.

use logweir_record::record::{Record, Severity};
use serde_json::value::RawValue;

use crate::format::Format;
use crate::json::check::{in_column, out_of_range, too_deep};
use crate::json::walk::{is_present, members, string};
use crate::json::write::push_json_string;
use crate::lines::parser::LineParser;
use crate::object::{self, Scratch};
use crate::report::{ParseError, ParseErrorKind};
use crate::sink::{Sink, is_name};
use crate::text::sanitize_escapes;
use crate::time;

/// Parses a body of events.
///
/// # Errors
/// [`ParseErrorKind::MalformedItem`] for an invalid event.
pub fn parse(body: &str, line_bytes_max: usize, sink: &mut Sink<'_>) -> Result<(), ParseError> {
    let mut collector = Collector::default();
    for (number, event) in (0..).zip(serde_json::Deserializer::from_str(body).into_iter::<&RawValue>()) {
        sink.line += 1;
        let event = event.map_err(|error| malformed(number, "malformed_json", &in_column(&error)))?.get();
        if event.len() > line_bytes_max {
            sink.discard_too_long(event.len(), line_bytes_max);
            continue;
        }
        collector.event(event, sink).map_err(|(reason, what)| malformed(number, reason, &what))?;
        if sink.is_full() {
            break;
        }
    }
    sink.envelope.clear();
    Ok(())
}

fn malformed(number: u32, reason: &'static str, what: &str) -> ParseError {
    let detail = format!("event {number} (from 0): {what}; none of the body was stored");
    ParseError { kind: ParseErrorKind::MalformedItem(number), reason, detail }
}

/// A reason to count, and a message.
type EventError = (&'static str, String);

struct Collector {
    lines: LineParser,
    scratch: Scratch<'static>,
    text: String,
}

impl Default for Collector {
    fn default() -> Self {
        Self { lines: LineParser::new(Format::Lines), scratch: Scratch::default(), text: String::new() }
    }
}

/// The members of an event that are not processed at once, as raw JSON.
#[derive(Default)]
struct Event<'a> {
    time: &'a str,
    event: &'a str,
    fields: &'a str,
    sourcetype: &'a str,
}

impl Collector {
    fn event(&mut self, raw: &str, sink: &mut Sink<'_>) -> Result<(), EventError> {
        sink.envelope.clear();
        let mut event = Event::default();
        members(raw, |name, value| {
            if name != "event" && too_deep(value) {
                return Err(format!("{name} is nested too deep"));
            }
            match &*name {
                "time" => event.time = value,
                "event" => event.event = value,
                "fields" => event.fields = value,
                "host" => self.host(value, sink),
                "source" | "sourcetype" | "index" if is_present(value) => {
                    if name == "sourcetype" {
                        event.sourcetype = value;
                    }
                    push_raw(&mut sink.envelope.attributes, &name, value);
                }
                _ => {}
            }
            Ok(())
        })
        .map_err(|what| ("malformed_json", what))?;
        match event.event {
            "" | "null" => return Err(("event_required", "missing `event`".to_owned())),
            "\"\"" => return Err(("event_blank", "empty `event`".to_owned())),
            _ => {}
        }
        self.time(event.time, sink);
        if is_present(event.fields) {
            self.fields(event.fields, sink).map_err(|what| ("malformed_json", format!("fields: {what}")))?;
        }
        if sink.envelope.service.is_empty()
            && let Some(sourcetype) =
                string(event.sourcetype, &mut self.text, &mut sink.sanitized).filter(|text| is_name(text))
        {
            sink.envelope.service.push_str(sourcetype);
        }
        sanitize_escapes(&mut sink.envelope.attributes, &mut sink.sanitized);
        self.push(event.event, sink);
        Ok(())
    }

    fn host(&mut self, value: &str, sink: &mut Sink<'_>) {
        match string(value, &mut self.text, &mut sink.sanitized).filter(|text| is_name(text)) {
            Some(host) => host.clone_into(&mut sink.envelope.host),
            None if is_present(value) => push_raw(&mut sink.envelope.attributes, "host", value),
            None => {}
        }
    }

    /// Seconds since 1970, as a number or as text. Any other value stays an attribute.
    fn time(&mut self, value: &str, sink: &mut Sink<'_>) {
        if !is_present(value) {
            return;
        }
        let time = time::from_text(value.trim_matches('"'));
        sink.envelope.ts_us = time.map(|time| time.us);
        sink.envelope.ts_is_fixed = time.is_some();
        let clamped = time.is_some_and(|time| time.clamped);
        sink.sanitized.timestamp += u64::from(clamped);
        if clamped || time.is_none() {
            push_raw(&mut sink.envelope.attributes, "time", value);
        }
    }

    fn fields(&mut self, fields: &str, sink: &mut Sink<'_>) -> Result<(), String> {
        let (envelope, counts) = (&mut sink.envelope, &mut sink.sanitized);
        members(fields, |name, value| {
            let text = string(value, &mut self.text, counts);
            match (&*name, text) {
                ("service.name" | "service", Some(text)) if is_name(text) => text.clone_into(&mut envelope.service),
                ("level" | "severity", Some(text)) if Severity::from_text(text).is_some() => {
                    envelope.severity = Severity::from_text(text).unwrap_or_default();
                }
                _ => push_raw(&mut envelope.attributes, &name, value),
            }
            Ok(())
        })
    }

    /// Pushes the record, once its envelope is known.
    fn push(&mut self, event: &str, sink: &mut Sink<'_>) {
        let Self { lines, scratch, text } = self;
        let mut own = std::mem::take(scratch).recycle();
        if event.starts_with('{') {
            if let Err(error) = object::parse(event, &mut own, sink) {
                sink.push_unparsed(event, "json", error);
            }
        } else if let Some(line) = string(event, text, &mut sink.sanitized) {
            lines.parse(line, &mut own, sink);
        } else {
            let (ts_us, severity) = (sink.ts_us(), Severity::UNSPECIFIED);
            sink.push(Record { ts_us, severity, service: "", host: "", message: event, attributes: "" });
        }
        *scratch = own.recycle();
    }
}

fn push_raw(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    push_json_string(out, name);
    out.push(':');
    if out_of_range(value).is_some() {
        push_json_string(out, value); // a number that no reader could represent
    } else {
        out.push_str(value);
    }
}
