//! Server-sent events: their text. Pure.

use std::fmt::Write as _;

use logweir_engine::record::Record;
use uuid::Uuid;

use crate::follow::Position;
use crate::store::time_text;

/// Appends a record, with the token to go on after it. `id` is missing until the database has told the lane's number.
pub fn record(out: &mut String, writer: Uuid, position: &Position, id: Option<i64>, record: &Record<'_>) {
    out.push_str("event: record\nid: ");
    position.write_token(writer, out);
    out.push_str("\ndata: ");
    json(out, id, record);
    out.push_str("\n\n");
}

/// Appends that so many records went past unseen, `total` since the stream began.
pub fn dropped(out: &mut String, dropped: u64, total: u64) {
    put(out, format_args!("event: dropped\ndata: {{\"dropped\":{dropped},\"total\":{total}}}\n\n"));
}

/// Appends that the stream cannot go on where the token says. `missing` where it is known how much is left out.
pub fn gap(out: &mut String, missing: Option<u64>, reason: &str) {
    let missing = missing.map_or("null".to_owned(), |missing| missing.to_string());
    put(out, format_args!("event: gap\ndata: {{\"missing\":{missing},\"reason\":\"{reason}\"}}\n\n"));
}

/// Appends where the stream stands: an id without an event, which a browser keeps and tells nobody.
pub fn place(out: &mut String, writer: Uuid, position: &Position) {
    out.push_str("id: ");
    position.write_token(writer, out);
    out.push_str("\n\n");
}

/// Appends what keeps the connection alive.
pub fn keep_alive(out: &mut String) {
    out.push_str(":\n\n");
}

/// Appends how long to wait before a reconnection, which browsers do by themselves.
pub fn retry(out: &mut String, millis: u64) {
    put(out, format_args!("retry: {millis}\n\n"));
}

/// Appends the record as the query API gives it.
fn json(out: &mut String, id: Option<i64>, record: &Record<'_>) {
    match id {
        Some(id) => put(out, format_args!(r#"{{"id":"{id}","#)),
        None => out.push_str(r#"{"id":null,"#),
    }
    let (ts, severity) = (time_text(record.ts_us), record.severity);
    let (number, name) = (severity.number(), severity.name());
    put(out, format_args!(r#""ts":"{ts}","severity":{number},"severity_text":"{name}""#));
    for (key, text) in [("service", record.service), ("host", record.host), ("message", record.message)] {
        let text = serde_json::to_string(text).expect("text becomes JSON without an error");
        put(out, format_args!(r#","{key}":{text}"#));
    }
    out.push_str(r#","attributes":"#);
    match record.attributes {
        "" => out.push_str("{}"),
        // A line break ends an event's data; in JSON it can only stand between two tokens.
        text if text.contains(['\n', '\r']) => out.push_str(&text.replace(['\n', '\r'], " ")),
        text => out.push_str(text),
    }
    out.push('}');
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes all");
}

#[cfg(test)]
mod tests {
    use logweir_engine::record::Severity;

    use super::*;

    #[test]
    fn a_record_is_one_event_on_three_lines_whatever_is_in_it() {
        let mut out = String::new();
        let all = Record {
            ts_us: 1_700_000_000_000_500,
            severity: Severity::ERROR,
            service: "api",
            host: "",
            message: "two\nlines \"quoted\"\r",
            attributes: "{\"a\":[1,\n2]}",
        };
        record(&mut out, Uuid::nil(), &Position::default(), Some(1 << 44), &all);
        assert_eq!(
            out,
            concat!(
                "event: record\nid: 0000000000000000.0\n",
                r#"data: {"id":"17592186044416","ts":"2023-11-14T22:13:20.000500Z","severity":17,"severity_text":"ERROR","#,
                r#""service":"api","host":"","message":"two\nlines \"quoted\"\r","attributes":{"a":[1, 2]}}"#,
                "\n\n"
            )
        );
    }

    #[test]
    fn what_is_missing_is_told_as_json() {
        let mut out = String::new();
        dropped(&mut out, 3, 10);
        gap(&mut out, None, "other_journal");
        gap(&mut out, Some(7), "not_kept");
        assert_eq!(
            out,
            "event: dropped\ndata: {\"dropped\":3,\"total\":10}\n\n\
             event: gap\ndata: {\"missing\":null,\"reason\":\"other_journal\"}\n\n\
             event: gap\ndata: {\"missing\":7,\"reason\":\"not_kept\"}\n\n"
        );
    }
}
