use super::*;
use proptest::prelude::*;
use std::ffi::OsString;

const TOKEN: &str = "0123456789abcdef";

/// Loads `toml` from a file with `environment` and `flags` above it.
fn load_all(
    toml: &str,
    environment: &[(&str, &str)],
    flags: &[(&'static str, &str, &str)],
) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("logweir.toml");
    std::fs::write(&file, toml).unwrap();
    load(&Inputs {
        file: Some(file),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags.iter().map(|(flag, path, value)| (*flag, (*path).into(), (*value).into())).collect(),
    })
}

fn load_toml(toml: &str) -> Result<Loaded, ConfigError> {
    load_all(toml, &[], &[])
}

/// The messages, with the temporary directory cut off.
fn messages(result: Result<Loaded, ConfigError>) -> Vec<String> {
    let error = result.expect_err("it has mistakes");
    error
        .0
        .iter()
        .map(|mistake| {
            let text = mistake.to_string();
            match (text.find("/tmp"), text.find("logweir.toml:")) {
                (Some(start), Some(end)) => format!("{}{}", &text[..start], &text[end..]),
                _ => text,
            }
        })
        .collect()
}

#[track_caller]
fn assert_mistake(result: Result<Loaded, ConfigError>, parts: &[&str]) {
    let messages = messages(result);
    let found = messages.iter().any(|message| parts.iter().all(|part| message.contains(part)));
    assert!(found, "no mistake with {parts:?} in {messages:#?}");
}

#[test]
fn every_default_is_read_and_makes_a_valid_configuration() {
    let loaded = load(&Inputs::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.origins, BTreeMap::new());
    assert_eq!(loaded.config.lanes, 1);
    assert_eq!(load_all("", &[("DATABASE_URL", "postgres://u@h/d")], &[]).unwrap().config.lanes, 3);
    assert_eq!(loaded.config.http.body_bytes_max, 8 << 20);
    assert_eq!(loaded.config.http.request_timeout_ms, 30_000);
    assert_eq!(loaded.config.cache.ttl_s, 86_400);
    assert_eq!(loaded.config.database.url, DatabaseUrl::Sqlite("logweir-data/logweir.db".into()));
    assert_eq!(loaded.config.auth.mode, AuthMode::None);
    assert!(loaded.config.http.workers >= 1);
}

#[test]
fn the_table_has_a_key_for_every_field() {
    // A leaf of the pretty-printed configuration is a line `name: value,`. Alerts are sections, not keys.
    let debug = format!("{:#?}", Config::default());
    let leaves = debug
        .lines()
        .filter(|line| line.contains(": ") && line.ends_with(',') && !line.ends_with(" alerts: [],"))
        .count();
    assert_eq!(leaves, KEYS.len(), "{debug}");
}

#[test]
fn each_layer_goes_above_the_one_before() {
    let toml = "data_dir = '/tmp'\nlanes = 3\n[database]\nurl = 'postgres://file/db'\n[cache]\nurl = 'memory:'\n";
    let url = |environment: &[_], flags: &[_]| load_all(toml, environment, flags).unwrap().config.database.url;
    let postgres = |host: &str| DatabaseUrl::Postgres(format!("postgres://{host}/db"));
    let common = ("DATABASE_URL", "postgres://common/db");
    let own = ("LOGWEIR__DATABASE__URL", "postgres://own/db");
    let flag = ("--database-url", "database.url", "postgres://flag/db");
    assert_eq!(url(&[], &[]), postgres("file"));
    assert_eq!(url(&[common], &[]), postgres("common"));
    assert_eq!(url(&[own, common], &[]), postgres("own"));
    assert_eq!(url(&[common, own], &[flag]), postgres("flag"));
    // An empty common variable says nothing.
    assert_eq!(url(&[("DATABASE_URL", "")], &[]), postgres("file"));
    let loaded = load_all(toml, &[("REDIS_URL", "redis://r:6379")], &[("--set", "lanes", "5")]).unwrap();
    assert_eq!(loaded.config.cache.url, CacheUrl::Redis("redis://r:6379".into()));
    assert_eq!(loaded.config.lanes, 5);
    assert_eq!(loaded.origins["lanes"], Source::Flag("--set"));
    assert_eq!(loaded.origins["cache.url"], Source::Environment("REDIS_URL".into()));
    assert!(matches!(&loaded.origins["data_dir"], Source::File(_, 1)));
}

#[test]
fn each_kind_is_read_from_toml_and_from_text() {
    let toml = format!(
        r#"
        ack = "committed"
        [http]
        listen = "[::1]:8081"
        body_bytes_max = "512k"
        request_timeout_ms = 5_000
        [auth]
        mode = "token"
        ingest_tokens = ["{TOKEN}", "{TOKEN}2"]
        [database]
        url = "sqlite:./x.db"
        retention_days = "30d"
        [sources]
        stdin = true
        [log]
        level = "warn,logweir=debug"
        format = "json"
        "#
    );
    let from_toml = load_toml(&toml).unwrap().config;
    let tokens = format!("{TOKEN}, {TOKEN}2");
    let from_environment = load_all(
        "",
        &[
            ("LOGWEIR__ACK", "committed"),
            ("LOGWEIR__HTTP__LISTEN", "[::1]:8081"),
            ("LOGWEIR__HTTP__BODY_BYTES_MAX", "524288"),
            ("LOGWEIR__HTTP__REQUEST_TIMEOUT_MS", "5s"),
            ("LOGWEIR__AUTH__MODE", "token"),
            ("LOGWEIR__AUTH__INGEST_TOKENS", &tokens),
            ("LOGWEIR__DATABASE__URL", "sqlite:./x.db"),
            ("LOGWEIR__DATABASE__RETENTION_DAYS", "30"),
            ("LOGWEIR__SOURCES__STDIN", "true"),
            ("LOGWEIR__LOG__LEVEL", "warn,logweir=debug"),
            ("LOGWEIR__LOG__FORMAT", "json"),
        ],
        &[],
    );
    assert_eq!(from_toml, from_environment.unwrap().config);
    assert_eq!(from_toml.auth.ingest_tokens.len(), 2);
    assert_eq!(from_toml.database.retention_days, 30);
    assert_eq!(from_toml.http.body_bytes_max, 512 << 10);
    assert!(from_toml.log.json && from_toml.sources.stdin);
}

#[test]
fn each_wrong_value_is_refused_with_what_is_allowed() {
    for (toml, parts) in [
        ("lanes = 0", &["lanes = 0 (logweir.toml:1)", "from 1 to 64"][..]),
        ("lanes = 2.5", &["lanes = a number with a fraction", "whole number"]),
        ("lanes = 99999999999999999999", &["lanes = \"99999999999999999999\"", "from 1 to 64"]),
        ("ack = 'maybe'", &["ack = \"maybe\"", "one of received, journal, committed"]),
        ("data_dir = ''", &["data_dir", "must be a path"]),
        ("[http]\nlisten = ':8080'", &["http.listen = \":8080\" (logweir.toml:2)", "0.0.0.0:8080"]),
        ("[http]\nlisten = 'localhost:1'", &["http.listen", "127.0.0.1:1"]),
        ("[http]\nbody_bytes_max = '8 apples'", &["http.body_bytes_max", "a size such as", "from 1KiB to 16MiB"]),
        ("[batch]\nlinger_ms = true", &["batch.linger_ms = true", "a time such as"]),
        ("[sources]\nstdin = 1", &["sources.stdin = 1", "true or false"]),
        ("[auth]\ningest_tokens = ['short']", &["auth.ingest_tokens (", "token 1 has 5 characters", "16"]),
        ("[auth]\ningest_tokens = ['0123456789 abcdef']", &["visible ASCII"]),
        ("[auth]\ningest_tokens = [1]", &["must be a list of strings"]),
        ("[database]\nurl = 'mysql://x'", &["database.url (", "postgres://USER:PASSWORD@HOST/DATABASE"]),
        ("[database]\nurl = 'postgres://h/db?nonsense=1'", &["database.url", "does not parse", "nonsense"]),
        ("[database]\nurl = 'postgres:///db'", &["database.url", "names no host"]),
        ("[database]\nurl = 'sqlite::memory:'", &["name a file"]),
        ("[database]\nread_url = 'sqlite:x'", &["database.read_url", "no replica"]),
        ("[database]\nca_file = '/nowhere.pem'", &["database.ca_file", "cannot be read"]),
        ("[cache]\nurl = 'redis://h:port'", &["cache.url", "does not parse"]),
        ("[cache]\nurl = 'http://h'", &["cache.url", "memory: or redis://"]),
        ("[log]\nlevel = 'a=b=c'", &["log.level", "error, warn, info"]),
        ("http = 5", &["http (logweir.toml:1)", "write [http]"]),
        ("[parse]\ntime_zone = 'Mars/Olympus'", &["parse.time_zone = \"Mars/Olympus\"", "Europe/Berlin"]),
        ("formats = 5", &["formats (logweir.toml:1)", "[formats.NAME]"]),
        (
            "[formats.till]\npattern = '(?<ts>'",
            &["formats.till.pattern = \"(?<ts>\" (logweir.toml:1)", "no regular expression"],
        ),
        ("[formats.till]\npattern = 'x'", &["formats.till.pattern", "no named group"]),
        ("[formats.till]\npattern = 5", &["formats.till.pattern (", "must be a regular expression"]),
        ("[formats.till]\n", &["formats.till.pattern (", "must be a regular expression"]),
        ("[formats.syslog]\npattern = '(?<ts>.)'", &["formats.syslog (", "a built-in format"]),
        ("alerts = 5", &["alerts (logweir.toml:1)", "[alerts.NAME]"]),
        ("[alerts]\ncart = 5", &["alerts.cart (logweir.toml:2)", "[alerts.NAME]"]),
        ("[alerts.cart]\nabove = 1", &["alerts.cart.query (logweir.toml:1)", "is missing"]),
        ("[alerts.'c t']\nquery = ''", &["alerts.c t (", "no name for an alert"]),
        (
            "[alerts.cart]\nabove = 1\nquery = 'a AND ('",
            &["alerts.cart.query = \"a AND (\" (logweir.toml:3)", "invalid query: at column 8"],
        ),
        (
            "[alerts.cart]\nquery = ''\nabove = 1\nwebhook = 'x://secret'",
            &["alerts.cart.webhook (logweir.toml:4)", "https://"],
        ),
        ("[alerting]\nwebhook_url = 'x://secret'", &["alerting.webhook_url (logweir.toml:2)", "https://"]),
        ("[formats.'A b']\npattern = '(?<ts>.)'", &["formats.A b (", "no name for a format"]),
        ("[formats.till]\npattern = '(?<ts>.)'\nregex = ''", &["formats.till.regex (logweir.toml:3)", "is not a key"]),
    ] {
        assert_mistake(load_toml(toml), parts);
    }
}

#[test]
fn what_must_hold_between_keys_is_checked_and_says_the_numbers() {
    for (toml, parts) in [
        ("[journal]\nsegment_bytes = '16MiB'", &["journal.segment_bytes", "from 17MiB to 1GiB"][..]),
        (
            "[journal]\nquota_bytes = '300MiB'",
            &["journal.quota_bytes = \"300MiB\"", "at least 320MiB", "4 segments of 64MiB"],
        ),
        ("[journal]\nquota_bytes = '500MiB'\nretain_segments = 6", &["at least 576MiB", "8 segments"]),
        ("[http]\nbody_bytes_max = '13MiB'", &["http.decompressed_bytes_max", "body_bytes_max, which is 13MiB"]),
        ("[http]\nline_bytes_max = '14MiB'", &["http.line_bytes_max", "decompressed_bytes_max, which is 12MiB"]),
        ("[http]\ninflight_bytes_max = '1MiB'", &["http.inflight_bytes_max", "which is 12MiB"]),
        ("[batch]\nbytes_max = '64KiB'", &["batch.bytes_max", "line_bytes_max, which is 256KiB"]),
        ("[batch]\nlinger_ms = '11s'", &["batch.linger_ms", "http.ack_timeout_ms, which is 10s"]),
        ("[shutdown]\nlinger_ms = '25s'", &["shutdown.linger_ms", "deadline_ms, which is 25s"]),
        ("[shutdown]\ndeadline_ms = 40", &["batch.linger_ms", "shutdown.deadline_ms, which is 40"]),
        ("[admin]\nlisten = '127.0.0.1:8080'", &["admin.listen", "another port than http.listen"]),
        ("[auth]\nmode = 'token'", &["auth.mode", "needs a token"]),
        ("[auth]\nmode = 'none'\nquery_tokens = ['0123456789abcdef']", &["auth.mode", "contradicts the tokens"]),
        ("[database]\nurl = 'sqlite:/no/where/x.db'", &["database.url", "/no/where does not exist"]),
        ("data_dir = '/etc/passwd'", &["data_dir", "not a directory"]),
    ] {
        assert_mistake(load_toml(toml), parts);
    }
    load_toml("data_dir = '/no/where'\n[database]\nurl = 'sqlite:/no/where/x.db'").expect("below data_dir it is made");
}

#[test]
fn a_listener_that_others_can_reach_needs_tokens_or_a_word() {
    let open = "[http]\nlisten = '0.0.0.0:8080'\n";
    assert_mistake(load_toml(open), &["http.listen", "set auth.ingest_tokens, or say auth.mode = \"none\""]);
    assert_mistake(
        load_toml(&format!("{open}[auth]\nadmin_tokens = ['{TOKEN}']")),
        &["http.listen", "auth.ingest_tokens"],
    );
    assert_mistake(load_toml("[admin]\nlisten = '[::]:9600'"), &["admin.listen", "auth.admin_tokens"]);
    assert_mistake(load_toml("[admin]\nlisten = '[::ffff:10.0.0.1]:9600'"), &["admin.listen"]);
    load_toml(&format!("{open}[auth]\ningest_tokens = ['{TOKEN}']")).expect("ingest needs a token");
    load_toml(&format!("{open}[auth]\nmode = 'none'")).expect("somebody said so");
    // The same port on all addresses and on one of them cannot both be bound.
    assert_mistake(
        load_toml(&format!("{open}[auth]\nmode = 'none'\n[admin]\nlisten = '127.0.0.1:8080'")),
        &["admin.listen", "another port"],
    );
}

#[test]
fn a_gateway_is_told_where_the_processors_and_their_database_are() {
    let gateway = "role = 'gateway'\n[database]\nurl = 'postgres://u@h/d'\n[gateway]\n";
    let processors = "processors = ['logweir-processor', '10.0.0.1:81', '::1', '[::2]:82']\n";
    let loaded = load_toml(&format!("{gateway}{processors}")).unwrap();
    let processors: Vec<String> = loaded.config.gateway.processors.iter().map(ToString::to_string).collect();
    assert_eq!(processors, ["logweir-processor:8080", "10.0.0.1:81", "[::1]:8080", "[::2]:82"]);
    for (toml, parts) in [
        (gateway.to_owned(), &["role = \"gateway\"", "needs gateway.processors"][..]),
        ("role = 'gateway'\n[gateway]\nprocessors = 'a'".to_owned(), &["role", "needs database.url"]),
        (format!("{gateway}processors = 'a'\n[sources]\nstdin = true"), &["sources.stdin = true", "to a processor"]),
        ("[gateway]\nprocessors = 'a'".to_owned(), &["gateway.processors = [\"a:8080\"]", "role = \"gateway\""]),
        (format!("{gateway}processors = 'http://a'"), &["gateway.processors", "no http://"]),
        (format!("{gateway}processors = 'a:0'"), &["gateway.processors", "from 1 to 65535"]),
        (format!("{gateway}processors = 'a'\n[http]\nlisten = '0.0.0.0:80'"), &["http.listen", "auth.query_tokens"]),
        ("role = 'prozessor'".to_owned(), &["role", "one of all, processor, gateway"]),
    ] {
        assert_mistake(load_toml(&toml), parts);
    }
}

#[test]
fn all_mistakes_are_told_at_once_each_with_its_source() {
    let toml = "lanes = 0\n[batch]\nlinger = 5\nrows_max = 'many'\n\n[cahe]\nurl = 'x'\n";
    let environment = [("LOGWEIR__HTTP__LISTN", "x"), ("LOGWEIR__HTTP__WORKERS", "none"), ("DATABASE_URL", "secret")];
    let mut messages =
        messages(load_all(toml, &environment, &[("--set", "ak", "x"), ("--listen", "http.listen", "9")]));
    messages.sort();
    assert_eq!(
        messages,
        [
            "ak (flag --set): is not a key; did you mean `ack`?",
            "batch.linger (logweir.toml:3): is not a key; did you mean `batch.linger_ms`?",
            "batch.rows_max = \"many\" (logweir.toml:4): must be a whole number, from 1 to 1000000",
            "cahe.url (logweir.toml:7): is not a key; did you mean `cache.url`?",
            "database.url (environment DATABASE_URL): must be postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH",
            "environment LOGWEIR__HTTP__LISTN is not a key; did you mean LOGWEIR__HTTP__LISTEN?",
            "http.listen = \"9\" (flag --listen): must be IP:PORT, such as 127.0.0.1:8080 or [::1]:8080",
            "http.workers = \"none\" (environment LOGWEIR__HTTP__WORKERS): must be a whole number, from 1 to 256",
            "lanes = 0 (logweir.toml:1): must be a whole number, from 1 to 64",
        ]
    );
}

#[test]
fn a_file_that_is_not_toml_hides_no_other_mistake_and_makes_none_up() {
    let environment = [("LOGWEIR__LANES", "0"), ("LOGWEIR__HTTP__LISTEN", "0.0.0.0:1")];
    let messages = messages(load_all("a = \n[auth]\nmode = 'none'", &environment, &[]));
    assert_eq!(messages.len(), 2, "{messages:#?}");
    assert!(messages[0].starts_with("logweir.toml:1 is not TOML: "), "{messages:#?}");
    assert!(messages[1].starts_with("lanes = \"0\""));
}

#[test]
fn a_quoted_name_with_a_dot_is_no_path() {
    assert_mistake(load_toml("\"http.listen\" = '127.0.0.1:1'"), &["is not a key", "`http.listen`"]);
}

#[test]
fn secrets_can_be_files_and_other_values_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let tokens = file("tokens", &format!("{TOKEN}\n{TOKEN}2\n"));
    let url = file("url", "postgres://u:p@h/db\n");
    let environment = [("LOGWEIR__AUTH__INGEST_TOKENS_FILE", tokens.as_str()), ("DATABASE_URL_FILE", &url)];
    let loaded = load_all("", &environment, &[]).unwrap();
    assert_eq!(loaded.config.auth.ingest_tokens, [Token(TOKEN.into()), Token(format!("{TOKEN}2"))]);
    assert_eq!(loaded.config.database.url, DatabaseUrl::Postgres("postgres://u:p@h/db".into()));
    assert_eq!(loaded.config.auth.mode, AuthMode::Token);

    let both = [("DATABASE_URL_FILE", url.as_str()), ("DATABASE_URL", "postgres://h/db")];
    assert_mistake(load_all("", &both, &[]), &["database.url", "set beside DATABASE_URL_FILE"]);
    assert_mistake(load_all("", &[("REDIS_URL_FILE", "/no/file")], &[]), &["cache.url (/no/file", "cannot be read"]);
    assert_mistake(
        load_all("", &[("LOGWEIR__LANES_FILE", &url)], &[]),
        &["LOGWEIR__LANES_FILE", "only secrets are read from files"],
    );
}

#[test]
fn no_secret_is_ever_printed() {
    let secret = "hunter2hunter2hunter2";
    let toml = format!(
        "[auth]\ningest_tokens = ['{secret}']\n[database]\nurl = 'postgres://u:{secret}@h/db'\n[cache]\nurl = 'redis://:{secret}@h:1'"
    );
    let loaded = load_toml(&toml).unwrap();
    assert!(!format!("{:?} {}", loaded.config, reference::effective(&loaded)).contains(secret));
    let wrong = format!(
        "[auth]\ningest_tokens = ['{secret} ']\nadmin_tokens = 'ä{secret}'\n[database]\nurl = 'postgres://u:{secret}@h:x/db'\n[cache]\nurl = 'redis://:{secret}@h:port'"
    );
    let error = load_toml(&wrong).unwrap_err();
    assert_eq!(error.0.len(), 3, "{error}");
    assert!(!error.to_string().contains(secret), "{error}");
}

#[test]
fn a_missing_file_is_a_mistake_only_if_it_was_named() {
    let inputs = Inputs { file: Some("/no/such.toml".into()), ..Inputs::default() };
    assert_mistake(load(&inputs), &["/no/such.toml", "cannot be read"]);
    let environment = vec![(OsString::from("LOGWEIR_CONFIG"), OsString::from("/no/other.toml"))];
    assert_mistake(load(&Inputs { environment, ..Inputs::default() }), &["/no/other.toml", "cannot be read"]);
}

#[test]
fn the_effective_configuration_loads_as_itself() {
    let toml = "lanes = 7\n[http]\nlisten = '127.0.0.1:1'\nbody_bytes_max = 5000\n[batch]\nlinger_ms = 1500\n\
                [parse]\ntime_zone = 'Asia/Tokyo'\n[formats.till]\npattern = '^(?<ts>\\S+) \"(?<message>.*)$'\n\
                [alerts.share]\nquery = 'a:\"b\"'\nof = 'c'\nmeasure = 'ratio'\nbelow = '0.25'\nwindow = '1m'\nfor = '30s'\n";
    let loaded = load_all(toml, &[("LOGWEIR__LOG__FORMAT", "json")], &[]).unwrap();
    let text = reference::effective(&loaded);
    assert_eq!(load_toml(&text).unwrap().config, loaded.config, "{text}");
    assert!(text.contains("# environment LOGWEIR__LOG__FORMAT"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("lanes = 7 ") && line.ends_with("logweir.toml:1")), "{text}");
}

#[test]
fn the_readme_holds_the_generated_reference() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    // A packaged crate has no README above it.
    let Ok(readme) = std::fs::read_to_string(readme) else { return };
    assert!(
        readme.contains(&reference::markdown()),
        "put the table that `logweir validate --reference` prints into README.md"
    );
}

#[test]
fn a_data_dir_below_a_file_cannot_be_made() {
    let loaded = load_toml("data_dir = '/etc/passwd/logweir'").unwrap();
    let error = loaded.check_data_dir().unwrap_err().to_string();
    assert!(error.contains("/etc/passwd is not a directory") && error.contains("logweir.toml:1"), "{error}");
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(KEYS).prop_map(|key| key.path.to_owned()),
        1 => "[a-z_.]{0,12}",
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,24}",
        "[0-9]{1,22}(ms|s|d|KiB|MiB|TiB)?",
        "(postgres|redis|rediss|sqlite)://?[a-z0-9@:/?=%\\[\\].,]{0,24}",
        "[0-9.:\\[\\]]{1,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn loading_never_panics(
        toml in prop_oneof!["\\PC{0,60}", (path(), text()).prop_map(|(path, text)| format!("{path} = {text:?}"))],
        variables in proptest::collection::vec((path(), any::<bool>(), text()), 0..4),
        flags in proptest::collection::vec((path(), text()), 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("logweir.toml");
        std::fs::write(&file, toml).unwrap();
        let variable = |(path, file, text): (String, bool, String)| {
            let name = format!("LOGWEIR__{}{}", path.replace('.', "__").to_uppercase(), if file { "_FILE" } else { "" });
            (OsString::from(name), OsString::from(text))
        };
        let inputs = Inputs {
            file: Some(file),
            environment: variables.into_iter().map(variable).collect(),
            flags: flags.into_iter().map(|(path, text)| ("--set", path, text)).collect(),
        };
        match load(&inputs) {
            Ok(loaded) => drop(reference::effective(&loaded)),
            Err(error) => prop_assert!(!error.0.is_empty() && !error.to_string().is_empty()),
        }
    }
}

#[test]
fn a_syslog_listener_that_others_reach_needs_certificates_or_an_explicit_none() {
    let refused = "can be reached from other machines";
    assert_mistake(load_toml("[syslog]\ntcp_listen = '0.0.0.0:514'\n"), &["syslog.tcp_listen", refused]);
    assert_mistake(load_toml("[syslog]\nudp_listen = '0.0.0.0:514'\n"), &["syslog.udp_listen", refused]);
    assert_mistake(load_toml("[syslog]\ntls_listen = '0.0.0.0:6514'\n"), &["syslog.tls_listen", refused]);
    assert_mistake(
        load_toml("[syslog]\ntls_listen = '127.0.0.1:6514'\n"),
        &["syslog.tls_listen", "needs syslog.tls_cert_file and syslog.tls_key_file"],
    );
    assert_mistake(
        load_toml("[syslog]\ntcp_listen = '127.0.0.1:8080'\n"),
        &["syslog.tcp_listen", "another port than http.listen"],
    );
    load_toml("[auth]\nmode = 'none'\n[syslog]\ntcp_listen = '0.0.0.0:514'\nudp_listen = '0.0.0.0:514'\n").unwrap();
    let off = load_toml("[syslog]\ntcp_listen = ''\n").unwrap().config.syslog;
    assert_eq!(off.tcp_listen, None);
}

#[test]
fn what_files_are_read_and_joined_by_is_checked() {
    assert_mistake(load_toml("[files]\ninclude = ['a***']\n"), &["files.include", "is no pattern"]);
    assert_mistake(load_toml("[multiline]\nstart = '('\n"), &["multiline.start", "regular expression"]);
    let mistake = load_toml("[http]\nline_bytes_max = '4KiB'\n[multiline]\nbytes_max = '8KiB'\n");
    assert_mistake(mistake, &["multiline.bytes_max", "http.line_bytes_max"]);
    let config = load_toml("[http]\nline_bytes_max = '4KiB'\n").unwrap().config;
    assert_eq!((config.multiline.bytes_max, config.syslog.message_bytes_max), (4096, 4096));
}
