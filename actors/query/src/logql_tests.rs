//! Queries that Grafana sends, their meaning, and the errors for unsupported ones.

use logweir_record::record::{Record, Severity};
use proptest::prelude::*;

use super::*;

const RECORD: Record<'_> = Record {
    ts_us: 0,
    severity: Severity::ERROR,
    service: "cart",
    host: "pod-7",
    message: "GET /api/carts/12 Connection reset by peer",
    attributes: r#"{"status":502,"path":"/api/carts/12","k8s.pod.name":"cart-0","user_id":"u-1","empty":""}"#,
};

fn matches(query: &str) -> bool {
    match parse(query).unwrap_or_else(|error| panic!("{query}: {error}")) {
        Expression::Log(filter) | Expression::Metric(Metric { filter, .. }) => filter.matches(&RECORD),
        Expression::Constant(_) => panic!("{query} is not a query for records"),
    }
}

#[test]
fn queries_that_match() {
    for query in [
        "{}",
        r#"{service_name="cart"}"#,
        r#"{ service_name = "cart" , }"#,
        r#"{service="cart", level="error"}"#,
        r#"{service_name=~"cart|shop"}"#,
        r#"{service_name=~"ca.t"}"#,
        r#"{service_name=~".+"}"#,
        r#"{service_name!~"shop.*"}"#,
        r#"{service_name!="shop"}"#,
        r#"{detected_level=~"err.*|warn"}"#,
        r#"{severity!="info"}"#,
        r#"{k8s_pod_name="cart-0"}"#,
        r#"{k8s.pod.name="cart-0"}"#,
        r#"{user_id="u-1"}"#,
        r#"{nothing=""}"#,
        r#"{nothing!="x"}"#,
        r#"{nothing=~"|x"}"#,
        r#"{nothing=~".*"}"#,
        r#"{host="pod-7"} |= "Connection reset""#,
        r#"{} != "timeout" |~ "res[e]t|timeout" !~ `\d{5}`"#,
        r#"{} |= "nothing" or "reset""#,
        r#"{} |= """#,
        r#"{} | json | status >= 500"#,
        r#"{} | json | logfmt --strict | status = 502 and path =~ "/api/.*", user_id != "u-2""#,
        r#"{} | status == 502 or status < 100"#,
        r#"{} | (status < 100 or status != 500) and path = "/api/carts/12""#,
        r#"{} | json | __error__="" | drop __error__, __error_details__"#,
        "{} # everything\n |= \"reset\" # and so on",
        r#"sum by (level, detected_level) (count_over_time({service_name="cart"} |= "reset" | drop __error__[1m]))"#,
    ] {
        assert!(matches(query), "{query}");
    }
}

#[test]
fn queries_that_do_not_match() {
    for query in [
        r#"{service_name="car"}"#,
        r#"{service_name=~"car"}"#,
        r#"{service_name=~"cart.+"}"#,
        r#"{service_name!~".+"}"#,
        r#"{service_name!="cart"}"#,
        r#"{level="warn"}"#,
        r#"{level="nonsense"}"#,
        r#"{level=~"warn|info"}"#,
        r#"{nothing=~".+"}"#,
        r#"{nothing!=""}"#,
        r#"{nothing="x"}"#,
        r#"{} |= "connection""#,
        r#"{} != "nothing" or "reset""#,
        r#"{} !~ "reset|timeout""#,
        r#"{} | status >= 503"#,
        r#"{} | status != 502"#,
        r#"{} | nothing = 0"#,
        r#"{} | __error__="x""#,
        r#"{} | status = 502 and (user_id = "u-2" or user_id = "u-3")"#,
    ] {
        assert!(!matches(query), "{query}");
    }
}

#[test]
fn metric_queries_are_parsed_with_window_and_group() {
    let metric = |window_ms, per_second, group| Metric { filter: Filter::All, window_ms, per_second, group };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    for (query, expect) in [
        ("count_over_time({}[5m])", metric(300_000, false, Group::Service(names(&["service_name"])))),
        ("rate({} [1h30m])", metric(5_400_000, true, Group::Service(names(&["service_name"])))),
        ("sum(rate({}[500ms]))", metric(500, true, Group::Nothing)),
        ("sum by () (rate({}[1s]))", metric(1000, true, Group::Nothing)),
        ("sum by (level) (count_over_time({}[1m0s]))", metric(60_000, false, Group::Level(names(&["level"])))),
        (
            "sum(count_over_time({}[1m])) by (level, detected_level)",
            metric(60_000, false, Group::Level(names(&["level", "detected_level"]))),
        ),
        ("sum by(service)(rate({}[1m]))", metric(60_000, true, Group::Service(names(&["service"])))),
    ] {
        assert_eq!(parse(query), Ok(Expression::Metric(expect)), "{query}");
    }
    assert_eq!(parse("vector(1)+vector(1)"), Ok(Expression::Constant(2.0)));
    assert_eq!(parse(" vector( 1 ) + vector( 0.5 ) "), Ok(Expression::Constant(1.5)));
}

#[test]
fn invalid_and_unsupported_queries_are_rejected_with_a_column() {
    for (query, column, part) in [
        ("", 1, "expected a selector"),
        ("{service=\"x\"", 13, "`,` or `}`"),
        ("{service=\"x\", ", 1, "unclosed {"),
        ("{service}", 9, "= != =~ !~"),
        ("{service=x}", 10, "quoted string"),
        ("{service=\"x}", 10, "unclosed quote"),
        ("{service=~\"(\"}", 11, "regular expression"),
        ("{} |= x", 7, "quoted string"),
        ("{} |> \"<_> x\"", 4, "unsupported LogQL: pattern filters"),
        ("{} |= ip(\"10.0.0.1\")", 7, "unsupported LogQL: `ip(…)`"),
        ("{} | line_format \"x\"", 6, "unsupported LogQL: `line_format`"),
        ("{} | json a=\"b\"", 11, "`json` with parameters"),
        ("{} | took > 5s", 13, "duration or size"),
        ("{} | level > 5", 6, "expected level ="),
        ("{} | (a = 1", 6, "unclosed ("),
        ("topk(5, rate({}[1m]))", 1, "unsupported LogQL: `topk`"),
        ("sum by (path) (rate({}[1m]))", 5, "sum by labels other than level"),
        ("sum by (level, service_name) (rate({}[1m]))", 5, "sum by labels other than level"),
        ("sum without (level) (rate({}[1m]))", 5, "`without`"),
        ("rate({}[1m] offset 5m)", 13, "`offset`"),
        ("rate({}[1x])", 9, "such as 5m"),
        ("rate({}[0s])", 9, "such as 5m"),
        ("rate({})", 8, "expected `[`"),
        ("vector(1)+1", 11, "arithmetic"),
        ("{} nonsense", 4, "unexpected"),
    ] {
        let error = parse(query).expect_err(query);
        assert!(error.detail.contains(part) && error.column == column, "{query}: {error}, not {part} at {column}");
    }
}

#[test]
fn an_attribute_is_found_by_its_label_name() {
    for attribute in ["status", "k8s.pod.name", "http.status_code", "user_id", "a.b.c"] {
        let Label::Fields(fields) = Label::named(&label_name(attribute)) else { panic!("{attribute}") };
        assert!(fields.contains(&Field::Attribute(attribute.to_owned())), "{attribute}: {fields:?}");
    }
    assert_eq!(label_name("http.url/päth"), "http_url_p_th");
    assert_eq!(label_name("1st"), "_1st");
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_rejected(query in r#"[{}()\[\]|=~!<>"`,a-z0-9 .+-]{0,60}"#) {
        if let Err(error) = parse(&query) {
            prop_assert!((1..=query.chars().count() + 1).contains(&error.column), "{error}");
        }
    }

    #[test]
    fn a_label_name_resolves_to_the_attribute_with_dots(name in "[a-z]{1,4}([._][a-z]{1,3}){0,3}") {
        let Label::Fields(fields) = Label::named(&label_name(&name)) else { return Err(TestCaseError::fail("no field")) };
        let found = fields.contains(&Field::Attribute(name.clone())) || matches!(&*name, "host" | "service" | "level");
        prop_assert!(found, "{name}: {fields:?}");
    }
}
