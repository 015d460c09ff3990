//! What is typed, what it means, and what is said where it means nothing.

use logweir_engine::record::{Record, Severity};
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
fn mistakes_are_named_with_their_column() {
    for (query, column, part) in [
        ("a (b", 3, "never closed"),
        ("a b)", 4, "closes nothing"),
        ("über \"x", 6, "quote is never closed"),
        ("service:", 9, "value is missing"),
        ("service: ", 10, "value is missing"),
        ("status>many", 8, "compares numbers"),
        ("severity:loud", 10, "is no severity"),
        ("severity:~\"x\"", 11, "a word or a number"),
        ("a OR", 5, "missing"),
        ("a OR OR b", 6, "OR is an operator"),
        ("~\"a(\"", 2, "unclosed group"),
        ("~abc", 2, "stands in quotes"),
        ("tim*out", 5, "regular expressions"),
        ("service:()", 9, "nothing between"),
        ("service:(a", 9, "never closed"),
        ("\"\"", 1, "nothing between"),
        ("a = ", 5, "value is missing"),
        ("a\0", 2, "NUL"),
        ("= b", 1, "not understood"),
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
fn one_of_becomes_one_test() {
    let values = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(parse("service:(a, b)").unwrap(), Filter::Field { field: Field::Service, test: Test::OneOf(values) });
    assert!(parse("service:a severity>=warn -(level:fatal OR service:b*)").unwrap().is_counted());
    assert!(!parse("service:a host:b").unwrap().is_counted());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_at_a_column_of_it(query in "\\PC{0,40}|[a-z:=<>!~*()\"' ,\\-ANDORT\\\\]{0,40}") {
        if let Err(error) = parse(&query) {
            prop_assert!((1..=query.chars().count() + 1).contains(&error.column), "{error}");
            prop_assert!(!error.detail.is_empty());
        }
    }

    #[test]
    fn a_value_in_quotes_is_found_again(value in "\\PC{0,20}") {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        let filter = parse(&format!("\"a b\":\"{quoted}\"")).unwrap();
        prop_assert_eq!(filter, Filter::equals(Field::Attribute("a b".into()), value));
    }
}
