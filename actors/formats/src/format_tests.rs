//! Lines of each text format, and lines that must not be mistaken for one.

use crate::sink::SERVICE_UNKNOWN;
use crate::*;
use logweir_record::record::{Record, Severity};
use proptest::prelude::*;

/// 2023-11-14 22:13:20 UTC.
const NOW_US: i64 = 1_700_000_000_000_000;
/// 2015-05-17 10:05:03 UTC.
const THAT_DAY_US: i64 = 1_431_857_103_000_000;
const NOTICE: u8 = 10;

fn severity(number: u8) -> Severity {
    Severity::from_number(number).unwrap()
}

fn blank() -> Record<'static> {
    let severity = Severity::UNSPECIFIED;
    Record { ts_us: THAT_DAY_US, severity, service: SERVICE_UNKNOWN, host: "", message: "", attributes: "" }
}

fn explained(line: &str, rules: &Rules) -> Explained {
    let explained = explain(rules, &mut Memory::default(), line.as_bytes(), Format::Auto, NOW_US);
    assert_eq!(explained.chunk.validate(), Ok(()));
    explained
}

/// The line is detected as `format` and becomes this record; specifying that format has the same result.
fn check(format: &str, line: &str, expect: Record<'_>) {
    let explained = explained(line, Rules::built_in());
    assert_eq!((&*explained.format, explained.parse_error), (format, None), "{line}");
    assert_eq!(explained.chunk.iter().collect::<Vec<_>>(), [expect], "{line}");
    let fixed =
        explain(Rules::built_in(), &mut Memory::default(), line.as_bytes(), format_named(format).unwrap(), NOW_US);
    assert_eq!((fixed.chunk, fixed.parse_error), (explained.chunk, None), "{line}");
}

#[test]
fn java_loggers_are_parsed() {
    let at = Record { severity: Severity::WARN, message: "disk at 91 %", ..blank() };
    let logger = r#"{"logger":"com.example.Disk","thread":"main"}"#;
    for line in [
        "2015-05-17 10:05:03,000 WARN [main] com.example.Disk: disk at 91 %",
        "2015-05-17 10:05:03,000 [main] WARN  com.example.Disk - disk at 91 % ",
        "2015-05-17 10:05:03,000 - WARN  [main] com.example.Disk: disk at 91 %",
        "2015/05/17 10:05:03 [WARN] [main] com.example.Disk: disk at 91 %",
        "[2015-05-17T10:05:03,000][WARN ][com.example.Disk] [main] disk at 91 %",
        "17-May-2015 10:05:03.000 WARN [main] com.example.Disk: disk at 91 %",
    ] {
        check("application", line, Record { attributes: logger, ..at });
    }
    check(
        "application",
        "2015-05-17 10:05:03.000  WARN 7 --- [           main] com.example.Disk          : disk at 91 %",
        Record { attributes: r#"{"logger":"com.example.Disk","thread":"main","pid":7}"#, ..at },
    );
    check(
        "application",
        "15/05/17 10:05:03 WARN storage.BlockManager: disk at 91 %",
        Record { attributes: r#"{"logger":"storage.BlockManager"}"#, ..at },
    );
    check(
        "application",
        "150517 100503 148 WARN dfs.DataNode$DataXceiver: disk at 91 %",
        Record { attributes: r#"{"logger":"dfs.DataNode$DataXceiver","pid":148}"#, ..at },
    );
    check(
        "application",
        "2015-05-17 10:05:03,000 - WARN  [Peer[id=1]/0:0:0:0:2181:Election@774] - disk at 91 %",
        Record { attributes: r#"{"thread":"Peer[id=1]/0:0:0:0:2181:Election@774"}"#, ..at },
    );
    check(
        "application",
        "[2015-05-17 10:05:03,000] WARN [Broker 3] disk at 91 %",
        Record { message: "[Broker 3] disk at 91 %", ..at },
    );
}

#[test]
fn loggers_of_python_go_and_others_are_parsed() {
    let at = Record { severity: Severity::ERROR, message: "no route", ..blank() };
    let named = r#"{"logger":"app.net"}"#;
    for line in [
        "2015-05-17 10:05:03,000 - app.net - ERROR - no route",
        "2015-05-17 10:05:03.000 | ERROR    | app.net - no route",
        "2015-05-17 10:05:03,000 ERROR app.net: no route",
        "2015-05-17T10:05:03.000Z\terror\tapp.net\tno route",
        "2015-05-17 10:05:03.0000|ERROR|app.net|no route",
        "2015-05-17 10:05:03, Error                 app.net    no route",
    ] {
        check("application", line, Record { attributes: named, ..at });
    }
    check("application", "ERROR:app.net:no route", Record { ts_us: NOW_US, attributes: named, ..at });
    check("application", "ERROR: no route", Record { ts_us: NOW_US, ..at });
    check("application", "[error] no route", Record { ts_us: NOW_US, ..at });
    check(
        "application",
        "node.log.1 2015-05-17 10:05:03.000 77 ERROR app.net [req-1 - -] no route",
        Record { attributes: r#"{"logger":"app.net","context":"req-1 - -","pid":77,"file":"node.log.1"}"#, ..at },
    );
    check(
        "application",
        "2015-05-17T10:05:03.000Z\tERROR\tnet/dial.go:12\tno route\t{\"tries\": 3}",
        Record { attributes: r#"{"caller":"net/dial.go:12","fields":{"tries": 3}}"#, ..at },
    );
    check(
        "application",
        "2015-05-17T10:05:03Z ERR dial.go:12 > no route tries=3 to=\"a b\"",
        Record {
            message: r#"no route tries=3 to="a b""#,
            attributes: r#"{"caller":"dial.go:12","tries":3,"to":"a b"}"#,
            ..at
        },
    );
    check("application", "ERRO[0012] no route", Record { ts_us: NOW_US, ..at });
}

#[test]
fn a_time_alone_is_parsed_and_prose_after_it_is_the_message() {
    for message in ["Error opening file", "no level here", "HTTP server started", "info desk: closed", "x - y"] {
        let line = format!("2015/05/17 10:05:03 {message}");
        check("application", &line, Record { message, ..blank() });
    }
    check(
        "application",
        "2015/05/17 10:05:03 main.go:12: hello",
        Record { message: "hello", attributes: r#"{"caller":"main.go:12"}"#, ..blank() },
    );
    // A word before a colon is a logger only if it looks like one.
    check(
        "application",
        "2015-05-17 10:05:03 ERROR Failed: no space",
        Record { severity: Severity::ERROR, message: "Failed: no space", ..blank() },
    );
}

#[test]
fn syslog_lines_are_parsed_with_and_without_a_priority() {
    let at = Record { service: "sshd", host: "web1", message: "Accepted key for kim", ..blank() };
    let pid = r#"{"pid":77}"#;
    check("syslog", "May 17 2015 10:05:03 web1 sshd[77]: Accepted key for kim", Record { attributes: pid, ..at });
    let iso = "2015-05-17T10:05:03.000000+00:00 web1 sshd[77]: Accepted key for kim ";
    check("syslog", iso, Record { attributes: pid, ..at });
    let facility = r#"{"facility":"auth","pid":77}"#;
    let with_priority = Record { severity: Severity::INFO, attributes: facility, ..at };
    check("syslog", "<38>May 17 2015 10:05:03 web1 sshd[77]: Accepted key for kim", with_priority);
    check("syslog", "<38>1 2015-05-17T12:05:03.0+02:00 web1 sshd 77 - - Accepted key for kim", with_priority);
    check(
        "syslog",
        "<165>1 2015-05-17T10:05:03Z web1 sshd - ID47 [a@1 x=\"1\\\"2\\]\" y=\"\"][b@2] \u{feff}Accepted key for kim",
        Record {
            severity: severity(NOTICE),
            attributes: r#"{"facility":"local4","msgid":"ID47","a@1":{"x":"1\"2]","y":""},"b@2":{}}"#,
            ..at
        },
    );
    let auth = r#"{"facility":"auth"}"#;
    let no_time = Record { ts_us: NOW_US, severity: Severity::INFO, attributes: auth, host: "", ..at };
    check("syslog", "<38>sshd: Accepted key for kim", no_time);
    check("syslog", "<38>hello world", Record { service: SERVICE_UNKNOWN, message: "hello world", ..no_time });
    let named = |service| Record { service, message: "x", ..at };
    check("syslog", "May 17 2015 10:05:03 web1 kernel: x", named("kernel"));
    let pam = Record { attributes: pid, ..named("su(pam_unix)") };
    check("syslog", "May 17 2015 10:05:03 web1 su(pam_unix)[77]: x", pam);
    check("syslog", "May 17 2015 10:05:03 web1 Two Words[77]: x", Record { attributes: pid, ..named("Two Words") });
    check(
        "syslog",
        "May 17 2015 10:05:03 web1 launchd[77] (com.example[8]): x",
        Record { attributes: r#"{"pid":77,"address":"com.example[8]"}"#, ..named("launchd") },
    );
    // The year is inferred from the arrival.
    let year = explained("Nov 14 22:13:19 web1 sshd[77]: x", Rules::built_in());
    assert_eq!(year.chunk.get(0).unwrap().ts_us, NOW_US - 1_000_000);
    // Not syslog: other lines that begin with a month, an invalid priority.
    for (line, format) in [
        ("May 17 2015 10:05:03 ERROR disk: full", "application"),
        ("2015-05-17T10:05:03.0000000+00:00 Something happened: x", "application"),
        ("<999>x", "plain"),
    ] {
        assert_eq!(explained(line, Rules::built_in()).format, format, "{line}");
    }
}

#[test]
fn error_logs_of_web_servers_are_parsed() {
    let at = Record { severity: Severity::ERROR, ..blank() };
    let message = r#"open() "/x" failed (2: No such file), client: 10.0.0.9, server: _, request: "GET /x HTTP/1.1", host: "a.example""#;
    check(
        "nginx_error",
        &format!("2015/05/17 10:05:03 [error] 7#0: *12 {message}"),
        Record {
            message,
            attributes: r#"{"pid":7,"tid":0,"connection":12,"client":"10.0.0.9","server":"_","request":"GET /x HTTP/1.1","host":"a.example"}"#,
            ..at
        },
    );
    let message = "[client 10.0.0.9] File does not exist: /x";
    check(
        "apache_error",
        &format!("[Sun May 17 10:05:03 2015] [error] {message}"),
        Record { message, attributes: r#"{"client":"10.0.0.9"}"#, ..at },
    );
    check(
        "apache_error",
        &format!("[Sun May 17 10:05:03.000000 2015] [core:error] [pid 7:tid 9] {message}"),
        Record { message, attributes: r#"{"module":"core","pid":7,"tid":9,"client":"10.0.0.9"}"#, ..at },
    );
    let notice = Record { severity: severity(NOTICE), message: "ready", ..at };
    check("apache_error", "[Sun May 17 10:05:03 2015] [notice] ready", notice);
}

#[test]
fn logs_of_databases_are_parsed() {
    let at = Record { severity: severity(NOTICE), message: "Ready to accept connections", ..blank() };
    check(
        "redis",
        "7:M 17 May 2015 10:05:03.000 * Ready to accept connections",
        Record { attributes: r#"{"pid":7,"role":"M"}"#, ..at },
    );
    let old = "[7] 17 May 2015 10:05:03.000 # Ready to accept connections";
    check("redis", old, Record { severity: Severity::WARN, attributes: r#"{"pid":7}"#, ..at });
    let at = Record { severity: Severity::ERROR, message: "relation \"x\" does not exist", ..blank() };
    check(
        "postgres",
        "2015-05-17 10:05:03.000 UTC [7] kim@shop ERROR:  relation \"x\" does not exist",
        Record { attributes: r#"{"pid":7,"user":"kim","database":"shop"}"#, ..at },
    );
    check(
        "postgres",
        "2015-05-17 12:05:03.000 CEST [7-1] STATEMENT:  select 1",
        Record { severity: Severity::INFO, message: "select 1", attributes: r#"{"kind":"STATEMENT","pid":7}"#, ..at },
    );
    check(
        "application",
        "2015-05-17T10:05:03.000000Z 8 [Warning] [MY-010068] [Server] CA certificate is self signed.",
        Record {
            severity: Severity::WARN,
            message: "CA certificate is self signed.",
            attributes: r#"{"thread":"MY-010068","context":"Server","pid":8}"#,
            ..at
        },
    );
}

#[test]
fn glog_logcat_and_supercomputers_are_parsed() {
    let at = Record { severity: Severity::ERROR, message: "sync failed", ..blank() };
    check(
        "glog",
        "E20150517 10:05:03.000000    77 sync.cc:123] sync failed",
        Record { attributes: r#"{"tid":77,"caller":"sync.cc:123"}"#, ..at },
    );
    check(
        "glog",
        r#"E20150517 10:05:03.000000    77 sync.go:123] "sync failed" pod="a/b" tries=3"#,
        Record { attributes: r#"{"tid":77,"caller":"sync.go:123","pod":"a/b","tries":3}"#, ..at },
    );
    let short = explained("E1114 22:13:19.000000 77 sync.go:123] sync failed", Rules::built_in());
    assert_eq!(short.chunk.get(0).unwrap().ts_us, NOW_US - 1_000_000);
    check(
        "logcat",
        "11-14 22:13:20.000  1702  2395 E SyncManager: sync failed",
        Record { ts_us: NOW_US, attributes: r#"{"pid":1702,"tid":2395,"logger":"SyncManager"}"#, ..at },
    );
    check(
        "supercomputer",
        "KERNDTLB 1431857103 2015.05.17 R02-M1 2015-05-17-03.05.03.675872 R02-M1 RAS KERNEL ERROR sync failed",
        Record {
            ts_us: THAT_DAY_US + 675_872,
            host: "R02-M1",
            attributes: r#"{"alert":"KERNDTLB","type":"RAS","component":"KERNEL","local_time":"2015-05-17-03.05.03.675872"}"#,
            ..at
        },
    );
    let at = Record { severity: Severity::UNSPECIFIED, ..at };
    check(
        "supercomputer",
        "- 1431857103 2015.05.17 dn228 May 17 03:05:03 dn228/dn228 crond[77]: sync failed",
        Record { service: "crond", host: "dn228", attributes: r#"{"location":"dn228/dn228","pid":77}"#, ..at },
    );
    check(
        "supercomputer",
        "134681 node-246 unix.hw down 1431857103 1 sync failed",
        Record { host: "node-246", attributes: r#"{"id":134681,"component":"unix.hw","state":"down","flag":1}"#, ..at },
    );
}

#[test]
fn logfmt_and_pairs_after_a_sentence_are_parsed() {
    check(
        "logfmt",
        r#"ts=2015-05-17T10:05:03Z level=warn service=cart host=n1 msg="slow \"query\"" ms=12 path="/a b" empty="#,
        Record {
            severity: Severity::WARN,
            service: "cart",
            host: "n1",
            message: "slow \"query\"",
            attributes: r#"{"ms":12,"path":"/a b","empty":""}"#,
            ..blank()
        },
    );
    let line = "at=info status=200 time=never";
    let attributes = r#"{"status":200,"time":"never"}"#;
    check("logfmt", line, Record { ts_us: NOW_US, severity: Severity::INFO, message: line, attributes, ..blank() });
    let line = "order placed user=7 total=9.99";
    let attributes = r#"{"user":7,"total":9.99}"#;
    check("key_value", line, Record { ts_us: NOW_US, message: line, attributes, ..blank() });
}

#[test]
fn envelopes_of_container_runtimes_supply_what_the_inner_line_lacks() {
    let at = Record { severity: Severity::ERROR, message: "no route", ..blank() };
    let stream = r#"{"stream":"stderr","logger":"app.net"}"#;
    check("cri", "2015-05-17T10:05:03.0Z stderr F ERROR:app.net:no route", Record { attributes: stream, ..at });
    check(
        "docker",
        r#"{"log":"ERROR:app.net:no route\n","stream":"stderr","time":"2015-05-17T10:05:03.0Z"}"#,
        Record { attributes: stream, ..at },
    );
    // The time of the inner line takes precedence.
    let own = r#"{"log":"{\"ts\":1431857103,\"level\":\"error\",\"msg\":\"no route\"}\n","stream":"stdout","time":"2020-01-01T00:00:00Z"}"#;
    check("docker", own, Record { attributes: r#"{"stream":"stdout"}"#, ..at });
    let half = r#"{"stream":"stdout","logtag":"P"}"#;
    let cut = "2015-05-17T10:05:03.0Z stdout P half a l";
    check("cri", cut, Record { message: "half a l", attributes: half, ..blank() });
    let cut = r#"{"log":"half a l","stream":"stdout","time":"2015-05-17T10:05:03.0Z"}"#;
    check("docker", cut, Record { message: "half a l", attributes: half, ..blank() });
    check("cri", "2015-05-17T10:05:03.0Z stdout F ", Record { attributes: r#"{"stream":"stdout"}"#, ..blank() });
    // An envelope in an envelope is a message, so nesting is bounded.
    let nested = explained("2015-05-17T10:05:03.0Z stdout F 2015-05-17T10:05:03.0Z stdout F x", Rules::built_in());
    assert_eq!(nested.chunk.get(0).unwrap().message, "stdout F x");
}

#[test]
fn a_name_is_truncated_to_what_an_index_can_hold() {
    // Each invalid UTF-8 byte becomes three bytes.
    let node = [&b"R02"[..], &[0xff; 90]].concat();
    let line = [&b"- 1117838570 2005.06.03 "[..], &node, b" 2005-06-03-15.42.50.363779 n RAS KERNEL INFO x"].concat();
    let mut memory = Memory::default();
    let parsed = parse_by(Rules::built_in(), &mut memory, &line, Format::Lines, &Defaults::default(), NOW_US, 1024);
    let parsed = parsed.unwrap();
    let host = parsed.chunk.get(0).unwrap().host.to_owned();
    assert_eq!((host.len(), parsed.sanitized.name_too_long), (NAME_BYTES_MAX, 1), "{host}");
}

#[test]
fn stack_traces_and_prose_stay_text() {
    for line in [
        "\tat org.apache.Foo.bar(Foo.java:12)",
        "    ... 12 more",
        "Caused by: java.io.IOException: a=1 b=2 c",
        "java.lang.IllegalStateException: boom",
        "Traceback (most recent call last):",
        "  File \"x.py\", line 1, in <module>",
        "Hello world",
        "x=1 is the answer",
        "10 green bottles",
        "- a list item",
        "ENGINE failure",
        "May the force be with you",
        "[]",
        "é",
    ] {
        check("plain", line, Record { ts_us: NOW_US, message: line, ..blank() });
    }
}

#[test]
fn the_remembered_format_never_changes_the_result() {
    let lines = [
        "2015/05/17 10:05:03 [error] 7#0: *12 x",
        "2015/05/17 10:05:03 main.go:12: hello",
        "<38>sshd: x",
        r#"{"log":"x\n","stream":"stdout","time":"2015-05-17T10:05:03Z"}"#,
        r#"{"msg":"x"}"#,
        "level=info msg=x",
        "May 17 2015 10:05:03 web1 sshd[77]: x",
        "2015-05-17T10:05:03.0Z stdout F x",
        "2015-05-17T10:05:03.0Z INFO x",
        "order placed user=7 total=9.99",
    ];
    for first in lines {
        for second in lines {
            let mut memory = Memory::default();
            let _ = explain(Rules::built_in(), &mut memory, first.as_bytes(), Format::Auto, NOW_US);
            let after = explain(Rules::built_in(), &mut memory, second.as_bytes(), Format::Auto, NOW_US);
            assert_eq!(after, explained(second, Rules::built_in()), "{second} after {first}");
        }
    }
}

#[test]
fn times_without_a_zone_use_the_configured_one() {
    let rules = Rules { time_zone: jiff::tz::TimeZone::get("Europe/Berlin").unwrap(), ..Rules::default() };
    for line in [
        "2015-05-17 12:05:03,000 INFO x",
        "May 17 2015 12:05:03 web1 sshd[77]: x",
        r#"{"ts":"2015-05-17 12:05:03","msg":"x"}"#,
        r#"time="2015-05-17 12:05:03" msg=x"#,
        "2015-05-17T10:05:03Z INFO x",
        "2015-05-17T05:05:03-05:00 INFO x",
        "1431857103 INFO x",
    ] {
        assert_eq!(explained(line, &rules).chunk.get(0).unwrap().ts_us, THAT_DAY_US, "{line}");
    }
}

#[test]
fn a_configured_format_is_tried_first() {
    let pattern = r"^(?<ts>\d{14}) \[(?<level>\w+)\] (?<service>\w+)@(?<host>\w+) n=(?<n>\d+) (?<message>.*)$";
    let shop = r"^shop (?<time>\S+ \S+) (?<severity>\w)(?<item>\w+)$";
    let custom = vec![CustomFormat::new("till", pattern).unwrap(), CustomFormat::new("shop", shop).unwrap()];
    let rules = Rules { custom, ..Rules::default() };
    // Fourteen digits are an epoch time in milliseconds, in the year 2609: a pattern must expect dashes in the date.
    let shown = explained("14318571030000 [warn] cart@n1 n=7 card declined", &rules);
    let expect = Record {
        ts_us: 14_318_571_030_000_000,
        severity: Severity::WARN,
        service: "cart",
        host: "n1",
        message: "card declined",
        attributes: r#"{"n":7}"#,
    };
    assert_eq!((shown.chunk.get(0), &*shown.format), (Some(expect), "till"));
    let line = "shop 2015-05-17 10:05:03 Ebread";
    let expect = Record { message: line, attributes: r#"{"level":"E","item":"bread"}"#, ..blank() };
    assert_eq!(explained(line, &rules).chunk.get(0), Some(expect));
    assert_eq!(explained(r#"{"msg":"x"}"#, &rules).format, "ndjson");

    let fixed = rules.format_named("till").unwrap();
    let other = explain(&rules, &mut Memory::default(), b"something else", fixed, NOW_US);
    assert_eq!(other.chunk.get(0).unwrap().message, "something else");
    assert_eq!(other.parse_error.as_deref(), Some("kept as plain text: does not match formats.till.pattern"));
    assert!(rules.format_names().ends_with("till, shop"));

    for (pattern, what) in [
        ("(?<ts>", "invalid regular expression"),
        (".*", "no named group"),
        ("(?<ts>a)(?<time>b)", "two groups for the time"),
        (r"(?<message>\w{10000})", "invalid regular expression"),
    ] {
        let error = CustomFormat::new("x", pattern).unwrap_err().to_string();
        assert!(error.contains(what), "{pattern}: {error}");
    }
}

#[test]
fn of_two_matching_custom_formats_the_first_wins_whatever_came_before() {
    let format = |name, pattern| CustomFormat::new(name, pattern).unwrap();
    let custom = vec![format("a", "^job (?<job>.*)$"), format("b", "^(job|task) (?<message>.*)$")];
    let (rules, mut memory) = (Rules { custom, ..Rules::default() }, Memory::default());
    for (line, name) in [("task x", "b"), ("job x", "a"), ("task x", "b"), ("job x", "a")] {
        assert_eq!(explain(&rules, &mut memory, line.as_bytes(), Format::Auto, NOW_US).format, name, "{line}");
    }
}

fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let parts = vec![
        "2015-05-17 10:05:03,000 ",
        "2015-05-17T10:05:03Z ",
        "May 17 10:05:03 ",
        "[Sun May 17 10:05:03 2015] ",
        "<34>",
        "<34>1 ",
        "[",
        "]",
        "INFO ",
        "[error] ",
        "- ",
        " - ",
        ": ",
        "a.B: ",
        "web1 ",
        "sshd[77]: ",
        "\t",
        "|",
        "k=v ",
        "k=\"",
        "\"",
        "\\",
        "E1114 22:13:19.000000 77 f.go:1] ",
        "7:M 17 May 2015 10:05:03 * ",
        "stdout F ",
        "{\"log\":\"",
        "\\n\",\"stream\":\"stdout\",\"time\":\"2015-05-17T10:05:03Z\"}",
        "1431857103 ",
        "- 1431857103 2015.05.17 n ",
        "é",
        "1 2 3 4 ",
        "03-17 16:13:38.811 ",
        "LOG:  ",
        "7#0: ",
        "[pid 1] ",
        "[client ",
        "\\u0000",
        "{\"a\":\"\\u0000\"}",
    ];
    let piece = prop_oneof![
        1 => any::<Vec<u8>>(),
        1 => "[ -~]{0,20}".prop_map(String::into_bytes),
        6 => prop::sample::select(parts).prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_line_is_one_valid_record_in_every_format(line in any_line()) {
        let line: Vec<u8> = line.into_iter().filter(|&byte| byte != b'\n').collect();
        for name in format_names().split(", ") {
            let format = format_named(name).unwrap();
            let explained = explain(Rules::built_in(), &mut Memory::default(), &line, format, NOW_US);
            prop_assert_eq!(explained.chunk.len(), 1, "{}", name);
            prop_assert_eq!(explained.chunk.validate(), Ok(()));
            let record = explained.chunk.get(0).unwrap();
            prop_assert!(record.service.len() <= NAME_BYTES_MAX && record.host.len() <= NAME_BYTES_MAX);
            for text in [record.service, record.host, record.message, record.attributes] {
                prop_assert!(!text.contains('\0'));
            }
            if !record.attributes.is_empty() {
                // serde_json rejects lone surrogates, as PostgreSQL does.
                let value: serde_json::Value = serde_json::from_str(record.attributes).unwrap();
                prop_assert!(value.is_object(), "{}: {}", name, record.attributes);
                prop_assert!(!record.attributes.contains("\\u0000") || name == "plain" || record.attributes.contains("\\\\u0000"));
            }
        }
    }
}
