//! Loki's push API: streams of lines with labels.
//!
//! - The time of an entry is the record's time, whatever its line contains. The line is parsed like any other, so JSON
//!   in it yields a severity and attributes.
//! - Of a stream's labels, the first of [`SERVICE`] is the service, of [`HOST`] the host, of [`LEVEL`] the severity;
//!   all other labels and all structured metadata are attributes. Values in the line take precedence.
//! - Invalid labels or times reject the body, as in Loki.

use super::protobuf::{Value, each_bytes, fields, last_bytes};
use crate::format::Format;
use crate::json::walk::{elements, is_present, members, string};
use crate::json::write::push_member;
use crate::lines::parser::LineParser;
use crate::object::Scratch;
use crate::sink::{Sink, is_name};
use crate::text::{Sanitized, clean};
use crate::time;
use logweir_record::record::Severity;
use logweir_record::timestamp::{MAX_US, MIN_US};

/// Labels that name a service, in the order of Loki's own `service_name` discovery.
const SERVICE: [&str; 12] = [
    "service_name",
    "service",
    "app",
    "application",
    "name",
    "app_kubernetes_io_name",
    "container",
    "container_name",
    "component",
    "workload",
    "job",
    "k8s_job_name",
];
/// Labels that name a host.
const HOST: [&str; 7] = ["host", "hostname", "host_name", "node_name", "node", "pod", "instance"];
/// Labels that name a severity.
const LEVEL: [&str; 4] = ["level", "severity", "detected_level", "lvl"];

/// Parses a push request in JSON.
///
/// # Errors
/// A description of the first error.
pub fn parse_json(text: &str, line_bytes_max: usize, sink: &mut Sink<'_>) -> Result<(), String> {
    let mut push = Push::new(line_bytes_max);
    members(text, |name, value| match &*name {
        "streams" if is_present(value) => elements(value, |stream| push.stream_json(stream, sink)),
        _ => Ok(()),
    })
}

/// Parses a push request in protobuf, decompressed: logproto's `PushRequest`.
///
/// # Errors
/// A description of the first error.
pub fn parse_protobuf(body: &[u8], line_bytes_max: usize, sink: &mut Sink<'_>) -> Result<(), String> {
    let mut push = Push::new(line_bytes_max);
    each_bytes(body, 1, |stream| push.stream_protobuf(stream, sink))
}

/// A label, or an entry of structured metadata.
type Label = (String, String);

struct Push {
    line_bytes_max: usize,
    lines: LineParser,
    scratch: Scratch<'static>,
    /// The labels of the stream, or the metadata of the entry.
    labels: Vec<Label>,
    text: String,
}

impl Push {
    fn new(line_bytes_max: usize) -> Self {
        let (lines, scratch) = (LineParser::new(Format::Lines), Scratch::default());
        Self { line_bytes_max, lines, scratch, labels: Vec::new(), text: String::new() }
    }

    fn stream_json(&mut self, stream: &str, sink: &mut Sink<'_>) -> Result<(), String> {
        let (mut labels, mut values) = ("", "");
        members(stream, |name, value| {
            match &*name {
                "stream" => labels = value,
                "values" => values = value,
                _ => {}
            }
            Ok(())
        })?;
        self.read_labels(labels, &mut sink.sanitized)?;
        let stream_defaults = open(&mut self.labels, sink);
        if is_present(values) {
            elements(values, |entry| self.entry_json(entry, stream_defaults, sink))?;
        }
        sink.envelope.clear();
        Ok(())
    }

    fn entry_json(&mut self, entry: &str, stream_defaults: StreamDefaults, sink: &mut Sink<'_>) -> Result<(), String> {
        sink.line += 1;
        let (mut parts, mut count) = ([""; 3], 0);
        elements(entry, |part| {
            if let Some(place) = parts.get_mut(count) {
                *place = part;
            }
            count += 1;
            Ok(())
        })?;
        let [ts, line, metadata] = parts;
        let entry = sink.line;
        let ts_us = entry_time(ts.trim_matches('"'), sink.received_us())
            .ok_or_else(|| format!("entry {entry}: invalid timestamp {ts}"))?;
        let mut text = std::mem::take(&mut self.text);
        string(line, &mut text, &mut sink.sanitized)
            .ok_or_else(|| format!("entry {entry}: the line is not a JSON string"))?;
        let longest = text.len().max(metadata.len());
        if longest > self.line_bytes_max {
            sink.discard_too_long(longest, self.line_bytes_max);
            self.text = text;
            return Ok(());
        }
        self.read_labels(metadata, &mut sink.sanitized)?;
        self.push(ts_us, &text, stream_defaults, sink);
        self.text = text;
        sink.check_full()
    }

    /// Reads the members of an object whose values are strings into `self.labels`.
    fn read_labels(&mut self, object: &str, counts: &mut Sanitized) -> Result<(), String> {
        self.labels.clear();
        if !is_present(object) {
            return Ok(());
        }
        self.check_size(object.len())?;
        let labels = &mut self.labels;
        members(object, |name, value| {
            let mut text = String::new();
            if string(value, &mut text, counts).is_none() {
                text = value.to_owned(); // a number or a boolean
            }
            labels.push((name.into_owned(), text));
            Ok(())
        })
    }

    fn stream_protobuf(&mut self, stream: &[u8], sink: &mut Sink<'_>) -> Result<(), String> {
        let labels = last_bytes(stream, 1)?;
        self.check_size(labels.len())?;
        let text = clean(labels, &mut sink.sanitized);
        self.labels = read_selector(&text)?;
        let stream_defaults = open(&mut self.labels, sink);
        each_bytes(stream, 2, |entry| self.entry_protobuf(entry, stream_defaults, sink))?;
        sink.envelope.clear();
        Ok(())
    }

    fn entry_protobuf(
        &mut self,
        entry: &[u8],
        stream_defaults: StreamDefaults,
        sink: &mut Sink<'_>,
    ) -> Result<(), String> {
        sink.line += 1;
        if entry.len() > self.line_bytes_max {
            sink.discard_too_long(entry.len(), self.line_bytes_max);
            return Ok(());
        }
        self.labels.clear();
        let labels = &mut self.labels;
        let counts = &mut sink.sanitized;
        each_bytes(entry, 3, |pair| {
            let text =
                |tag, counts: &mut Sanitized| Ok::<_, String>(clean(last_bytes(pair, tag)?, counts).into_owned());
            labels.push((text(1, counts)?, text(2, counts)?));
            Ok(())
        })?;
        let line = clean(last_bytes(entry, 2)?, counts);
        let ts_us = timestamp(last_bytes(entry, 1)?)?.unwrap_or(sink.received_us());
        self.push(ts_us, &line, stream_defaults, sink);
        sink.check_full()
    }

    /// Pushes one record of the current stream.
    fn push(&mut self, ts_us: i64, line: &str, stream_defaults: StreamDefaults, sink: &mut Sink<'_>) {
        sink.envelope.ts_us = Some(ts_us);
        sink.envelope.ts_is_fixed = true;
        sink.envelope.severity = stream_defaults.severity;
        sink.envelope.attributes.truncate(stream_defaults.attributes);
        if let Some(at) = first_ranked(&self.labels, &LEVEL, |text| Severity::from_text(text).is_some()) {
            sink.envelope.severity = Severity::from_text(&self.labels.swap_remove(at).1).unwrap_or_default();
        }
        for (name, value) in &self.labels {
            push_member(&mut sink.envelope.attributes, name, value);
        }
        let mut scratch = std::mem::take(&mut self.scratch).recycle();
        self.lines.parse(line, &mut scratch, sink);
        self.scratch = scratch.recycle();
    }

    fn check_size(&self, bytes: usize) -> Result<(), String> {
        let bytes_max = self.line_bytes_max;
        let too_large = || format!("labels of {bytes} bytes exceed http.line_bytes_max ({bytes_max} bytes)");
        (bytes <= bytes_max).then_some(()).ok_or_else(too_large)
    }
}

/// What the stream defines, restored after each entry.
#[derive(Clone, Copy)]
struct StreamDefaults {
    severity: Severity,
    attributes: usize,
}

/// Sets the envelope of the records that follow from the labels.
fn open(labels: &mut Vec<Label>, sink: &mut Sink<'_>) -> StreamDefaults {
    let envelope = &mut sink.envelope;
    envelope.clear();
    if let Some(at) = first_ranked(labels, &SERVICE, is_name) {
        envelope.service = labels.remove(at).1;
    }
    if let Some(at) = first_ranked(labels, &HOST, is_name) {
        envelope.host = labels.remove(at).1;
    }
    if let Some(at) = first_ranked(labels, &LEVEL, |text| Severity::from_text(text).is_some()) {
        envelope.severity = Severity::from_text(&labels.remove(at).1).unwrap_or_default();
    }
    for (name, value) in &*labels {
        push_member(&mut envelope.attributes, name, value);
    }
    StreamDefaults { severity: envelope.severity, attributes: envelope.attributes.len() }
}

/// Returns the usable label whose name comes first in `names`.
fn first_ranked(labels: &[Label], names: &[&str], usable: impl Fn(&str) -> bool) -> Option<usize> {
    let rank = |name: &str| names.iter().position(|known| *known == name);
    let ranked = labels.iter().enumerate().filter_map(|(at, (name, value))| Some((rank(name)?, at, value)));
    ranked.filter(|(_, _, value)| usable(value)).min().map(|(_, at, _)| at)
}

/// Nanoseconds since 1970, in digits; other forms of a time are accepted too. A number too small for a time, such as 0,
/// means the time of arrival.
fn entry_time(text: &str, received_us: i64) -> Option<i64> {
    let number = || text.parse::<i64>().is_ok().then_some(received_us);
    time::from_text(text).map(|time| time.us).or_else(number)
}

/// protobuf's `Timestamp`; `None` if it is zero.
fn timestamp(message: &[u8]) -> Result<Option<i64>, String> {
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    for field in fields(message) {
        match field? {
            (1, Value::Varint(value)) => seconds = value.cast_signed(),
            (2, Value::Varint(value)) => nanos = value.cast_signed(),
            _ => {}
        }
    }
    if seconds == 0 {
        return Ok(None);
    }
    let us = i128::from(seconds) * 1_000_000 + i128::from(nanos).div_euclid(1000);
    let us = i64::try_from(us).ok().filter(|us| (MIN_US..=MAX_US).contains(us));
    us.map(Some).ok_or_else(|| format!("invalid timestamp: {seconds} seconds"))
}

/// Parses `{name="value", …}`, with values quoted as in Go.
fn read_selector(text: &str) -> Result<Vec<Label>, String> {
    let bad = || format!("invalid labels: {text:.200}");
    let inner = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(bad)?;
    let mut labels = Vec::new();
    let mut rest = inner.trim_start();
    while !rest.is_empty() {
        let name;
        (name, rest) = match rest.starts_with('"') {
            true => quoted(rest).ok_or_else(bad)?,
            false => {
                let (name, _) = rest.split_once('=').ok_or_else(bad)?;
                (name.trim().to_owned(), &rest[name.len()..])
            }
        };
        rest = rest.trim_start().strip_prefix('=').ok_or_else(bad)?.trim_start();
        let value;
        (value, rest) = quoted(rest).ok_or_else(bad)?;
        labels.push((name, value));
        rest = rest.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(rest) => rest.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err(bad()),
        };
    }
    Ok(labels)
}

/// Splits off the Go string at the start of `text`.
fn quoted(text: &str) -> Option<(String, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (value, rest) = raw.split_once('`')?;
        return Some((value.to_owned(), rest));
    }
    let mut value = Vec::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let special = rest.find(['"', '\\'])?;
        value.extend_from_slice(&rest.as_bytes()[..special]);
        let escaped = rest[special..].strip_prefix('\\');
        let Some(escaped) = escaped else {
            let mut counts = Sanitized::default();
            return Some((clean(&value, &mut counts).into_owned(), &rest[special + 1..]));
        };
        let kind = escaped.chars().next()?;
        let (digits, radix) = match kind {
            'x' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='7' => (3, 8),
            _ => (0, 0),
        };
        let start = usize::from(radix == 16);
        if digits > 0 {
            let code = u32::from_str_radix(escaped.get(start..start + digits)?, radix).ok()?;
            match kind {
                'u' | 'U' => value.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes()),
                _ => value.push(u8::try_from(code).ok()?),
            }
            rest = &escaped[start + digits..];
            continue;
        }
        value.push(match kind {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '"' | '\'' => u8::try_from(kind).ok()?,
            _ => return None,
        });
        rest = &escaped[1..];
    }
}
