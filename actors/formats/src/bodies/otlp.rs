//! OpenTelemetry logs, in protobuf and in JSON.
//!
//! - `service.name` and `host.name` of the resource are the record's service and host. Every other attribute of the
//!   resource, the scope or the record keeps its name; of duplicate names the innermost wins.
//! - A text body is the message; any other body is the message as JSON text. Trace and span ids are hexadecimal
//!   attributes.
//! - A record's time is `time`, else `observed_time`, else its time of arrival.
//! - Resources, scopes and records are walked through, never built: a record takes memory only while it is read.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use logweir_record::record::{Record, Severity};

use super::protobuf::{DEPTH_MAX, Value, each_bytes, fields, last_bytes};
use crate::json::check::out_of_range;
use crate::json::walk::{elements, is_present, members, pick, string};
use crate::json::write::{push_json_string, push_member};
use crate::sink::{NAME_BYTES_MAX, Sink, is_name};
use crate::text::{Sanitized, clean, sanitize_escapes};

/// Parses an `ExportLogsServiceRequest` in protobuf.
///
/// # Errors
/// A description of the first error.
pub fn parse_protobuf(body: &[u8], line_bytes_max: usize, sink: &mut Sink<'_>) -> Result<(), String> {
    let mut builder = RecordBuilder::default();
    each_bytes(body, 1, |resource_logs| {
        sink.envelope.clear();
        let resource = last_bytes(resource_logs, 1)?;
        check_size("resource", resource.len(), line_bytes_max)?;
        each_bytes(resource, 1, |attribute| resource_attribute(attribute, sink))?;
        let resource_attributes = sink.envelope.attributes.len();
        each_bytes(resource_logs, 2, |scope_logs| {
            sink.envelope.attributes.truncate(resource_attributes);
            let scope = last_bytes(scope_logs, 1)?;
            check_size("scope", scope.len(), line_bytes_max)?;
            scope_protobuf(scope, sink)?;
            each_bytes(scope_logs, 2, |record| {
                sink.line += 1;
                if record.len() > line_bytes_max {
                    sink.discard_too_long(record.len(), line_bytes_max);
                    return Ok(());
                }
                builder.clear();
                builder.read_protobuf(record, &mut sink.sanitized)?;
                builder.push(sink);
                sink.check_full()
            })
        })
    })
}

/// Parses an `ExportLogsServiceRequest` in JSON.
///
/// # Errors
/// A description of the first error.
pub fn parse_json(text: &str, line_bytes_max: usize, sink: &mut Sink<'_>) -> Result<(), String> {
    let mut builder = RecordBuilder::default();
    each_element(text, ["resourceLogs", "resource_logs"], |resource_logs| {
        sink.envelope.clear();
        let [resource] = pick(resource_logs, [["resource"; 2]])?;
        check_size("resource", resource.len(), line_bytes_max)?;
        each_element(resource, ["attributes"; 2], |attribute| resource_attribute_json(attribute, sink))?;
        let resource_attributes = sink.envelope.attributes.len();
        each_element(resource_logs, ["scopeLogs", "scope_logs"], |scope_logs| {
            sink.envelope.attributes.truncate(resource_attributes);
            let [scope] = pick(scope_logs, [["scope"; 2]])?;
            check_size("scope", scope.len(), line_bytes_max)?;
            scope_json(scope, sink)?;
            each_element(scope_logs, ["logRecords", "log_records"], |record| {
                sink.line += 1;
                if record.len() > line_bytes_max {
                    sink.discard_too_long(record.len(), line_bytes_max);
                    return Ok(());
                }
                builder.clear();
                builder.read_json(record, &mut sink.sanitized)?;
                builder.push(sink);
                sink.check_full()
            })
        })
    })
}

fn check_size(what: &str, bytes: usize, bytes_max: usize) -> Result<(), String> {
    let too_large = || format!("a {what} of {bytes} bytes exceeds http.line_bytes_max ({bytes_max} bytes)");
    (bytes <= bytes_max).then_some(()).ok_or_else(too_large)
}

/// The record that is being read; the memory is reused for the next one.
#[derive(Default)]
struct RecordBuilder {
    time_ns: u64,
    observed_ns: u64,
    number: u64,
    severity_text: String,
    message: String,
    /// Members of a JSON object.
    attributes: String,
    buffer: String,
}

impl RecordBuilder {
    fn clear(&mut self) {
        (self.time_ns, self.observed_ns, self.number) = (0, 0, 0);
        for text in [&mut self.severity_text, &mut self.message, &mut self.attributes] {
            text.clear();
        }
    }

    fn read_protobuf(&mut self, record: &[u8], counts: &mut Sanitized) -> Result<(), String> {
        for field in fields(record) {
            match field? {
                (1, Value::Fixed64(nanos)) => self.time_ns = nanos,
                (11, Value::Fixed64(nanos)) => self.observed_ns = nanos,
                (2, Value::Varint(number)) => self.number = number,
                (3, Value::Bytes(text)) => assign(&mut self.severity_text, &clean(text, counts)),
                (5, Value::Bytes(body)) => self.body_protobuf(body, counts)?,
                (6, Value::Bytes(attribute)) => key_value(&mut self.attributes, attribute, 0, counts)?,
                (7, Value::Varint(count)) if count > 0 => self.number_attribute("dropped_attributes_count", count),
                (8, Value::Fixed32(flags)) if flags > 0 => self.number_attribute("trace_flags", flags.into()),
                (9, Value::Bytes(id)) => self.hex_attribute("trace_id", id),
                (10, Value::Bytes(id)) => self.hex_attribute("span_id", id),
                (12, Value::Bytes(name)) if !name.is_empty() => {
                    push_member(&mut self.attributes, "event.name", &clean(name, counts));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn body_protobuf(&mut self, body: &[u8], counts: &mut Sanitized) -> Result<(), String> {
        self.message.clear();
        match text_of(body) {
            Some(text) => self.message.push_str(&clean(text, counts)),
            None => any_value(&mut self.message, body, 0, counts)?,
        }
        Ok(())
    }

    fn read_json(&mut self, record: &str, counts: &mut Sanitized) -> Result<(), String> {
        let [time, observed, number, text, body, attributes, dropped, flags, trace, span, event] = pick(
            record,
            [
                ["timeUnixNano", "time_unix_nano"],
                ["observedTimeUnixNano", "observed_time_unix_nano"],
                ["severityNumber", "severity_number"],
                ["severityText", "severity_text"],
                ["body"; 2],
                ["attributes"; 2],
                ["droppedAttributesCount", "dropped_attributes_count"],
                ["flags"; 2],
                ["traceId", "trace_id"],
                ["spanId", "span_id"],
                ["eventName", "event_name"],
            ],
        )?;
        self.time_ns = count("timeUnixNano", time)?;
        self.observed_ns = count("observedTimeUnixNano", observed)?;
        self.number = severity_number(number)?;
        string(text, &mut self.severity_text, counts);
        body_json(body, &mut self.message, counts)?;
        if !attributes.is_empty() {
            elements(attributes, |attribute| key_value_json(&mut self.attributes, attribute, 0))?;
        }
        for (name, value) in [("dropped_attributes_count", dropped), ("trace_flags", flags)] {
            match count(name, value)? {
                0 => {}
                number => self.number_attribute(name, number),
            }
        }
        for (name, value) in [("trace_id", trace), ("span_id", span), ("event.name", event)] {
            if value.is_empty() {
                continue;
            }
            string(value, &mut self.buffer, counts).ok_or_else(|| bad_member(name, value))?;
            if name != "event.name" {
                self.buffer.make_ascii_lowercase(); // hexadecimal
            }
            if !self.buffer.is_empty() {
                push_member(&mut self.attributes, name, &self.buffer);
            }
        }
        sanitize_escapes(&mut self.attributes, counts);
        Ok(())
    }

    fn number_attribute(&mut self, name: &str, number: u64) {
        push_number(&mut self.attributes, name, number);
    }

    fn hex_attribute(&mut self, name: &str, id: &[u8]) {
        if !id.is_empty() {
            self.buffer.clear();
            for byte in id {
                let _ = write!(self.buffer, "{byte:02x}");
            }
            push_member(&mut self.attributes, name, &self.buffer);
        }
    }

    fn push(&mut self, sink: &mut Sink<'_>) {
        let numbered = u8::try_from(self.number).ok().and_then(Severity::from_number).filter(|s| s.number() > 0);
        let named = Severity::from_text(&self.severity_text);
        let severity = numbered.or(named).unwrap_or_default();
        if !self.severity_text.is_empty() && named != Some(severity) {
            push_member(&mut self.attributes, "severity_text", &self.severity_text);
        }
        let nanos = if self.time_ns > 0 { self.time_ns } else { self.observed_ns };
        let ts_us = i64::try_from(nanos / 1000).ok().filter(|&us| us > 0).unwrap_or(sink.ts_us());
        if !self.attributes.is_empty() {
            self.attributes.insert(0, '{');
            self.attributes.push('}');
        }
        let (message, attributes) = (&*self.message, &*self.attributes);
        sink.push(Record { ts_us, severity, service: "", host: "", message, attributes });
    }
}

fn assign(text: &mut String, value: &str) {
    text.clear();
    text.push_str(value);
}

fn bad_member(name: &str, value: &str) -> String {
    format!("invalid {name}: {value:.100}")
}

/// Parses an integer, bare or quoted; 0 if absent.
fn count(name: &str, value: &str) -> Result<u64, String> {
    if value.is_empty() {
        return Ok(0);
    }
    value.trim_matches('"').parse().map_err(|_| bad_member(name, value))
}

/// Parses a number, or its name in protobuf; 0 if absent.
fn severity_number(value: &str) -> Result<u64, String> {
    if value.is_empty() {
        return Ok(0);
    }
    let text = value.trim_matches('"');
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let name = text.strip_prefix("SEVERITY_NUMBER_").ok_or_else(|| bad_member("severityNumber", value))?;
    let (word, nth) = match name.as_bytes().last() {
        Some(digit @ b'2'..=b'4') => (&name[..name.len() - 1], u64::from(digit - b'1')),
        _ => (name, 0),
    };
    Ok(Severity::from_text(word).map_or(0, |severity| u64::from(severity.number()) + nth))
}

fn push_name(out: &mut String, name: &str) {
    if !out.is_empty() && !out.ends_with('{') {
        out.push(',');
    }
    push_json_string(out, name);
    out.push(':');
}

fn push_number(out: &mut String, name: &str, number: u64) {
    push_name(out, name);
    let _ = write!(out, "{number}");
}

/// Reads an attribute of a resource: the service, the host, or a member added to its records.
fn resource_attribute(attribute: &[u8], sink: &mut Sink<'_>) -> Result<(), String> {
    let (key, value) = (last_bytes(attribute, 1)?, last_bytes(attribute, 2)?);
    let (envelope, counts) = (&mut sink.envelope, &mut sink.sanitized);
    if let Some(target) = target_field(key, &mut envelope.service, &mut envelope.host)
        && let Some(text) = text_of(value)
        && text.len() <= NAME_BYTES_MAX
    {
        let text = clean(text, counts);
        if is_name(&text) {
            assign(target, &text);
            return Ok(());
        }
    }
    key_value(&mut envelope.attributes, attribute, 0, counts)
}

fn resource_attribute_json(attribute: &str, sink: &mut Sink<'_>) -> Result<(), String> {
    let mut text = String::new();
    let (envelope, counts) = (&mut sink.envelope, &mut sink.sanitized);
    let [key, value] = key_and_value(attribute)?;
    let key = string(key, &mut text, counts).unwrap_or_default();
    if let Some(target) = target_field(key.as_bytes(), &mut envelope.service, &mut envelope.host) {
        let [value] = pick(value, [STRING])?;
        if let Some(text) = string(value, &mut text, counts).filter(|text| is_name(text)) {
            assign(target, text);
            return Ok(());
        }
    }
    key_value_json(&mut envelope.attributes, attribute, 0)?;
    sanitize_escapes(&mut envelope.attributes, counts);
    Ok(())
}

fn target_field<'e>(key: &[u8], service: &'e mut String, host: &'e mut String) -> Option<&'e mut String> {
    match key {
        b"service.name" => Some(service),
        b"host.name" => Some(host),
        _ => None,
    }
}

fn scope_protobuf(scope: &[u8], sink: &mut Sink<'_>) -> Result<(), String> {
    let (out, counts) = (&mut sink.envelope.attributes, &mut sink.sanitized);
    for field in fields(scope) {
        match field? {
            (1, Value::Bytes(name)) if !name.is_empty() => push_member(out, "scope.name", &clean(name, counts)),
            (2, Value::Bytes(version)) if !version.is_empty() => {
                push_member(out, "scope.version", &clean(version, counts));
            }
            (3, Value::Bytes(attribute)) => key_value(out, attribute, 0, counts)?,
            _ => {}
        }
    }
    Ok(())
}

fn scope_json(scope: &str, sink: &mut Sink<'_>) -> Result<(), String> {
    let (out, counts) = (&mut sink.envelope.attributes, &mut sink.sanitized);
    if !is_present(scope) {
        return Ok(());
    }
    let mut text = String::new();
    members(scope, |name, value| {
        let value_text = string(value, &mut text, counts).filter(|text| !text.is_empty());
        match (&*name, value_text) {
            ("name", Some(text)) => push_member(out, "scope.name", text),
            ("version", Some(text)) => push_member(out, "scope.version", text),
            ("attributes", _) if is_present(value) => elements(value, |attribute| key_value_json(out, attribute, 0))?,
            _ => {}
        }
        Ok(())
    })?;
    sanitize_escapes(out, counts);
    Ok(())
}

/// Appends a protobuf `KeyValue` as a member.
fn key_value(out: &mut String, attribute: &[u8], depth: usize, counts: &mut Sanitized) -> Result<(), String> {
    push_name(out, &clean(last_bytes(attribute, 1)?, counts));
    any_value(out, last_bytes(attribute, 2)?, depth, counts)
}

/// The text of a protobuf `AnyValue`, if it holds text.
fn text_of(value: &[u8]) -> Option<&[u8]> {
    let mut fields = fields(value);
    match (fields.next()?.ok()?, fields.next()) {
        ((1, Value::Bytes(text)), None) => Some(text),
        _ => None,
    }
}

/// Appends a protobuf `AnyValue` as JSON.
fn any_value(out: &mut String, value: &[u8], depth: usize, counts: &mut Sanitized) -> Result<(), String> {
    check_depth(depth)?;
    let start = out.len();
    for field in fields(value) {
        let field = field?;
        if matches!(field.0, 1..=7) {
            out.truncate(start); // of oneof fields the last one wins
        }
        match field {
            (1, Value::Bytes(text)) => push_json_string(out, &clean(text, counts)),
            (2, Value::Varint(value)) => out.push_str(if value == 0 { "false" } else { "true" }),
            (3, Value::Varint(value)) => _ = write!(out, "{}", value.cast_signed()),
            (4, Value::Fixed64(bits)) => push_double(out, f64::from_bits(bits)),
            (5, Value::Bytes(array)) => {
                out.push('[');
                each_bytes(array, 1, |element| {
                    if !out.ends_with('[') {
                        out.push(',');
                    }
                    any_value(out, element, depth + 1, counts)
                })?;
                out.push(']');
            }
            (6, Value::Bytes(list)) => {
                out.push('{');
                each_bytes(list, 1, |attribute| key_value(out, attribute, depth + 1, counts))?;
                out.push('}');
            }
            (7, Value::Bytes(bytes)) => push_json_string(out, &STANDARD.encode(bytes)),
            _ => {}
        }
    }
    if out.len() == start {
        out.push_str("null");
    }
    Ok(())
}

fn check_depth(depth: usize) -> Result<(), String> {
    let too_deep = || format!("a value is nested deeper than {DEPTH_MAX}");
    (depth < DEPTH_MAX).then_some(()).ok_or_else(too_deep)
}

/// Appends a double as JSON; values that JSON cannot represent become text, as in protobuf's JSON mapping.
fn push_double(out: &mut String, value: f64) {
    match serde_json::Number::from_f64(value) {
        Some(number) => _ = write!(out, "{number}"),
        None if value.is_nan() => out.push_str("\"NaN\""),
        None => out.push_str(if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }),
    }
}

/// Passes each element of the array that `object` has under either name to `each`.
fn each_element<'a>(
    object: &'a str,
    names: [&str; 2],
    each: impl FnMut(&'a str) -> Result<(), String>,
) -> Result<(), String> {
    match pick(object, [names])? {
        [""] => Ok(()),
        [array] => elements(array, each),
    }
}

/// Key and value of a `KeyValue`, as raw JSON.
fn key_and_value(attribute: &str) -> Result<[&str; 2], String> {
    pick(attribute, [["key"; 2], ["value"; 2]])
}

/// Appends a `KeyValue` of OTLP's JSON as a member.
fn key_value_json(out: &mut String, attribute: &str, depth: usize) -> Result<(), String> {
    let [key, value] = key_and_value(attribute)?;
    if !out.is_empty() && !out.ends_with('{') {
        out.push(',');
    }
    out.push_str(if key.starts_with('"') { key } else { "\"\"" });
    out.push(':');
    any_value_json(out, value, depth)
}

const STRING: [&str; 2] = ["stringValue", "string_value"];

/// Appends an `AnyValue` of OTLP's JSON as plain JSON.
fn any_value_json(out: &mut String, value: &str, depth: usize) -> Result<(), String> {
    check_depth(depth)?;
    let [text, boolean, bytes, double, integer, array, list] = pick(
        value,
        [
            STRING,
            ["boolValue", "bool_value"],
            ["bytesValue", "bytes_value"],
            ["doubleValue", "double_value"],
            ["intValue", "int_value"],
            ["arrayValue", "array_value"],
            ["kvlistValue", "kvlist_value"],
        ],
    )?;
    let scalar = [text, boolean, bytes, double].into_iter().find(|value| !value.is_empty());
    if let Some(scalar) = scalar {
        if scalar.starts_with(['{', '[']) {
            return Err(bad_member("a single value", scalar));
        }
        if out_of_range(scalar).is_some() {
            push_json_string(out, scalar); // rather than reject the whole body
        } else {
            out.push_str(scalar);
        }
    } else if !integer.is_empty() {
        let number: i64 = integer.trim_matches('"').parse().map_err(|_| bad_member("intValue", integer))?;
        let _ = write!(out, "{number}");
    } else if !array.is_empty() {
        out.push('[');
        each_element(array, ["values"; 2], |element| {
            if !out.ends_with('[') {
                out.push(',');
            }
            any_value_json(out, element, depth + 1)
        })?;
        out.push(']');
    } else if !list.is_empty() {
        out.push('{');
        each_element(list, ["values"; 2], |attribute| key_value_json(out, attribute, depth + 1))?;
        out.push('}');
    } else {
        out.push_str("null");
    }
    Ok(())
}

fn body_json(body: &str, message: &mut String, counts: &mut Sanitized) -> Result<(), String> {
    let [text] = pick(body, [STRING])?;
    if string(text, message, counts).is_none() && is_present(body) {
        message.clear();
        any_value_json(message, body, 0)?;
        sanitize_escapes(message, counts);
    }
    Ok(())
}
