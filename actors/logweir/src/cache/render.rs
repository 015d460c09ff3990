//! Renders one record as JSON text into a buffer of the caller.

use std::io::Write;

use bytes::BufMut;
use logweir_engine::journal::LaneId;
use logweir_record::record::Record;
use uuid::Uuid;

use logweir_record::json::Members;

/// Identifies a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    pub run: Uuid,
    pub lane: LaneId,
    pub seq: u64,
    /// Index in the frame, from 0.
    pub row: u32,
    /// Number in the lane, from 1.
    pub ordinal: u64,
}

/// Appends the JSON text of one record. The attributes are JSON text already (the parser has checked them) and go
/// in unchanged, except that line breaks become spaces.
pub(super) fn record(out: &mut impl BufMut, location: &Location, record: &Record<'_>) {
    let Location { run, lane, seq, row, ordinal } = location;
    let members = Members(*record);
    put(
        &mut out.writer(),
        format_args!(r#"{{{members},"run":"{run}","lane":{lane},"seq":{seq},"row":{row},"ordinal":{ordinal}}}"#),
    );
}

fn put(out: &mut impl Write, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a buffer in memory grows");
}

#[cfg(test)]
mod tests {
    use logweir_record::record::Severity;

    use super::*;

    fn rendered(record: Record<'_>) -> String {
        let mut out = Vec::new();
        let location = Location { run: Uuid::nil(), lane: 3, seq: 17, row: 4, ordinal: 9 };
        super::record(&mut out, &location, &record);
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
    fn a_record_is_one_json_object_with_its_attributes_unchanged() {
        assert_eq!(
            rendered(RECORD),
            concat!(
                r#"{"ts":"2023-11-14T22:13:20.000500Z","severity":17,"severity_text":"ERROR","service":"api","host":"","#,
                r#""message":"said \"no\"\n\u0001✓","attributes":{"a":[1,{"b":null}]},"#,
                r#""run":"00000000-0000-0000-0000-000000000000","lane":3,"seq":17,"row":4,"ordinal":9}"#
            )
        );
        assert!(rendered(Record { attributes: "", ..RECORD }).contains(r#""attributes":{},"#));
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
