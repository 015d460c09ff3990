//! One record as JSON text, appended to a buffer that the caller keeps.

use std::io::Write;

use bytes::BufMut;
use jiff::Timestamp;
use logweir_engine::journal::LaneId;
use logweir_engine::record::Record;
use uuid::Uuid;

/// Which record it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub run: Uuid,
    pub lane: LaneId,
    pub seq: u64,
    /// Its place in the frame, from 0.
    pub row: u32,
    /// Its place in the lane, from 1.
    pub ordinal: u64,
}

/// Appends the JSON text of one record. The attributes are JSON text already (the parser has checked them) and go
/// in as they are.
pub(super) fn record(out: &mut impl BufMut, place: &Place, record: &Record<'_>) {
    let mut out = out.writer();
    put(&mut out, format_args!(r#"{{"ts":"{:.6}","severity":{}"#, time(record.ts_us), record.severity.number()));
    for (key, text) in [("service", record.service), ("host", record.host), ("message", record.message)] {
        put(&mut out, format_args!(r#","{key}":"#));
        serde_json::to_writer(&mut out, text).expect("text in memory becomes JSON without an error");
    }
    let attributes = if record.attributes.is_empty() { "null" } else { record.attributes };
    let Place { run, lane, seq, row, ordinal } = place;
    put(
        &mut out,
        format_args!(
            r#","attributes":{attributes},"run":"{run}","lane":{lane},"seq":{seq},"row":{row},"ordinal":{ordinal}}}"#
        ),
    );
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
        let place = Place { run: Uuid::nil(), lane: 3, seq: 17, row: 4, ordinal: 9 };
        super::record(&mut out, &place, &record);
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
                r#""message":"said \"no\"\n\u0001✓","attributes":{"a":[1,{"b":null}]},"#,
                r#""run":"00000000-0000-0000-0000-000000000000","lane":3,"seq":17,"row":4,"ordinal":9}"#
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
