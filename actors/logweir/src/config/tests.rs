use super::keys::KEYS;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
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
    let error = result.expect_err("the configuration is invalid");
    error
        .0
        .iter()
        .map(|problem| {
            let text = problem.to_string();
            match (text.find("/tmp"), text.find("logweir.toml:")) {
                (Some(start), Some(end)) => format!("{}{}", &text[..start], &text[end..]),
                _ => text,
            }
        })
        .collect()
}

#[track_caller]
fn assert_problem(result: Result<Loaded, ConfigError>, parts: &[&str]) {
    let messages = messages(result);
    let found = messages.iter().any(|message| parts.iter().all(|part| message.contains(part)));
    assert!(found, "no error with {parts:?} in {messages:#?}");
}

#[test]
fn the_defaults_are_a_valid_configuration() {
    let loaded = load(&Inputs::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.origins, BTreeMap::new());
    assert_eq!(loaded.config.lanes(), 1);
    assert_eq!(load_all("", &[("DATABASE_URL", "postgres://u@h/d")], &[]).unwrap().config.lanes(), 3);
    assert_eq!(loaded.config.validate(), Ok(()));
    assert_eq!(loaded.config.http.body_bytes_max, 8 << 20);
    assert_eq!(loaded.config.http.request_timeout_ms, 30_000);
    assert_eq!(loaded.config.cache.ttl_s, 86_400);
    assert_eq!(loaded.config.database.url, DatabaseUrl::Sqlite("logweir-data/logweir.db".into()));
    assert_eq!(loaded.config.auth.mode, AuthMode::None);
    assert!(loaded.config.http.workers >= 1);
}

#[test]
fn the_table_has_a_key_for_every_field() {
    // A leaf of the pretty-printed configuration is a line `name: value,`. Alerts are sections, not keys; the file of a
    // URL is the source of its value.
    let debug = format!("{:#?}", Config::default());
    let leaves = debug
        .lines()
        .filter(|line| {
            line.contains(": ")
                && line.ends_with(',')
                && !line.ends_with(" alerts: [],")
                && !line.contains("url_file: ")
        })
        .count();
    assert_eq!(leaves, KEYS.len(), "{debug}");
}

#[test]
fn each_layer_overrides_the_previous_one() {
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
    // An empty common variable is ignored.
    assert_eq!(url(&[("DATABASE_URL", "")], &[]), postgres("file"));
    let loaded = load_all(toml, &[("REDIS_URL", "redis://r:6379")], &[("--set", "lanes", "5")]).unwrap();
    assert_eq!(loaded.config.cache.url, CacheUrl::Redis("redis://r:6379".into()));
    assert_eq!(loaded.config.lanes, Some(5));
    assert_eq!(loaded.origins["lanes"], Source::Flag("--set"));
    assert_eq!(loaded.origins["cache.url"], Source::Environment("REDIS_URL".into()));
    assert!(matches!(&loaded.origins["data_dir"], Source::File(_, 1)));
}

#[test]
fn each_kind_is_parsed_from_toml_and_from_text() {
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
fn each_invalid_value_is_rejected_with_what_is_accepted() {
    for (toml, parts) in [
        ("lanes = 0", &["logweir.toml:1: invalid lanes 0: expected a whole number from 1 to 64"][..]),
        ("lanes = 2.5", &["invalid lanes 2.5: expected a whole number", "; fractions are not supported"]),
        ("lanes = 99999999999999999999", &["invalid lanes \"99999999999999999999\"", "from 1 to 64"]),
        ("ack = 'maybe'", &["invalid ack \"maybe\": expected one of received, journal, committed"]),
        ("data_dir = ''", &["invalid data_dir \"\": expected a path"]),
        ("data_dir = '~/logs'", &["invalid data_dir \"~/logs\"", "not expanded"]),
        ("[files]\ninclude = ['/var/log/*.{log,txt}']", &["files.include", "`{a,b}` is not supported"]),
        ("[files]\nhost = \"a\\nb\"", &["files.host", "without control characters"]),
        ("[journal]\nsegment_bytes = '1.5MiB'", &["journal.segment_bytes", "; fractions are not supported"]),
        ("[alerting]\nwebhook_url = 'http://'", &["alerting.webhook_url", "http://…"]),
        (
            "[http]\nlisten = ':8080'",
            &["logweir.toml:2: invalid http.listen \":8080\": expected IP:PORT", "0.0.0.0:8080"],
        ),
        ("[http]\nlisten = 'localhost:1'", &["http.listen", "127.0.0.1:1"]),
        (
            "[http]\nbody_bytes_max = '8 apples'",
            &["http.body_bytes_max", "expected a size (bytes, KiB, MiB, GiB) from 1KiB to 16MiB"],
        ),
        ("[batch]\nlinger_ms = true", &["invalid batch.linger_ms true: expected a time (ms, s, m, h, d)"]),
        ("[sources]\nstdin = 1", &["invalid sources.stdin 1: expected true or false"]),
        (
            "[auth]\ningest_tokens = ['short']",
            &["invalid auth.ingest_tokens: expected at least 16 characters", "token 1 has 5"],
        ),
        ("[auth]\ningest_tokens = ['0123456789 abcdef']", &["visible ASCII"]),
        ("[auth]\ningest_tokens = [1]", &["expected a list of strings"]),
        ("[database]\nurl = 'mysql://x'", &["invalid database.url: expected postgres://USER:PASSWORD@HOST/DATABASE"]),
        ("[database]\nurl = 'postgres://h/db?nonsense=1'", &["database.url", "expected postgres://", "nonsense"]),
        ("[database]\nurl = 'postgres:///db'", &["database.url", "the host is missing"]),
        ("[database]\nurl = 'postgres://h/db?sslmode=on'", &["database.url", "sslmode=on", "verify-full"]),
        ("[database]\nurl = 'host=h sslcrl=x'", &["database.url", "sslcrl", "remove it"]),
        ("[database]\nurl = 'postgres://h/db?sslmode=verify-ca'", &["database.url", "database.ca_file"]),
        ("[database]\nurl = 'postgres://h/db?target_session_attrs=standby'", &["database.url", "database.read_url"]),
        ("[database]\nurl = 'sqlite::memory:'", &["expected sqlite:PATH"]),
        ("[database]\nread_url = 'sqlite:x'", &["database.read_url", "SQLite has no replicas"]),
        ("[database]\nca_file = '/nowhere.pem'", &["database.ca_file", "cannot read the file"]),
        ("[cache]\nurl = 'redis://h:port'", &["cache.url", "expected memory:, redis://"]),
        ("[cache]\nurl = 'http://h'", &["cache.url", "expected memory:, redis://"]),
        ("[cache]\nurl = 'redis-sentinel://h'", &["cache.url", "sentinelServiceName=NAME"]),
        ("[cache]\nurl = 'redis-cluster://h'", &["cache.url", "Redis Cluster is not supported"]),
        ("[log]\nlevel = 'a=b=c'", &["log.level", "error, warn, info"]),
        (
            "[log]\nlevel = 'verbose'",
            &[
                "invalid log.level \"verbose\": expected error, warn, info, debug, trace or a filter such as info,logweir=debug; \
               did you mean debug?",
            ],
        ),
        ("http = 5", &["logweir.toml:1: invalid http: expected a section [http]"]),
        ("[parse]\ntime_zone = 'Mars/Olympus'", &["invalid parse.time_zone \"Mars/Olympus\"", "Europe/Berlin"]),
        ("formats = 5", &["logweir.toml:1: invalid formats: expected a section [formats.NAME]"]),
        (
            "[formats.till]\npattern = '(?<ts>'",
            &["logweir.toml:2: invalid formats.till.pattern \"(?<ts>\": invalid regular expression"],
        ),
        ("[formats.till]\npattern = 'x'", &["formats.till.pattern", "no named group"]),
        ("[formats.till]\npattern = 5", &["invalid formats.till.pattern", "expected a regular expression"]),
        ("[formats.till]\n", &["invalid formats.till.pattern", "expected a regular expression"]),
        (
            "[formats.syslog]\npattern = '(?<ts>.)'",
            &["invalid formats.syslog: expected another name", "a built-in format"],
        ),
        ("alerts = 5", &["logweir.toml:1: invalid alerts: expected a section [alerts.NAME]"]),
        ("[alerts]\ncart = 5", &["logweir.toml:2: unknown key `alerts.cart`: expected alerts.NAME.KEY"]),
        ("[alerts.cart]\nabove = 1", &["logweir.toml:1: invalid alerts.cart.query: missing; expected a query"]),
        ("[alerts.'c t']\nquery = ''", &["invalid alerts.c t: expected a name"]),
        (
            "[alerts.cart]\nabove = 1\nquery = 'a AND ('",
            &["logweir.toml:3: invalid alerts.cart.query \"a AND (\": invalid query: at column 8"],
        ),
        (
            "[alerts.cart]\nquery = ''\nabove = 1\nwebhook = 'x://secret'",
            &["logweir.toml:4: invalid alerts.cart.webhook: ", "https://"],
        ),
        ("[alerting]\nwebhook_url = 'x://secret'", &["logweir.toml:2: invalid alerting.webhook_url: ", "https://"]),
        ("[formats.'A b']\npattern = '(?<ts>.)'", &["invalid formats.A b: expected a name"]),
        (
            "[formats.till]\npattern = '(?<ts>.)'\nregex = ''",
            &["logweir.toml:3: unknown key `formats.till.regex`", "one of pattern"],
        ),
    ] {
        assert_problem(load_toml(toml), parts);
    }
}

#[test]
fn rules_between_keys_are_checked_and_messages_have_the_numbers() {
    for (toml, parts) in [
        ("[journal]\nsegment_bytes = '16MiB'", &["journal.segment_bytes", "from 17MiB to 64MiB"][..]),
        (
            "[journal]\nquota_bytes = '300MiB'",
            &["invalid journal.quota_bytes \"300MiB\"", "at least 320MiB", "4 segments of 64MiB"],
        ),
        ("[journal]\nquota_bytes = '500MiB'\nretain_segments = 6", &["at least 576MiB", "8 segments"]),
        ("[http]\nbody_bytes_max = '13MiB'", &["http.decompressed_bytes_max", "body_bytes_max, which is 13MiB"]),
        ("[http]\nline_bytes_max = '14MiB'", &["http.line_bytes_max", "decompressed_bytes_max, which is 12MiB"]),
        ("[http]\ninflight_bytes_max = '1MiB'", &["http.inflight_bytes_max", "which is 12MiB"]),
        ("[batch]\nbytes_max = '64KiB'", &["batch.bytes_max", "line_bytes_max, which is 256KiB"]),
        ("[batch]\nlinger_ms = '11s'", &["batch.linger_ms", "http.ack_timeout_ms, which is 10s"]),
        ("[shutdown]\nlinger_ms = '25s'", &["shutdown.linger_ms", "less than shutdown.deadline_ms, which is 25s"]),
        ("[shutdown]\ndeadline_ms = 40", &["batch.linger_ms", "shutdown.deadline_ms, which is 40"]),
        ("[admin]\nlisten = '127.0.0.1:8080'", &["admin.listen", "a port other than that of http.listen"]),
        ("[auth]\nmode = 'token'", &["auth.mode", "expected a token in one of auth.ingest_tokens"]),
        ("[auth]\nmode = 'none'\nquery_tokens = ['0123456789abcdef']", &["auth.mode", "because tokens are set"]),
        ("[database]\nurl = 'sqlite:/no/where/x.db'", &["database.url", "/no/where does not exist"]),
        ("data_dir = '/etc/passwd'", &["data_dir", "expected a directory"]),
    ] {
        assert_problem(load_toml(toml), parts);
    }
    load_toml("data_dir = '/no/where'\n[database]\nurl = 'sqlite:/no/where/x.db'")
        .expect("directories below data_dir are created");
}

#[test]
fn a_reachable_listener_requires_tokens_or_an_explicit_none() {
    let open = "[http]\nlisten = '0.0.0.0:8080'\n";
    assert_problem(load_toml(open), &["http.listen", "set auth.ingest_tokens, or set auth.mode = \"none\""]);
    assert_problem(
        load_toml(&format!("{open}[auth]\nadmin_tokens = ['{TOKEN}']")),
        &["http.listen", "auth.ingest_tokens"],
    );
    assert_problem(load_toml("[admin]\nlisten = '[::]:9600'"), &["admin.listen", "auth.admin_tokens"]);
    assert_problem(load_toml("[admin]\nlisten = '[::ffff:10.0.0.1]:9600'"), &["admin.listen"]);
    load_toml(&format!("{open}[auth]\ningest_tokens = ['{TOKEN}']")).expect("ingestion requires a token");
    load_toml(&format!("{open}[auth]\nmode = 'none'")).expect("it is explicit");
    // The same port on all addresses and on one of them cannot both be bound.
    assert_problem(
        load_toml(&format!("{open}[auth]\nmode = 'none'\n[admin]\nlisten = '127.0.0.1:8080'")),
        &["admin.listen", "a port other than"],
    );
}

#[test]
fn a_gateway_requires_its_processors_and_their_database() {
    let gateway = "role = 'gateway'\n[database]\nurl = 'postgres://u@h/d'\n[gateway]\n";
    let processors = "processors = ['logweir-processor', '10.0.0.1:81', '::1', '[::2]:82']\n";
    let loaded = load_toml(&format!("{gateway}{processors}")).unwrap();
    let processors: Vec<String> = loaded.config.gateway.processors.iter().map(ToString::to_string).collect();
    assert_eq!(processors, ["logweir-processor:8080", "10.0.0.1:81", "[::1]:8080", "[::2]:82"]);
    for (toml, parts) in [
        (gateway.to_owned(), &["invalid role \"gateway\"", "requires gateway.processors"][..]),
        ("role = 'gateway'\n[gateway]\nprocessors = 'a'".to_owned(), &["role", "requires database.url"]),
        (
            format!("{gateway}processors = 'a'\n[sources]\nstdin = true"),
            &["invalid sources.stdin true", "on a processor"],
        ),
        ("[gateway]\nprocessors = 'a'".to_owned(), &["invalid gateway.processors [\"a:8080\"]", "role = \"gateway\""]),
        (format!("{gateway}processors = 'http://a'"), &["gateway.processors", "without http://"]),
        (format!("{gateway}processors = 'a:0'"), &["gateway.processors", "from 1 to 65535"]),
        (format!("{gateway}processors = 'a'\n[http]\nlisten = '0.0.0.0:80'"), &["http.listen", "auth.query_tokens"]),
        ("role = 'prozessor'".to_owned(), &["role", "one of all, processor, gateway"]),
    ] {
        assert_problem(load_toml(&toml), parts);
    }
}

#[test]
fn all_errors_are_reported_at_once_each_with_its_source() {
    let toml = "lanes = 0\n[batch]\nlinger = 5\nrows_max = 'many'\n\n[caches]\nurl = 'x'\n";
    let environment = [("LOGWEIR__HTTP__LISTN", "x"), ("LOGWEIR__HTTP__WORKERS", "none"), ("DATABASE_URL", "secret")];
    let mut messages =
        messages(load_all(toml, &environment, &[("--set", "ak", "x"), ("--listen", "http.listen", "9")]));
    messages.sort();
    assert_eq!(
        messages,
        [
            "environment variable DATABASE_URL: invalid database.url: expected postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH",
            "environment variable LOGWEIR__HTTP__LISTN: unknown variable; did you mean LOGWEIR__HTTP__LISTEN?",
            "environment variable LOGWEIR__HTTP__WORKERS: invalid http.workers \"none\": expected a whole number from 1 to 256",
            "flag --listen: invalid http.listen \"9\": expected IP:PORT, such as 127.0.0.1:8080 or [::1]:8080",
            "flag --set: unknown key `ak`; did you mean `ack`?",
            "logweir.toml:1: invalid lanes 0: expected a whole number from 1 to 64",
            "logweir.toml:3: unknown key `batch.linger`; did you mean `batch.linger_ms`?",
            "logweir.toml:4: invalid batch.rows_max \"many\": expected a whole number from 1 to 1000000",
            "logweir.toml:7: unknown key `caches.url`; did you mean `cache.url`?",
        ]
    );
}

#[test]
fn an_invalid_file_neither_hides_nor_causes_other_errors() {
    let environment = [("LOGWEIR__LANES", "0"), ("LOGWEIR__HTTP__LISTEN", "0.0.0.0:1")];
    let messages = messages(load_all("a = \n[auth]\nmode = 'none'", &environment, &[]));
    assert_eq!(messages.len(), 2, "{messages:#?}");
    assert!(messages[0].starts_with("logweir.toml:1: invalid TOML: "), "{messages:#?}");
    assert!(messages[1].contains("invalid lanes \"0\""), "{messages:#?}");
}

#[test]
fn a_quoted_name_with_a_dot_is_not_a_path() {
    assert_problem(load_toml("\"http.listen\" = '127.0.0.1:1'"), &["unknown key", "`http.listen`"]);
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
    assert_eq!(loaded.config.database.url_file.as_deref(), Some(std::path::Path::new(&url)), "to be read again");
    assert_eq!(loaded.config.auth.mode, AuthMode::Token);

    let both = [("DATABASE_URL_FILE", url.as_str()), ("DATABASE_URL", "postgres://h/db")];
    assert_problem(load_all("", &both, &[]), &["DATABASE_URL: DATABASE_URL_FILE is also set"]);
    assert_problem(load_all("", &[("REDIS_URL_FILE", "/no/file")], &[]), &["REDIS_URL_FILE: cannot read /no/file"]);
    // What the file would have contained is not reported as missing.
    let unreadable =
        load_all("[http]\nlisten = '0.0.0.0:80'", &[("LOGWEIR__AUTH__INGEST_TOKENS_FILE", "/no/file")], &[]);
    assert_eq!(unreadable.as_ref().map_err(|error| error.0.len()).err(), Some(1), "{unreadable:?}");
    assert_problem(unreadable, &["LOGWEIR__AUTH__INGEST_TOKENS_FILE: cannot read /no/file"]);
    assert_problem(
        load_all("", &[("LOGWEIR__LANES_FILE", &url)], &[]),
        &["LOGWEIR__LANES_FILE", "only secrets can be read from a file"],
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
fn a_missing_file_is_an_error_only_if_it_was_specified() {
    let inputs = Inputs { file: Some("/no/such.toml".into()), ..Inputs::default() };
    assert_problem(load(&inputs), &["/no/such.toml", "cannot read the file"]);
    let environment = vec![(OsString::from("LOGWEIR_CONFIG"), OsString::from("/no/other.toml"))];
    assert_problem(load(&Inputs { environment, ..Inputs::default() }), &["/no/other.toml", "cannot read the file"]);
}

#[test]
fn the_effective_configuration_loads_as_itself() {
    let toml = "lanes = 7\n[http]\nlisten = '127.0.0.1:1'\nbody_bytes_max = 5000\n[batch]\nlinger_ms = 1500\n\
                [parse]\ntime_zone = 'Asia/Tokyo'\n[formats.till]\npattern = '^(?<ts>\\S+) \"(?<message>.*)$'\n\
                [alerts.share]\nquery = 'a:\"b\"'\nof = 'c'\nmeasure = 'ratio'\nbelow = '0.25'\nwindow = '1m'\nfor = '30s'\n";
    let loaded = load_all(toml, &[("LOGWEIR__LOG__FORMAT", "json")], &[]).unwrap();
    let text = reference::effective(&loaded);
    assert_eq!(load_toml(&text).unwrap().config, loaded.config, "{text}");
    assert!(text.contains("# environment variable LOGWEIR__LOG__FORMAT"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("lanes = 7 ") && line.ends_with("logweir.toml:1")), "{text}");
}

#[test]
fn the_documentation_contains_the_generated_reference() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/configuration.md");
    // A packaged crate has no deploy directory beside it.
    let Ok(page) = std::fs::read_to_string(page) else { return };
    let generated = format!("<!-- reference:begin -->\n{}<!-- reference:end -->", reference::markdown());
    assert!(
        page.contains(&generated),
        "replace the table in deploy/configuration.md with the one that `logweir validate --reference` prints"
    );
}

#[test]
fn formats_and_alerts_are_set_by_file_environment_and_flag() {
    let pattern = "^(?<message>.*)$";
    let toml =
        format!("[formats.till]\npattern = '{pattern}'\n[alerts.cart]\nquery = 'a'\nabove = 0.5\nwindow = '1m'\n");
    let environment = [
        ("LOGWEIR__FORMATS__SHOP__PATTERN", pattern),
        ("LOGWEIR__ALERTS__CART__QUERY", "service:cart"),
        ("LOGWEIR__ALERTS__CART__WINDOW", "2m"),
    ];
    let flags = [("--set", "alerts.cart.window", "3m"), ("--set", "formats.a_b.pattern", pattern)];
    let config = load_all(&toml, &environment, &flags).unwrap().config;
    let names: Vec<&str> = config.parse.custom.iter().map(|format| format.name.as_str()).collect();
    assert_eq!(names, ["a_b", "shop", "till"]);
    let cart = &config.alerts[0];
    assert_eq!((cart.query.as_str(), cart.window_ms, cart.threshold.limit()), ("service:cart", 180_000, 0.5));

    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "https://hooks.example/secret\n").unwrap();
    let webhook = [("LOGWEIR__ALERTS__CART__WEBHOOK_FILE", secret.path().to_str().unwrap())];
    let config = load_all(&toml, &webhook, &[]).unwrap().config;
    assert_eq!(config.alerts[0].webhook, Some(Token("https://hooks.example/secret".into())));
    let both = [webhook[0], ("LOGWEIR__ALERTS__CART__WEBHOOK", "https://hooks.example/other")];
    assert_problem(
        load_all(&toml, &both, &[]),
        &["LOGWEIR__ALERTS__CART__WEBHOOK: LOGWEIR__ALERTS__CART__WEBHOOK_FILE is also set: remove one of them"],
    );

    for (flag, parts) in [
        ("formats.till.regex", &["flag --set: unknown key `formats.till.regex`", "one of pattern"][..]),
        ("formats.till", &["unknown key `formats.till`", "formats.NAME.KEY"]),
        ("alerts.cart.windows", &["unknown key `alerts.cart.windows`", "query, measure, of, above"]),
    ] {
        assert_problem(load_all("", &[], &[("--set", flag, "1")]), parts);
    }
    let wrong = load_all("", &[], &[("--set", "alerts.cart.query", "a AND (")]);
    assert_problem(wrong, &["flag --set: invalid alerts.cart.query \"a AND (\": ", "column 8"]);
}

#[test]
fn an_alert_that_can_never_fire_is_rejected() {
    let ratio = "[alerts.a]\nquery = ''\nmeasure = 'ratio'\nof = 'x'\n";
    assert_problem(load_toml(&format!("{ratio}above = 5")), &["alerts.a.above 5", "a ratio is at most 1"]);
    load_toml(&format!("{ratio}above = 0.9")).unwrap();
    load_toml(&format!("{ratio}below = 1")).unwrap();
}

#[test]
fn a_misspelled_variable_is_reported_and_variables_of_others_are_not() {
    for (name, meant) in [
        ("LOGWEIR_HTTP__LISTEN", "LOGWEIR__HTTP__LISTEN"),
        ("LOGWEIR_HTTP_LISTEN", "LOGWEIR__HTTP__LISTEN"),
        ("LOGWEIR_LANES", "LOGWEIR__LANES"),
        ("LOGWEIR_DATABASE_URL", "LOGWEIR__DATABASE__URL"),
        ("LOGWEIR_AUTH_INGEST_TOKENS_FILE", "LOGWEIR__AUTH__INGEST_TOKENS_FILE"),
        ("LOGWEIR_LOG_LEVEL", "LOGWEIR__LOG__LEVEL"),
        ("LOGWEIR_CONFIGS", "LOGWEIR_CONFIG"),
        ("LOGWEIR_TOKN", "LOGWEIR_TOKEN"),
        ("LOGWEIR_URI", "LOGWEIR_URL"),
        ("LOGWEIR_URLS", "LOGWEIR_URL"),
        ("LOGWEIR_LISTEN", "LOGWEIR__HTTP__LISTEN"),
        ("LOGWEIR_ALERTS__CART__QUERY", "LOGWEIR__ALERTS__CART__QUERY"),
    ] {
        let expected = format!("environment variable {name}: unknown variable; did you mean {meant}?");
        assert_eq!(messages(load_all("", &[(name, "1")], &[])), [expected]);
    }
    for name in [
        "LOGWEIR_URL",
        "LOGWEIR_TOKEN",
        "LOGWEIR_TOKEN_FILE",
        "LOGWEIR_TEST_DATABASE_URL",
        "LOGWEIR_SEED",
        "LOGWEIR_KILLS",
        "LOGWEIR_MUTATIONS",
        "LOGWEIR_BIN",
        "LOGWEIR_BACKLOG",
        "LOGWEIR_COMMIT",
        "LOGWEIR_SCREENSHOTS",
        "LOGWEIR_BUILD",
        "LOGWEIR_POSTGRES",
        "LOGWEIR_POSTGRES_USER",
        "LOGWEIR_POSTGRES_SSLMODE",
        "LOGWEIR_PROMETHEUS_URL",
        "LOGWEIR_DOCKER",
        // Kubernetes sets these for services named logweir, logweir-admin and logweir-http.
        "LOGWEIR_SERVICE_HOST",
        "LOGWEIR_SERVICE_PORT",
        "LOGWEIR_SERVICE_PORT_HTTP",
        "LOGWEIR_PORT",
        "LOGWEIR_PORT_80_TCP",
        "LOGWEIR_PORT_80_TCP_ADDR",
        "LOGWEIR_ADMIN_SERVICE_HOST",
        "LOGWEIR_HTTP_PORT_8080_TCP",
        "LOGWEIR_ADMIN_PORT",
    ] {
        assert!(load_all("", &[(name, "1")], &[]).is_ok(), "{name}");
    }
}

#[test]
fn the_log_level_has_a_short_variable() {
    let level = |environment: &[_]| load_all("", environment, &[]).map(|loaded| loaded.config.log.level);
    assert_eq!(level(&[("LOGWEIR_LOG", "debug")]).unwrap(), "debug");
    assert_eq!(level(&[("LOGWEIR_LOG", "debug"), ("LOGWEIR__LOG__LEVEL", "warn")]).unwrap(), "warn");
    assert_eq!(level(&[("LOGWEIR_LOG", "")]).unwrap(), "info");
    assert!(level(&[("LOGWEIR_LOG", "verbose")]).is_err());
}

#[test]
fn the_largest_segment_is_that_of_the_journal() {
    let max = logweir_engine::journal::SEGMENT_BYTES_MAX;
    let config = |bytes: u64| load_toml(&format!("[journal]\nsegment_bytes = {bytes}\nquota_bytes = '8GiB'"));
    assert_eq!(config(max).unwrap().config.journal.segment_bytes, max);
    assert_problem(config(max + 1), &["invalid journal.segment_bytes", "from 17MiB to 64MiB"]);
}

#[test]
fn a_configuration_of_a_program_is_checked_like_a_file() {
    fn with(set: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::in_dir("/nonexistent/logweir");
        set(&mut config);
        config.validate().map_or_else(|error| error.0.iter().map(ToString::to_string).collect(), |()| vec![])
    }
    assert_eq!(with(|_| {}), [""; 0]);
    assert_eq!(with(|c| c.lanes = Some(0)), ["invalid lanes 0: expected a whole number from 1 to 64"]);
    assert_eq!(
        with(|c| c.query.running_max = 0),
        ["invalid query.running_max \"0\": expected a whole number from 1 to 256"]
    );
    assert_eq!(
        with(|c| c.batch.rows_max = 0),
        ["invalid batch.rows_max \"0\": expected a whole number from 1 to 1000000"]
    );
    assert_eq!(with(|c| c.journal.quota_bytes = 1).len(), 1);
    let quota = with(|c| c.journal.quota_bytes = 100 << 20);
    assert!(quota[0].starts_with("invalid journal.quota_bytes \"100MiB\": expected at least 320MiB"), "{quota:?}");
    let url = with(|c| c.database.url = DatabaseUrl::Postgres("nonsense".into()));
    assert!(url[0].starts_with("invalid database.url: expected postgres://"), "{url:?}");
    assert_eq!(with(|c| c.log.level = "verbose".into()).len(), 1);
    assert_eq!(with(|c| c.files.include = vec!["a***".into()]).len(), 1);
    assert_eq!(with(|c| c.auth.ingest_tokens = vec![Token("short".into())]).len(), 1);
    // The mode of a program that listens on every address without tokens counts as explicit.
    assert_eq!(with(|c| c.http.listen = "0.0.0.0:8080".parse().unwrap()), [""; 0]);
    let alert = load_toml("[alerts.a]\nquery = ''\nabove = 1").unwrap().config.alerts.remove(0);
    let alert = |set: fn(&mut Rule)| {
        let mut alert = alert.clone();
        set(&mut alert);
        with(|c| c.alerts = vec![alert])
    };
    assert_eq!(alert(|_| {}), [""; 0]);
    assert_eq!(alert(|rule| rule.every_ms = 7001).len(), 1);
    assert_eq!(alert(|rule| rule.webhook = Some(Token("ftp://x".into()))).len(), 1);
}

#[test]
fn the_default_of_lanes_follows_the_log_store() {
    let mut config = Config::in_dir("/nonexistent/logweir");
    assert_eq!(config.lanes(), 1);
    config.database.url = DatabaseUrl::Postgres("postgres://u@h/d".into());
    assert_eq!(config.lanes(), 3);
    config.lanes = Some(5);
    assert_eq!(config.lanes(), 5);
}

#[test]
fn a_data_dir_below_a_file_cannot_be_created() {
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
        "(postgres|redis|rediss|redis-sentinel|sqlite)://?[a-z0-9@:/?=%\\[\\].,]{0,24}",
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
            Ok(loaded) => {
                drop(reference::effective(&loaded));
                prop_assert_eq!(loaded.config.validate(), Ok(()), "the start rejects what `validate` accepts");
            }
            Err(error) => prop_assert!(!error.0.is_empty() && !error.to_string().is_empty()),
        }
    }
}

#[test]
fn a_reachable_syslog_listener_requires_certificates_or_an_explicit_none() {
    let reachable = "reachable from other machines";
    assert_problem(load_toml("[syslog]\ntcp_listen = '0.0.0.0:514'\n"), &["syslog.tcp_listen", reachable]);
    assert_problem(load_toml("[syslog]\nudp_listen = '0.0.0.0:514'\n"), &["syslog.udp_listen", reachable]);
    assert_problem(load_toml("[syslog]\ntls_listen = '0.0.0.0:6514'\n"), &["syslog.tls_listen", reachable]);
    assert_problem(
        load_toml("[syslog]\ntls_listen = '127.0.0.1:6514'\n"),
        &["syslog.tls_listen", "requires syslog.tls_cert_file and syslog.tls_key_file"],
    );
    assert_problem(
        load_toml("[syslog]\ntcp_listen = '127.0.0.1:8080'\n"),
        &["syslog.tcp_listen", "a port other than that of http.listen"],
    );
    load_toml("[auth]\nmode = 'none'\n[syslog]\ntcp_listen = '0.0.0.0:514'\nudp_listen = '0.0.0.0:514'\n").unwrap();
    let off = load_toml("[syslog]\ntcp_listen = ''\n").unwrap().config.syslog;
    assert_eq!(off.tcp_listen, None);
}

#[test]
fn globs_and_multiline_patterns_are_checked() {
    assert_problem(load_toml("[files]\ninclude = ['a***']\n"), &["files.include", "instead of \"a***\""]);
    assert_problem(load_toml("[multiline]\nstart = '('\n"), &["multiline.start", "regular expression"]);
    let result = load_toml("[http]\nline_bytes_max = '4KiB'\n[multiline]\nbytes_max = '8KiB'\n");
    assert_problem(result, &["multiline.bytes_max", "http.line_bytes_max"]);
    let config = load_toml("[http]\nline_bytes_max = '4KiB'\n").unwrap().config;
    assert_eq!((config.multiline.bytes_max, config.syslog.message_bytes_max), (4096, 4096));
    let config = load_toml("[http]\nline_bytes_max = 256\n").unwrap().config;
    assert_eq!(config.validate(), Ok(()), "a derived value is outside of its range");
    assert_eq!((config.multiline.bytes_max, config.syslog.message_bytes_max), (256, 256));
}
