//! Rendering of server-sent events. Pure.

use std::fmt::Write as _;

use logweir_record::record::Record;
use uuid::Uuid;

use crate::follow::Position;
use logweir_record::json::Members;

/// Appends a record with the token that resumes after it. `id` is `None` until the database has assigned the lane's
/// number.
pub fn record(out: &mut String, writer: Uuid, position: &Position, id: Option<i64>, record: &Record<'_>) {
    out.push_str("event: record\nid: ");
    position.write_token(writer, out);
    out.push_str("\ndata: ");
    json(out, id, record);
    out.push_str("\n\n");
}

/// Appends the number of records that were not delivered; `total` counts from the start of the stream.
pub fn dropped(out: &mut String, dropped: u64, total: u64) {
    put(out, format_args!("event: dropped\ndata: {{\"dropped\":{dropped},\"total\":{total}}}\n\n"));
}

/// Appends a gap: the stream cannot continue at its token. `missing` is the number of skipped records, where known.
pub fn gap(out: &mut String, missing: Option<u64>, reason: &str) {
    let missing = missing.map_or("null".to_owned(), |missing| missing.to_string());
    put(out, format_args!("event: gap\ndata: {{\"missing\":{missing},\"reason\":\"{reason}\"}}\n\n"));
}

/// Appends the stream's position: an id without an event, which a browser stores without dispatching anything.
pub fn position(out: &mut String, writer: Uuid, position: &Position) {
    out.push_str("id: ");
    position.write_token(writer, out);
    out.push_str("\n\n");
}

/// Appends a comment that keeps the connection open.
pub fn keep_alive(out: &mut String) {
    out.push_str(":\n\n");
}

/// Appends the delay before a browser reconnects.
pub fn retry(out: &mut String, millis: u64) {
    put(out, format_args!("retry: {millis}\n\n"));
}

/// Appends the record as the query API returns it; `id` is null until the database has assigned the lane's number.
fn json(out: &mut String, id: Option<i64>, record: &Record<'_>) {
    match id {
        Some(id) => put(out, format_args!(r#"{{"id":"{id}",{}}}"#, Members(*record))),
        None => put(out, format_args!(r#"{{"id":null,{}}}"#, Members(*record))),
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use logweir_record::record::Severity;

    use super::*;

    #[test]
    fn a_record_is_one_event_on_three_lines_whatever_it_contains() {
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
    fn dropped_records_and_gaps_are_json() {
        let mut out = String::new();
        dropped(&mut out, 3, 10);
        gap(&mut out, None, "other_journal");
        gap(&mut out, Some(7), "not_retained");
        assert_eq!(
            out,
            "event: dropped\ndata: {\"dropped\":3,\"total\":10}\n\n\
             event: gap\ndata: {\"missing\":null,\"reason\":\"other_journal\"}\n\n\
             event: gap\ndata: {\"missing\":7,\"reason\":\"not_retained\"}\n\n"
        );
    }
}
