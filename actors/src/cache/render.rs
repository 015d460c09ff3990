//! One record as JSON text, appended to a buffer that the caller keeps.

use std::io::Write;

use bytes::BufMut;
use jiff::Timestamp;
use logweir_engine::journal::LaneId;
use logweir_engine::record::Record;

/// Appends the JSON text of one record of frame `seq`. The attributes are JSON text already (the parser has checked them) and go
/// in as they are.
pub(super) fn record(out: &mut impl BufMut, lane: LaneId, seq: u64, row: u32, record: &Record<'_>) {
    let mut out = out.writer();
    put(&mut out, format_args!(r#"{{"ts":"{:.6}","severity":{}"#, time(record.ts_us), record.severity.number()));
    for (key, text) in [("service", record.service), ("host", record.host), ("message", record.message)] {
        put(&mut out, format_args!(r#","{key}":"#));
        serde_json::to_writer(&mut out, text).expect("text in memory becomes JSON without an error");
    }
    let attributes = if record.attributes.is_empty() { "null" } else { record.attributes };
    put(&mut out, format_args!(r#","attributes":{attributes},"lane":{lane},"seq":{seq},"row":{row}}}"#));
}

fn put(out: &mut impl Write, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a buffer in memory grows");
}

/// Years beyond what a calendar can print become its first or last moment.
fn time(ts_us: i64) -> Timestamp {
    let beyond = if ts_us < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(ts_us).unwrap_or(beyond)
}

#[cfg(test)]
mod tests {
    use logweir_engine::record::Severity;

    use super::*;

    fn rendered(record: Record<'_>) -> String {
        let mut out = Vec::new();
        super::record(&mut out, 3, 17, 4, &record);
        String::from_utf8(out).unwrap()
    }

    const RECORD: Record<'_> = Record {
        ts_us: 1_700_000_000_000_500,
        severity: Severity::ERROR,
        service: "api",
        host: "",
        message: "said \"no\"\n\u{1}✓",
        attributes: r#"{"a":[1,{"b":null}]}"#,
    };

    #[test]
    fn a_record_is_one_json_object_with_its_attributes_as_they_came() {
        assert_eq!(
            rendered(RECORD),
            concat!(
                r#"{"ts":"2023-11-14T22:13:20.000500Z","severity":17,"service":"api","host":"","#,
                r#""message":"said \"no\"\n\u0001✓","attributes":{"a":[1,{"b":null}]},"lane":3,"seq":17,"row":4}"#
            )
        );
        assert!(rendered(Record { attributes: "", ..RECORD }).contains(r#""attributes":null,"#));
    }

    #[test]
    fn any_time_and_any_text_stay_valid_json() {
        for ts_us in [i64::MIN, -1, 0, i64::MAX] {
            let text = rendered(Record { ts_us, service: "\u{7f}\"\\", ..RECORD });
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["service"], "\u{7f}\"\\");
            assert!(value["ts"].as_str().unwrap().ends_with('Z'), "{text}");
        }
    }
}
