//! Queries, their meaning, and the errors for invalid ones.

use logweir_record::record::{Record, Severity};
use proptest::prelude::*;

use super::*;

const RECORD: Record<'_> = Record {
    ts_us: 0,
    severity: Severity::ERROR,
    service: "cart",
    host: "pod-7",
    message: "GET /api/carts/12 Connection reset by peer, timed out (straße)",
    attributes: r#"{"status":502,"path":"/api/carts/12","user.id":"u-1","took_ms":12.50,"ok":false,"none":null,
        "nested":{"a":{"b":{"c":"deep"}}},"list":[1],"size":"1e3"}"#,
};

#[test]
fn queries_that_match() {
    for query in [
        "",
        "  ",
        "*",
        "connection",
        "CONNECTION",
        "'Connection'",
        "\"connection RESET\"",
        "conn*",
        "*ction",
        "*nnect*",
        "~\"time[ds] out\"",
        "~`\\(stra.e\\)`",
        "~\"(?i)TIMED\"",
        "service:cart",
        "service=cart",
        "service:ca*",
        "service:*rt",
        "service:*ar*",
        "service:(shop, cart)",
        "service:(shop OR cart)",
        "service:~\"^c\"",
        "service!=shop",
        "service!~\"x\"",
        "severity:error",
        "severity=ERR",
        "level:17",
        "severity>=warn",
        "severity>warn",
        "severity<=error",
        "severity<fatal",
        "severity:(warn error)",
        "severity:*",
        "status:502",
        "status>=500",
        "status > 499",
        "status<503",
        "status:>500",
        "took_ms:12.50",
        "took_ms=12.50",
        "took_ms>12.4",
        "size>999",
        "ok:false",
        "ok:*",
        "-none:*",
        "-none:null",
        "list:*",
        "-list:*1*",
        "nested.a.b.c:deep",
        "user.id:u-1",
        "\"user.id\":u-1",
        "path:\"/api/carts/12\"",
        "path:*/12",
        "host:*",
        "message:reset",
        "message:(nothing, reset)",
        "msg:\"by peer\"",
        "message!=\"GET\"",
        "message=GET*",
        "reset peer",
        "reset AND peer",
        "nothing OR peer",
        "-nothing",
        "!nothing",
        "NOT nothing",
        "NOT (nothing OR also)",
        "(reset OR nothing) status:502",
        "nothing OR reset peer",
        "peer, ",
        "/api/carts/12",
        "-(-reset)",
        "stra*",
        "*ße",
        "-12:30",
        "12",
        "out",
    ] {
        let query = query.trim_end_matches(", ");
        let filter = parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert!(filter.matches(&RECORD), "{query}: {filter:?}");
    }
}

#[test]
fn queries_that_do_not_match() {
    for query in [
        "nothing",
        "'connection'",
        "onnection",
        "connect",
        "\"reset connection\"",
        "time*d",
        "*set*x",
        "service:Cart",
        "service:car",
        "severity:warn",
        "severity>error",
        "severity<error",
        "severity:18",
        "status:50",
        "status>502",
        "host:pod",
        "nothing:*",
        "-reset",
        "nothing AND peer",
        "nothing OR also",
        "stra",
        "none:*",
        "list:1",
        "path>1",
        "service:\"\"",
        "not found",
        "took_ms:12.5",
    ] {
        if let Ok(filter) = parse(query) {
            assert!(!filter.matches(&RECORD), "{query}: {filter:?}");
        } else {
            assert!(query.contains('*'), "{query}");
        }
    }
}

#[test]
fn errors_have_a_column() {
    for (query, column, part) in [
        ("a (b", 3, "unclosed ("),
        ("a b)", 4, "unmatched )"),
        ("über \"x", 6, "unclosed quote"),
        ("service:", 9, "missing value"),
        ("service: ", 10, "missing value"),
        ("status>many", 8, "compares numbers"),
        ("severity:loud", 10, "expected one of trace"),
        ("severity:~\"x\"", 11, "does not support regular expressions"),
        ("a OR", 5, "unexpected end"),
        ("a OR OR b", 6, "OR is an operator"),
        ("~\"a(\"", 2, "unclosed group"),
        ("~abc", 2, "in quotes"),
        ("tim*out", 5, "regular expression"),
        ("service:()", 9, "empty parentheses"),
        ("service:(a", 9, "unclosed ("),
        ("\"\"", 1, "empty quotes"),
        ("a = ", 5, "missing value"),
        ("a\0", 2, "NUL"),
        ("= b", 1, "unexpected"),
    ] {
        let error = parse(query).expect_err(query);
        assert_eq!(error.column, column, "{query}: {error}");
        assert!(error.detail.contains(part), "{query}: {error}");
    }
    let deep = "(".repeat(100);
    assert!(parse(&deep).expect_err("too deep").detail.contains("levels"));
    assert!(parse(&"a ".repeat(300)).expect_err("too many").detail.contains("at most 256"));
}

#[test]
fn values_in_parentheses_become_one_test() {
    let values = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(parse("service:(a, b)").unwrap(), Filter::Field { field: Field::Service, test: Test::OneOf(values) });
    assert!(parse("service:a severity>=warn -(level:fatal OR service:b*)").unwrap().is_counted());
    assert!(!parse("service:a host:b").unwrap().is_counted());
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_rejected_at_a_column_of_it(query in "\\PC{0,40}|[a-z:=<>!~*()\"' ,\\-ANDORT\\\\]{0,40}") {
        if let Err(error) = parse(&query) {
            prop_assert!((1..=query.chars().count() + 1).contains(&error.column), "{error}");
            prop_assert!(!error.detail.is_empty());
        }
    }

    #[test]
    fn a_value_in_quotes_is_preserved(value in "\\PC{0,20}") {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        let filter = parse(&format!("\"a b\":\"{quoted}\"")).unwrap();
        prop_assert_eq!(filter, Filter::equals(Field::Attribute("a b".into()), value));
    }
}
