use crate::sink::SERVICE_UNKNOWN;
use crate::*;
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use logweir_record::record::{Record, Severity};
use logweir_record::timestamp::MAX_US;
use proptest::prelude::*;

const NOW_US: i64 = 1_700_000_000_000_000;
/// 2015-05-17 10:05:03 UTC.
const THAT_DAY_US: i64 = 1_431_857_103_000_000;
const LINE_BYTES_MAX: usize = 256 << 10;

fn parsed_as(format: Format, body: &[u8]) -> Parsed {
    let parsed = parse(body, format, &Defaults::default(), NOW_US, LINE_BYTES_MAX).unwrap();
    assert_eq!(parsed.chunk.validate(), Ok(()));
    assert_eq!(parsed.chunk.len(), parsed.report.accepted as usize);
    for record in parsed.chunk.iter().filter(|record| !record.attributes.is_empty()) {
        let attributes: serde_json::Value = serde_json::from_str(record.attributes).unwrap();
        assert!(attributes.is_object(), "{attributes}");
    }
    parsed
}

fn parsed(body: &str) -> Parsed {
    parsed_as(Format::Auto, body.as_bytes())
}

/// A record with defaults only.
fn blank() -> Record<'static> {
    Record {
        ts_us: NOW_US,
        severity: Severity::UNSPECIFIED,
        service: SERVICE_UNKNOWN,
        host: "",
        message: "",
        attributes: "",
    }
}

/// The line becomes exactly this record, without an error.
fn check(line: &str, expect: Record<'_>) {
    let parsed = parsed(line);
    assert_eq!(parsed.chunk.iter().collect::<Vec<_>>(), [expect], "{line}");
    assert_eq!((parsed.report.rejected, parsed.report.parse_errors), (0, 0), "{line}");
}

fn severity_of(line: &str) -> u8 {
    parsed(line).chunk.get(0).unwrap().severity.number()
}

#[test]
fn a_typical_json_line_becomes_a_record_with_its_other_members_as_attributes() {
    check(
        r#"{"ts":"2015-05-17T10:05:03.250Z","level":"warn","service":"checkout","host":"node-7","message":"card declined","order":8812,"tags":["eu", "vip"]}"#,
        Record {
            ts_us: THAT_DAY_US + 250_000,
            severity: Severity::WARN,
            service: "checkout",
            host: "node-7",
            message: "card declined",
            attributes: r#"{"order":8812,"tags":["eu", "vip"]}"#,
        },
    );
}

#[test]
fn json_loggers_of_many_languages_are_parsed() {
    let at = Record { ts_us: THAT_DAY_US, severity: Severity::INFO, message: "ready", ..blank() };
    // pino
    check(
        r#"{"level":30,"time":1431857103000,"pid":71,"hostname":"web-1","msg":"ready"}"#,
        Record { host: "web-1", attributes: r#"{"pid":71}"#, ..at },
    );
    // zap
    check(
        r#"{"level":"info","ts":1431857103.0,"logger":"boot","caller":"main.go:12","msg":"ready"}"#,
        Record { attributes: r#"{"logger":"boot","caller":"main.go:12"}"#, ..at },
    );
    // Rust, tracing
    check(
        r#"{"timestamp":"2015-05-17T10:05:03Z","level":"INFO","fields":{"message":"ready","port":80},"target":"app"}"#,
        Record { attributes: r#"{"target":"app","port":80}"#, ..at },
    );
    // Elastic common schema, nested and dotted
    check(
        r#"{"@timestamp":"2015-05-17T10:05:03Z","log":{"level":"info"},"service":{"name":"cart"},"host":{"name":"n1"},"message":"ready"}"#,
        Record { service: "cart", host: "n1", ..at },
    );
    check(
        r#"{"@timestamp":"2015-05-17T10:05:03Z","log.level":"info","service.name":"cart","host.name":"n1","message":"ready"}"#,
        Record { service: "cart", host: "n1", ..at },
    );
    // Docker's json-file driver
    check(
        r#"{"log":"ready\n","stream":"stdout","time":"2015-05-17T10:05:03Z"}"#,
        Record { severity: Severity::UNSPECIFIED, message: "ready", attributes: r#"{"stream":"stdout"}"#, ..at },
    );
    // OpenTelemetry
    check(
        r#"{"timestamp":"1431857103000000000","severity_number":9,"service_name":"cart","body":"ready"}"#,
        Record { service: "cart", ..at },
    );
}

#[test]
fn the_first_usable_name_wins_and_the_others_stay_attributes() {
    check(
        r#"{"event":"e","msg":"m","time":"nonsense","date":"2015-05-17","t":3}"#,
        Record {
            ts_us: THAT_DAY_US - (10 * 3600 + 5 * 60 + 3) * 1_000_000,
            message: "m",
            attributes: r#"{"event":"e","time":"nonsense","t":3}"#,
            ..blank()
        },
    );
    check(
        r#"{"message":null,"msg":"m","service":"","app":"a","host":4}"#,
        Record { message: "m", service: "a", attributes: r#"{"message":null,"service":"","host":4}"#, ..blank() },
    );
    check(
        r#"{"msg":"m","host":{"name":"n1","ip":"10.0.0.1"}}"#,
        Record { message: "m", host: "n1", attributes: r#"{"host.name":"n1","host.ip":"10.0.0.1"}"#, ..blank() },
    );
}

#[test]
fn other_systems_use_other_names() {
    let at = Record { ts_us: THAT_DAY_US, severity: Severity::WARN, message: "ready", ..blank() };
    // MongoDB
    check(
        r#"{"t":{"$date":"2015-05-17T10:05:03.000+00:00"},"s":"W","c":"NETWORK","msg":"ready","attr":{"port":1}}"#,
        Record { attributes: r#"{"c":"NETWORK","attr.port":1}"#, ..at },
    );
    check(
        r#"{"t":{"$date":"2015-05-17T10:05:03Z"},"s":"D2","msg":"ready"}"#,
        Record { severity: Severity::DEBUG, ..at },
    );
    // Serilog's compact format
    check(
        r#"{"@t":"2015-05-17T10:05:03Z","@l":"Warning","@mt":"ready","N":1}"#,
        Record { attributes: r#"{"N":1}"#, ..at },
    );
    // journalctl -o json
    check(
        r#"{"__REALTIME_TIMESTAMP":"1431857103000000","PRIORITY":"4","_HOSTNAME":"n1","SYSLOG_IDENTIFIER":"sshd","MESSAGE":"ready"}"#,
        Record { service: "sshd", host: "n1", ..at },
    );
    // Google Cloud
    check(r#"{"timestamp":"2015-05-17T10:05:03Z","severity":"WARNING","textPayload":"ready"}"#, at);
}

#[test]
fn a_number_out_of_double_range_leaves_the_line_unparsed() {
    for number in [
        "33333332e3313331",
        "-1e999",
        "1e-99999",
        &"9".repeat(400),
        &format!("0.{}", "1".repeat(1000)),
        "[0,{\"b\":1E+400}]",
    ] {
        let line = format!(r#"{{"msg":"m\"1e999","a":{number}}}"#);
        let parsed = parsed(&line);
        assert_eq!(parsed.report.parse_errors, 1, "{line}");
        assert!(parsed.report.errors[0].error.contains("out of range"), "{:?}", parsed.report.errors);
        assert_eq!(parsed.chunk.get(0).unwrap().message, line);
    }
    let line = r#"{"msg":"1e999","a":1e-300,"b":1e300,"c":"1e999","d":-0.5E+2,"e":0e999}"#;
    check(
        line,
        Record {
            message: "1e999",
            attributes: r#"{"a":1e-300,"b":1e300,"c":"1e999","d":-0.5E+2,"e":0e999}"#,
            ..blank()
        },
    );
}

#[test]
fn nested_objects_become_dotted_attributes() {
    let at = |attributes| Record { message: "m", attributes, ..blank() };
    check(r#"{"msg":"m","a":{"b":{"c":1,"d":[{"e":2}]},"f":{}}}"#, at(r#"{"a.f":{},"a.b.c":1,"a.b.d":[{"e":2}]}"#));
    // As everywhere, the last of two duplicate names wins.
    check(r#"{"msg":"m","a":{"b":2},"a.b":1}"#, at(r#"{"a.b":2}"#));
    // An unused level is kept as an attribute.
    check(
        r#"{"msg":"m","level":"warn","log":{"level":"info"}}"#,
        Record { severity: Severity::WARN, ..at(r#"{"log.level":"info"}"#) },
    );
    // Deeply nested objects, and those with long names, stay objects.
    check(r#"{"msg":"m","a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":1}}}}}}}}"#, at(r#"{"a.a.a.a.a.a.a":{"a":1}}"#));
    let long = "n".repeat(object::nested::FLAT_NAME_BYTES_MAX + 1);
    let attributes = format!(r#"{{"{long}":{{"a":1}}}}"#);
    check(&format!(r#"{{"msg":"m","{long}":{{"a":1}}}}"#), at(&attributes));
}

#[test]
fn a_level_is_a_word_or_a_number_and_kept_as_an_attribute_if_unknown() {
    for (level, expect) in [
        (r#""error""#, 17),
        (r#""WARNING""#, 13),
        (r#""notice""#, 10),
        ("10", 1),
        ("20", 5),
        ("35", 9),
        ("40", 13),
        ("50", 17),
        ("60", 21),
        (r#""30""#, 9),
    ] {
        assert_eq!(severity_of(&format!(r#"{{"msg":"m","level":{level}}}"#)), expect, "{level}");
    }
    assert_eq!(severity_of(r#"{"msg":"m","severity_number":19}"#), 19);
    for level in [r#""chatty""#, "3", "999", "-1", "1.5", "true", "null", r#"["error"]"#] {
        let attributes = format!(r#"{{"level":{level}}}"#);
        check(
            &format!(r#"{{"msg":"m","level":{level}}}"#),
            Record { message: "m", attributes: &attributes, ..blank() },
        );
    }
}

#[test]
fn without_a_message_the_line_is_the_message_and_a_non_text_message_is_its_json() {
    let line = r#"{"user":7,"ok":true}"#;
    check(line, Record { message: line, attributes: line, ..blank() });
    check(r#"{"msg":{"a": 1}}"#, Record { message: r#"{"a": 1}"#, ..blank() });
    check(r#"{"msg":42}"#, Record { message: "42", ..blank() });
    check(r#"{"msg":""}"#, Record { message: "", ..blank() });
    check("{}", Record { message: "{}", ..blank() });
}

#[test]
fn escapes_are_unescaped_in_fields_and_kept_in_attributes() {
    check(
        r#"{"m\u0073g":"a \"b\"\n\tc \u00e9 \ud83d\ude00","service":"caf\u00e9","k\"ey":"v\\\u0041"}"#,
        Record { message: "a \"b\"\n\tc é 😀", service: "café", attributes: r#"{"k\"ey":"v\\\u0041"}"#, ..blank() },
    );
}

#[test]
fn attributes_and_fields_are_merged_flat() {
    check(
        r#"{"msg":"m","attributes":{"a":1,"level":"high","b":{"c":2}},"d":3}"#,
        Record { message: "m", attributes: r#"{"d":3,"a":1,"level":"high","b.c":2}"#, ..blank() },
    );
    check(r#"{"msg":"m","attributes":{}}"#, Record { message: "m", ..blank() });
    check(
        r#"{"msg":"m","attributes":"none"}"#,
        Record { message: "m", attributes: r#"{"attributes":"none"}"#, ..blank() },
    );
}

#[test]
fn the_last_of_duplicate_names_wins() {
    let line = r#"{"msg":"first","a":1,"msg":"last","b":2,"a":3,"attributes":{"b":4,"c":5}}"#;
    check(line, Record { message: "last", attributes: r#"{"a":3,"b":4,"c":5}"#, ..blank() });
    assert_eq!(parsed(line).sanitized.duplicate_key, 3);

    let mut many: String = (0..1000).map(|index| format!(r#""k{}":{index},"#, index % 700)).collect();
    many = format!(r#"{{{many}"msg":"m"}}"#);
    let parsed = parsed(&many);
    assert_eq!(parsed.sanitized.duplicate_key, 300);
    let attributes = parsed.chunk.get(0).unwrap().attributes.to_owned();
    assert!(attributes.starts_with(r#"{"k300":300,"#), "{attributes}");
    assert_eq!(attributes.matches(r#""k5":"#).count(), 1);
}

#[test]
fn invalid_json_is_kept_whole_and_reported() {
    let line = r#"{"level":"error","msg":"cut o"#;
    let body = format!("fine\n\n{line}\n{{\"msg\":\"fine\"}} tail\n");
    let parsed = parsed(&body);
    let messages: Vec<_> = parsed.chunk.iter().map(|record| record.message).collect();
    assert_eq!(messages, ["fine", line, r#"{"msg":"fine"} tail"#]);
    assert_eq!(parsed.report.parse_errors, 2);
    assert_eq!(parsed.parse_errors, [("ndjson", 2)]);
    let errors: Vec<_> = parsed.report.errors.iter().map(|error| (error.line, &*error.error)).collect();
    assert_eq!(
        errors,
        [
            (3, "kept as plain text: EOF while parsing a string in column 29"),
            (4, "kept as plain text: trailing characters in column 16"),
        ]
    );
}

#[test]
fn a_non_object_line_is_an_error_only_if_objects_were_specified() {
    assert_eq!(parsed_as(Format::Ndjson, b"hello").report.parse_errors, 1);
    assert_eq!(parsed_as(Format::Ndjson, b"[1]").report.parse_errors, 1);
    assert_eq!(parsed_as(Format::Plain, b"{\"a\":").report.parse_errors, 0);
    assert_eq!(parsed_as(Format::AccessLog, b"hello").parse_errors, [("access_log", 1)]);
}

#[test]
fn a_line_above_the_limit_is_discarded_counted_and_reported() {
    let body = format!("short\n{}\nshort", "x".repeat(101));
    let parsed = parse(body.as_bytes(), Format::Auto, &Defaults::default(), NOW_US, 100).unwrap();
    assert_eq!((parsed.report.accepted, parsed.report.rejected, parsed.too_long), (2, 1, 1));
    assert_eq!(parsed.report.errors[0].line, 2);
    assert!(parsed.report.errors[0].error.contains("101 bytes exceed http.line_bytes_max (100 bytes)"));
}

#[test]
fn at_most_ten_errors_are_reported_and_all_are_counted() {
    let parsed = parsed(&"{x\n".repeat(25));
    assert_eq!((parsed.report.parse_errors, parsed.report.errors.len()), (25, 10));
}

#[test]
fn deep_json_is_kept_as_text_and_overflows_no_stack() {
    let deep = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert_eq!(parsed(&deep(126)).report.parse_errors, 0);
    let line = deep(100_000);
    let parsed = parsed(&line);
    assert_eq!(parsed.report.parse_errors, 1);
    assert_eq!(parsed.chunk.get(0).unwrap().message, line);
    assert!(parsed.report.errors[0].error.contains("nested deeper than 127"));
    // Brackets in strings do not nest.
    let brackets = format!(r#"{{"a":["{}\""]}}"#, "[".repeat(1000));
    assert_eq!(parsed_as(Format::Auto, brackets.as_bytes()).report.parse_errors, 0);
    let array = format!("[{}]", "{\"a\":".repeat(200_000));
    assert_eq!(rejection(Format::Auto, array.as_bytes()).kind, ParseErrorKind::Malformed);
}

#[test]
fn what_postgres_rejects_is_replaced_and_counted() {
    let parsed =
        parsed_as(Format::Auto, b"caf\xE9 \0\n{\"msg\":\"a\\u0000b\",\"k\":\"\\ud800 \\u0000\",\"x\\u0000\":1}");
    let records: Vec<_> = parsed.chunk.iter().collect();
    assert_eq!(records[0].message, "caf\u{fffd} \u{fffd}");
    assert_eq!(records[1].message, "a\u{fffd}b");
    assert_eq!(records[1].attributes, "{\"k\":\"\\ufffd \\ufffd\",\"x\u{fffd}\":1}");
    assert_eq!(parsed.sanitized, Sanitized { invalid_utf8: 1, nul: 3, lone_surrogate: 1, ..Sanitized::default() });
}

#[test]
fn a_time_out_of_range_is_clamped_and_its_original_kept() {
    let line = r#"{"msg":"m","ts":99999999999999999999999}"#;
    check(line, Record { ts_us: MAX_US, message: "m", attributes: r#"{"ts":99999999999999999999999}"#, ..blank() });
    assert_eq!(parsed(line).sanitized.timestamp, 1);
}

#[test]
fn a_service_name_too_long_for_an_index_stays_an_attribute() {
    let name = "s".repeat(NAME_BYTES_MAX + 1);
    let attributes = format!(r#"{{"service":"{name}"}}"#);
    check(&format!(r#"{{"msg":"m","service":"{name}"}}"#), Record { message: "m", attributes: &attributes, ..blank() });
}

#[test]
fn the_senders_defaults_apply_to_records_without_their_own_values() {
    let defaults = Defaults { service: Some("billing".into()), host: Some("n3".into()), ..Defaults::default() };
    let body = b"plain\n{\"msg\":\"m\",\"service\":\"own\"}";
    let parsed = parse(body, Format::Auto, &defaults, NOW_US, LINE_BYTES_MAX).unwrap();
    let names: Vec<_> = parsed.chunk.iter().map(|record| (record.service, record.host)).collect();
    assert_eq!(names, [("billing", "n3"), ("own", "n3")]);
}

#[test]
fn an_array_yields_one_record_per_element() {
    let body = r#" [ {"msg":"one","n":1},
        {"msg":"two"}, "three\t!", 4, null ]
    "#;
    let parsed = parsed(body);
    let messages: Vec<_> = parsed.chunk.iter().map(|record| record.message).collect();
    assert_eq!(messages, ["one", "two", "three\t!", "4", "null"]);
    assert_eq!(parsed.report.parse_errors, 2);
    assert_eq!(parsed.report.errors[0].line, 4);
    assert_eq!(parsed_as(Format::Auto, b"[]").report, ParseReport::default());
    assert_eq!(parsed_as(Format::Json, b"").report, ParseReport::default());
}

#[test]
fn an_object_spread_over_lines_is_one_record() {
    let body = "{\n  \"msg\": \"m\",\n  \"nested\": {\n    \"a\": 1\n  }\n}\n";
    let record_attributes = "{\"nested.a\":1}";
    check(body, Record { message: "m", attributes: record_attributes, ..blank() });
    let two = parsed_as(Format::Json, format!("{body}{body}").as_bytes());
    assert_eq!(two.report.accepted, 2);
    // Text that merely begins with a brace is parsed as lines.
    assert_eq!(parsed("{\n server on\n}\n").report.accepted, 3);
}

fn rejection(format: Format, body: &[u8]) -> ParseError {
    parse(body, format, &Defaults::default(), NOW_US, LINE_BYTES_MAX).unwrap_err()
}

#[test]
fn a_malformed_document_is_rejected_whole_with_line_and_column() {
    for (format, body, place) in [
        (Format::Auto, "[{\"msg\":\"one\"},\n {\"msg\":\"tw", "line 2 column 11"),
        (Format::Json, "[{\"msg\":\"one\"}] tail", "line 1 column 17"),
        (Format::Json, "{\"msg\":\n\"one\"", "line 2 column 5"),
    ] {
        let rejection = rejection(format, body.as_bytes());
        assert_eq!((rejection.kind, rejection.reason), (ParseErrorKind::Malformed, "malformed_json"));
        assert!(rejection.detail.contains(place), "{}", rejection.detail);
    }
}

#[test]
fn lines_in_brackets_are_not_an_array() {
    for line in ["[1, 2, 3]", "["] {
        check(line, Record { message: line, ..blank() });
    }
    check("[INFO] ready", Record { severity: Severity::INFO, message: "ready", ..blank() });
    check("[2015-05-17 10:05:03] ready", Record { ts_us: THAT_DAY_US, message: "ready", ..blank() });
}

#[test]
fn a_chunk_too_large_for_a_frame_is_rejected_before_it_takes_more_memory() {
    // Two bytes a line, forty bytes a record.
    let body = "a\n".repeat(PAYLOAD_BYTES_MAX / 40 + 1);
    let rejection = rejection(Format::Auto, body.as_bytes());
    assert_eq!((rejection.kind, rejection.reason), (ParseErrorKind::TooLarge, "chunk_too_large"));
    let body = format!("[{}{{}}]", "{\"message\":1},".repeat(PAYLOAD_BYTES_MAX / 40 + 1));
    assert_eq!(self::rejection(Format::Auto, body.as_bytes()).reason, "chunk_too_large");
}

#[test]
fn lines_may_end_with_a_carriage_return_and_empty_ones_are_skipped() {
    let parsed = parsed("\u{feff}one\r\n\r\n  \n two \nthree");
    let messages: Vec<_> = parsed.chunk.iter().map(|record| record.message).collect();
    assert_eq!(messages, ["one", " two ", "three"]);
}

#[test]
fn combined_access_log_lines_are_recognized() {
    let line = r#"203.0.113.9 - kim [17/May/2015:12:05:03 +0200] "GET /cart?id=7 HTTP/1.1" 404 153 "https://shop.example/" "Mozilla/5.0 (X11; \"odd\")""#;
    check(
        line,
        Record {
            ts_us: THAT_DAY_US,
            severity: Severity::WARN,
            message: line,
            attributes: r#"{"client":"203.0.113.9","user":"kim","method":"GET","path":"/cart?id=7","protocol":"HTTP/1.1","referer":"https://shop.example/","user_agent":"Mozilla/5.0 (X11; \\\"odd\\\")","status":404,"bytes":153}"#,
            ..blank()
        },
    );
}

#[test]
fn common_access_log_lines_are_recognized() {
    let line = r#"2001:db8::1 - - [17/May/2015:10:05:03 +0000] "POST /pay HTTP/2.0" 502 -"#;
    check(
        line,
        Record {
            ts_us: THAT_DAY_US,
            severity: Severity::ERROR,
            message: line,
            attributes: r#"{"client":"2001:db8::1","method":"POST","path":"/pay","protocol":"HTTP/2.0","status":502}"#,
            ..blank()
        },
    );
    let tls = r#"10.0.0.1 - - [17/May/2015:10:05:03 +0000] "\x16\x03\x01" 400 150 "-" "-""#;
    let attributes = r#"{"client":"10.0.0.1","request":"\\x16\\x03\\x01","status":400,"bytes":150}"#;
    check(tls, Record { ts_us: THAT_DAY_US, severity: Severity::WARN, message: tls, attributes, ..blank() });
}

#[test]
fn a_malformed_access_log_line_is_kept_and_the_error_names_the_field() {
    let good = r#"10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5"#;
    for (from, to, part) in [
        ("17/May", "37/May", "the time"),
        (" 200", " 2000", "the status"),
        ("5", "5x", "bytes"),
        ("1.1\"", "1.1", "request"),
    ] {
        let (head, tail) = good.rsplit_once(from).unwrap();
        let line = format!("{head}{to}{tail}");
        let parsed = parsed(&line);
        assert_eq!(parsed.chunk.get(0).unwrap().message, line);
        assert!(parsed.report.errors[0].error.contains(part), "{line}: {:?}", parsed.report.errors);
    }
}

/// Counts lines independently of the parser.
fn non_empty_lines(body: &[u8]) -> usize {
    body.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count()
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<Vec<u8>>(),
        r#"\{("(ts|msg|level|a|attributes|\\u0000)":("x"|1|\{"b":2\}|null|"(\\u0000|\\ud800|\\udc00|\\\\){1,3}"),?){0,4}\}?"#.prop_map(String::into_bytes),
        r#"1\.2\.3\.4 - - \[17/May/2015:10:05:03 \+0000\] "GET [a-z/\\"]{0,9}" [0-9]{3} [0-9-]{1,3}"#.prop_map(String::into_bytes),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.join(&b'\n'))
}

fn holds_nul(value: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Object, String};
    match value {
        String(text) => text.contains('\0'),
        Array(values) => values.iter().any(holds_nul),
        Object(members) => members.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

proptest! {
    #[test]
    fn any_lines_yield_as_many_records(body in any_body()) {
        for format in [Format::Plain, Format::Ndjson, Format::AccessLog] {
            let parsed = parse(&body, format, &Defaults::default(), NOW_US, 64).unwrap();
            let out = parsed.report.accepted + parsed.report.rejected;
            // A byte order mark alone is not a line.
            let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&body);
            prop_assert_eq!(out as usize, non_empty_lines(body));
        }
    }

    #[test]
    fn any_body_in_any_format_yields_valid_records_that_postgres_accepts(body in any_body()) {
        for format in [Format::Auto, Format::Json, Format::Ndjson, Format::Plain, Format::AccessLog] {
            let Ok(parsed) = parse(&body, format, &Defaults::default(), NOW_US, LINE_BYTES_MAX) else { continue };
            prop_assert_eq!(parsed.chunk.validate(), Ok(()));
            for record in parsed.chunk.iter() {
                for text in [record.service, record.host, record.message, record.attributes] {
                    prop_assert!(!text.contains('\0'));
                }
                if !record.attributes.is_empty() {
                    // serde_json rejects lone surrogates, as PostgreSQL does.
                    let value: serde_json::Value = serde_json::from_str(record.attributes).unwrap();
                    prop_assert!(!holds_nul(&value), "{}", record.attributes);
                }
            }
        }
    }
}
