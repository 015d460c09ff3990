//! The table of all configuration keys: type, range, default and description.
//!
//! Parsing, validation, the effective configuration and the generated reference all read this table, so that a key
//! cannot exist in one of them only.

use std::net::SocketAddr;
use std::path::PathBuf;

use logweir_engine::journal::SEGMENT_BYTES_MAX;
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use logweir_store::DatabaseUrl;

use super::quantity::Unit;
use super::settings::{AuthMode, CacheUrl, Config, HostPort, Role};
use super::token::Token;
use crate::message::AckLevel;

/// Accessor of a key's value in the typed [`Config`].
pub type Lens<T> = fn(&mut Config) -> &mut T;

/// One configuration key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Path: `section.name`, or `name` for a key outside any section.
    pub path: &'static str,
    /// Type and allowed values.
    pub kind: Kind,
    /// Default value.
    pub fallback: Fallback,
    /// Description, in one line of Markdown.
    pub description: &'static str,
}

/// Default of a key.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// This text, parsed like a value of the file.
    Value(&'static str),
    /// Derived from other values or from the machine, as described here.
    Derived(&'static str),
    /// Empty.
    Unset,
}

/// Location and width of a number.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// 16 bits; `None` derives the number from other values.
    OptionalU16(Lens<Option<u16>>),
    /// 32 bits.
    U32(Lens<u32>),
    /// 64 bits.
    U64(Lens<u64>),
    /// Pointer-sized.
    Usize(Lens<usize>),
}

/// Type of a key's value.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number from `min` to `max`, in the plain unit.
    Number {
        /// Location.
        place: Place,
        /// Unit.
        unit: Unit,
        /// Smallest allowed value.
        min: u64,
        /// Largest allowed value.
        max: u64,
    },
    /// `true` or `false`.
    Bool(Lens<bool>),
    /// One of several words.
    Choice {
        /// The words.
        words: &'static [&'static str],
        /// Returns the index of the current word.
        get: fn(&Config) -> usize,
        /// Selects the word at an index.
        set: fn(&mut Config, usize),
    },
    /// `IP:PORT`.
    Address(Lens<SocketAddr>),
    /// `IP:PORT`, or empty.
    OptionalAddress(Lens<Option<SocketAddr>>),
    /// A path.
    Path(Lens<PathBuf>),
    /// A path, or empty.
    OptionalPath(Lens<Option<PathBuf>>),
    /// Secrets that fit into an HTTP header.
    Tokens(Lens<Vec<Token>>),
    /// A URL that may contain a secret, or empty.
    Webhook(Lens<Option<Token>>),
    /// URL of the log store.
    Database(Lens<DatabaseUrl>),
    /// URL of a `PostgreSQL` database, or empty.
    OptionalDatabase(Lens<Option<DatabaseUrl>>),
    /// URL of the cache.
    Cache(Lens<CacheUrl>),
    /// A log level, or a filter of log lines.
    Filter(Lens<String>),
    /// Paths with `*`, `**`, `?` and `[…]`.
    Globs(Lens<Vec<String>>),
    /// A regular expression, or empty.
    Pattern(Lens<String>),
    /// A name, or empty.
    Name(Lens<String>),
    /// Host names, each with an optional port.
    Hosts(Lens<Vec<HostPort>>),
    /// A time zone by its IANA name.
    Zone(Lens<jiff::tz::TimeZone>),
}

impl Kind {
    /// Whether the value is a secret: it is never printed, and can be read from a file.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(
            self,
            Self::Tokens(_) | Self::Webhook(_) | Self::Database(_) | Self::OptionalDatabase(_) | Self::Cache(_)
        )
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

const FRAME_BYTES_MAX: u64 = PAYLOAD_BYTES_MAX as u64;
/// The same for every limit of a line: `http.line_bytes_max` also lowers the defaults of the others.
const LINE_BYTES_MIN: u64 = 256;
/// The journal itself takes smaller segments, but a frame cannot span two of them: the largest payload must fit. The
/// extra MiB is more than the headers of the segment and of the frame ever need.
const SEGMENT_BYTES_MIN: u64 = FRAME_BYTES_MAX + MIB;
const _: () = assert!(logweir_engine::journal::SEGMENT_BYTES_MIN <= SEGMENT_BYTES_MIN);
const _: () = assert!(SEGMENT_BYTES_MIN < SEGMENT_BYTES_MAX);

const fn number(place: Place, unit: Unit, min: u64, max: u64) -> Kind {
    Kind::Number { place, unit, min, max }
}

const fn key(path: &'static str, fallback: &'static str, kind: Kind, description: &'static str) -> Key {
    Key { path, kind, fallback: Fallback::Value(fallback), description }
}

const fn derived(path: &'static str, fallback: &'static str, kind: Kind, description: &'static str) -> Key {
    Key { path, kind, fallback: Fallback::Derived(fallback), description }
}

const fn unset(path: &'static str, kind: Kind, description: &'static str) -> Key {
    Key { path, kind, fallback: Fallback::Unset, description }
}

use Place::{OptionalU16, U32, U64, Usize};
use Unit::{Bytes, Count, Days, Millis, Seconds};

/// All keys, in the order of the reference.
pub static KEYS: &[Key] = &[
    key(
        "role",
        "all",
        Kind::Choice {
            words: &["all", "processor", "gateway"],
            get: |c| c.role as usize,
            set: |c, word| c.role = [Role::All, Role::Processor, Role::Gateway][word],
        },
        "`processor` receives and stores records; `gateway` serves the web UI and the query API; `all` does both",
    ),
    key(
        "data_dir",
        "logweir-data",
        Kind::Path(|c| &mut c.data_dir),
        "Data volume: holds the journal, and the SQLite file if SQLite is the log store",
    ),
    key(
        "ack",
        "journal",
        Kind::Choice {
            words: &["received", "journal", "committed"],
            get: |c| match c.ack {
                AckLevel::Received => 0,
                AckLevel::Journal => 1,
                AckLevel::Committed => 2,
            },
            set: |c, word| c.ack = [AckLevel::Received, AckLevel::Journal, AckLevel::Committed][word],
        },
        "Default acknowledgment level, for requests that do not set one: `received` (in memory), `journal` (fsynced to the journal) or `committed` (in the database)",
    ),
    derived(
        "lanes",
        "3; 1 with SQLite, which allows one writer",
        number(OptionalU16(|c| &mut c.lanes), Count, 1, 64),
        "Number of lanes: shards of the stream that keep their order and are flushed in parallel",
    ),
    key(
        "http.listen",
        "127.0.0.1:8080",
        Kind::Address(|c| &mut c.http.listen),
        "Address of the data port: ingestion, query API and web UI",
    ),
    derived(
        "http.workers",
        "half of the CPU cores, at least 1",
        number(Usize(|c| &mut c.http.workers), Count, 1, 256),
        "Threads that read requests",
    ),
    key(
        "http.connections_max",
        "1024",
        number(Usize(|c| &mut c.http.connections_max), Count, 1, 100_000),
        "Maximum number of open connections; fewer if the limit of open files (ulimit -n) allows no more",
    ),
    key(
        "http.body_bytes_max",
        "8MiB",
        number(Usize(|c| &mut c.http.body_bytes_max), Bytes, KIB, FRAME_BYTES_MAX),
        "Maximum size of a request body as sent; larger bodies are rejected with 413",
    ),
    key(
        "http.decompressed_bytes_max",
        "12MiB",
        number(Usize(|c| &mut c.http.decompressed_bytes_max), Bytes, KIB, FRAME_BYTES_MAX),
        "Maximum size of a request body after decompression; larger bodies are rejected with 413",
    ),
    key(
        "http.line_bytes_max",
        "256KiB",
        number(Usize(|c| &mut c.http.line_bytes_max), Bytes, LINE_BYTES_MIN, FRAME_BYTES_MAX),
        "Maximum size of one record's line; longer lines are discarded and counted",
    ),
    key(
        "http.inflight_bytes_max",
        "64MiB",
        number(Usize(|c| &mut c.http.inflight_bytes_max), Bytes, KIB, 16 * GIB),
        "Maximum total size of the request bodies being read; beyond it, requests are rejected with 429",
    ),
    key(
        "http.request_timeout_ms",
        "30s",
        number(U64(|c| &mut c.http.request_timeout_ms), Millis, 100, 10 * MINUTE),
        "Time limit for reading a request",
    ),
    key(
        "http.ack_timeout_ms",
        "10s",
        number(U64(|c| &mut c.http.ack_timeout_ms), Millis, 10, 10 * MINUTE),
        "Time limit for reaching the requested acknowledgment level; after it, the response is 503",
    ),
    unset(
        "http.tls_cert_file",
        Kind::OptionalPath(|c| &mut c.http.tls_cert_file),
        "PEM file with the certificate chain of the data port; empty serves plain HTTP. Reloaded when it changes",
    ),
    unset(
        "http.tls_key_file",
        Kind::OptionalPath(|c| &mut c.http.tls_key_file),
        "PEM file with the private key of the certificate",
    ),
    unset(
        "http.tls_client_ca_file",
        Kind::OptionalPath(|c| &mut c.http.tls_client_ca_file),
        "PEM file with CA certificates; clients must present a certificate issued by one of them",
    ),
    key(
        "admin.listen",
        "127.0.0.1:9600",
        Kind::Address(|c| &mut c.admin.listen),
        "Address of the admin port: health checks, metrics, status and drain",
    ),
    derived(
        "auth.mode",
        "`token` if any token is set, otherwise `none`",
        Kind::Choice {
            words: &["token", "none"],
            get: |c| usize::from(c.auth.mode == AuthMode::None),
            set: |c, word| c.auth.mode = [AuthMode::Token, AuthMode::None][word],
        },
        "Whether requests need a bearer token. For an address that is not loopback, `none` must be set explicitly",
    ),
    unset(
        "auth.ingest_tokens",
        Kind::Tokens(|c| &mut c.auth.ingest_tokens),
        "Tokens that may send records, each as TOKEN or NAME=TOKEN",
    ),
    unset("auth.query_tokens", Kind::Tokens(|c| &mut c.auth.query_tokens), "Tokens that may read records"),
    unset(
        "auth.admin_tokens",
        Kind::Tokens(|c| &mut c.auth.admin_tokens),
        "Tokens that may use the admin port, and replay or purge dead letters",
    ),
    key(
        "auth.stamp_token",
        "false",
        Kind::Bool(|c| &mut c.auth.stamp_token),
        "Add the attribute `logweir.token`, with the name of the sender's token, to each record",
    ),
    key(
        "limits.bytes_per_s",
        "0",
        number(U64(|c| &mut c.limits.bytes_per_s), Bytes, 0, 1 << 40),
        "Rate limit per token, in bytes of request bodies per second; beyond it, requests are rejected with 429. 0 disables it",
    ),
    key(
        "limits.bytes_per_day",
        "0",
        number(U64(|c| &mut c.limits.bytes_per_day), Bytes, 0, 1 << 50),
        "Limit per token, in bytes of request bodies per day (UTC); beyond it, requests are rejected with 429. 0 disables it",
    ),
    key(
        "batch.rows_max",
        "20000",
        number(Usize(|c| &mut c.batch.rows_max), Count, 1, 1_000_000),
        "A batch is flushed when it holds this many records",
    ),
    key(
        "batch.bytes_max",
        "8MiB",
        number(Usize(|c| &mut c.batch.bytes_max), Bytes, 64 * KIB, 256 * MIB),
        "A batch is flushed when it reaches this size",
    ),
    key(
        "batch.linger_ms",
        "50",
        number(U64(|c| &mut c.batch.linger_ms), Millis, 0, MINUTE),
        "A batch is flushed when it reaches this age",
    ),
    key(
        "journal.segment_bytes",
        "64MiB",
        number(U64(|c| &mut c.journal.segment_bytes), Bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
        "Size of a segment file; a frame with the largest payload must fit into one",
    ),
    key(
        "journal.quota_bytes",
        "4GiB",
        number(U64(|c| &mut c.journal.quota_bytes), Bytes, 4 * SEGMENT_BYTES_MIN, 64 << 40),
        "Maximum total size of the journal files; beyond it, requests are rejected with 503",
    ),
    key(
        "journal.ballast_bytes",
        "64MiB",
        number(U64(|c| &mut c.journal.ballast_bytes), Bytes, 0, GIB),
        "Disk space reserved so that the journal can still be drained when the disk is full; 0 disables it",
    ),
    key(
        "journal.queue_bytes_max",
        "32MiB",
        number(Usize(|c| &mut c.journal.queue_bytes_max), Bytes, FRAME_BYTES_MAX, GIB),
        "Maximum total size of the payloads waiting for the journal's writer thread",
    ),
    key(
        "journal.retain_segments",
        "2",
        number(Usize(|c| &mut c.journal.retain_segments), Count, 0, 1000),
        "Minimum number of committed segments to keep, in case the database is restored to an earlier time",
    ),
    key(
        "journal.retain_s",
        "0s",
        number(U64(|c| &mut c.journal.retain_s), Seconds, 0, 365 * 86_400),
        "How long to keep committed segments for the same reason, as far as the quota allows",
    ),
    derived(
        "database.url",
        "`sqlite:DATA_DIR/logweir.db`",
        Kind::Database(|c| &mut c.database.url),
        "Log store; also read from the variable `DATABASE_URL`",
    ),
    unset(
        "database.read_url",
        Kind::OptionalDatabase(|c| &mut c.database.read_url),
        "Database for queries, such as a replica; empty uses database.url",
    ),
    key(
        "database.pool_size",
        "4",
        number(Usize(|c| &mut c.database.pool_size), Count, 1, 256),
        "Connections for queries and administration; each lane has one more of its own",
    ),
    key(
        "database.connect_timeout_ms",
        "5s",
        number(U64(|c| &mut c.database.connect_timeout_ms), Millis, 10, 5 * MINUTE),
        "Time limit for connecting to the database",
    ),
    key(
        "database.connection_age_max_s",
        "30m",
        number(U64(|c| &mut c.database.connection_age_max_s), Seconds, 1, 7 * 86_400),
        "Age at which a connection to the database is replaced by a new one, which resolves names and reads files again",
    ),
    key(
        "database.statement_timeout_ms",
        "60s",
        number(U64(|c| &mut c.database.statement_timeout_ms), Millis, 100, HOUR),
        "Time limit for one SQL statement",
    ),
    key(
        "database.retention_days",
        "0",
        number(U32(|c| &mut c.database.retention_days), Days, 0, 36_500),
        "Partitions older than this are dropped; 0 keeps everything",
    ),
    key(
        "database.compress_after_days",
        "7",
        number(U32(|c| &mut c.database.compress_after_days), Days, 0, 36_500),
        "TimescaleDB only: age at which a chunk is compressed; 0 disables it",
    ),
    key(
        "database.direct_compress",
        "false",
        Kind::Bool(|c| &mut c.database.direct_compress),
        "TimescaleDB 2.21 and later: records are compressed while they are stored, for about twice the database's CPU time and a third of the space until their chunk is compressed",
    ),
    key(
        "database.chunk_interval_s",
        "0",
        number(U32(|c| &mut c.database.chunk_interval_s), Seconds, 0, 604_800),
        "TimescaleDB only: how long a chunk is; 0 decides by the rate of records (a quarter of the server's memory, a day at most), and keeps an interval that was set with set_chunk_time_interval",
    ),
    key(
        "database.late_after_days",
        "7",
        number(U32(|c| &mut c.database.late_after_days), Days, 1, 366),
        "TimescaleDB only: a record this old (or as old as what is compressed or deleted) goes to table logweir_late first, and moves to table logs if its day has a chunk or many such records",
    ),
    key(
        "database.early_after_days",
        "1",
        number(U32(|c| &mut c.database.early_after_days), Days, 1, 366),
        "TimescaleDB only: the same for a record this far in the future",
    ),
    key(
        "database.text_index",
        "true",
        Kind::Bool(|c| &mut c.database.text_index),
        "PostgreSQL without TimescaleDB: build a text index (pg_trgm) on the partitions of past days; it is as large as the text",
    ),
    key(
        "database.maintenance",
        "true",
        Kind::Bool(|c| &mut c.database.maintenance),
        "Maintain the tables: partitions, retention, indexes. Set to false for a role that may only read and write rows, and run `logweir database prepare` with another one every day",
    ),
    unset(
        "database.ca_file",
        Kind::OptionalPath(|c| &mut c.database.ca_file),
        "PEM file with CA certificates of the database's servers and of Redis, in addition to the system's; `sslrootcert` in a URL replaces both for its servers",
    ),
    unset(
        "gateway.processors",
        Kind::Hosts(|c| &mut c.gateway.processors),
        "For the role `gateway`: hosts of the processors. A name that resolves to several addresses stands for all of them",
    ),
    key(
        "gateway.lookup_ms",
        "5s",
        number(U64(|c| &mut c.gateway.lookup_ms), Millis, 100, HOUR),
        "Interval between DNS lookups of the processors",
    ),
    key(
        "gateway.timeout_ms",
        "2s",
        number(U64(|c| &mut c.gateway.timeout_ms), Millis, 10, 5 * MINUTE),
        "Time limit for a response from a processor, and for a DNS lookup",
    ),
    key(
        "gateway.requests_max",
        "16",
        number(Usize(|c| &mut c.gateway.requests_max), Count, 1, 1000),
        "Maximum number of concurrent requests to processors; additional requests wait",
    ),
    unset(
        "gateway.tls_ca_file",
        Kind::OptionalPath(|c| &mut c.gateway.tls_ca_file),
        "PEM file with CA certificates. If set, processors are queried over TLS and must present a certificate issued by one of them for a name in gateway.processors",
    ),
    unset(
        "gateway.tls_cert_file",
        Kind::OptionalPath(|c| &mut c.gateway.tls_cert_file),
        "PEM file with the client certificate chain presented to processors",
    ),
    unset(
        "gateway.tls_key_file",
        Kind::OptionalPath(|c| &mut c.gateway.tls_key_file),
        "PEM file with the private key of the client certificate",
    ),
    key(
        "cache.url",
        "memory:",
        Kind::Cache(|c| &mut c.cache.url),
        "Hot cache of recent records and counters; also read from the variable `REDIS_URL`",
    ),
    key(
        "cache.recent_records",
        "1000",
        number(Usize(|c| &mut c.cache.recent_records), Count, 1, 100_000),
        "Number of recent records to keep per service",
    ),
    key(
        "cache.recent_records_per_s",
        "20000",
        number(Usize(|c| &mut c.cache.recent_records_per_s), Count, 1, 10_000_000),
        "Maximum number of records added to the recent records per second; at a higher rate, only the latest records of each batch are added",
    ),
    key(
        "cache.services_max",
        "1000",
        number(Usize(|c| &mut c.cache.services_max), Count, 1, 1_000_000),
        "Maximum number of services to keep; the least recently used one is evicted",
    ),
    key(
        "cache.timeout_ms",
        "500",
        number(U64(|c| &mut c.cache.timeout_ms), Millis, 1, MINUTE),
        "Time limit for one cache command",
    ),
    key(
        "cache.ttl_s",
        "1d",
        number(U64(|c| &mut c.cache.ttl_s), Seconds, 1, 365 * 86_400),
        "Time after which an entry that is not updated expires",
    ),
    key(
        "query.timeout_ms",
        "30s",
        number(U64(|c| &mut c.query.timeout_ms), Millis, 10, HOUR),
        "Time limit for a query; after it, the response is 504",
    ),
    key(
        "query.running_max",
        "4",
        number(Usize(|c| &mut c.query.running_max), Count, 1, 256),
        "Maximum number of concurrent queries, each on one of the database.pool_size connections",
    ),
    key(
        "query.waiting_max",
        "32",
        number(Usize(|c| &mut c.query.waiting_max), Count, 0, 10_000),
        "Maximum number of queued queries; additional ones are rejected with 429",
    ),
    key(
        "query.streams_max",
        "8",
        number(Usize(|c| &mut c.query.streams_max), Count, 1, 10_000),
        "Maximum number of concurrent streaming responses; additional ones are rejected with 429",
    ),
    key(
        "query.page_bytes_max",
        "4MiB",
        number(Usize(|c| &mut c.query.page_bytes_max), Bytes, 64 * KIB, 64 * MIB),
        "Size at which a page of records ends",
    ),
    key(
        "tail.clients_max",
        "32",
        number(Usize(|c| &mut c.tail.clients_max), Count, 0, 1000),
        "Maximum number of concurrent live tails; additional ones are rejected with 429. 0 disables the live tail",
    ),
    key(
        "tail.buffer_bytes",
        "8MiB",
        number(Usize(|c| &mut c.tail.buffer_bytes), Bytes, 64 * KIB, GIB),
        "Buffer of the latest records, shared by all live tails; a tail that falls behind it reports how many records it skipped",
    ),
    key(
        "tail.records_per_s",
        "10000",
        number(Usize(|c| &mut c.tail.records_per_s), Count, 1, 10_000_000),
        "Maximum number of records sent to one live tail per second; it reports how many more there were",
    ),
    unset(
        "alerting.webhook_url",
        Kind::Webhook(|c| &mut c.alerting.webhook_url),
        "Webhook for the alerts that set none of their own",
    ),
    key(
        "shutdown.linger_ms",
        "0",
        number(U64(|c| &mut c.shutdown.linger_ms), Millis, 0, 10 * MINUTE),
        "How long records are still accepted after readiness has turned 503; use 5s behind a load balancer",
    ),
    key(
        "shutdown.deadline_ms",
        "25s",
        number(U64(|c| &mut c.shutdown.deadline_ms), Millis, 1, HOUR),
        "Time limit for flushing to the database after SIGTERM, and for sealing the journal in the last fifth (at most 5s); \
         the rest stays in the journal",
    ),
    key(
        "parse.time_zone",
        "UTC",
        Kind::Zone(|c| &mut c.parse.time_zone),
        "Time zone of timestamps that do not specify one",
    ),
    key(
        "sources.stdin",
        "false",
        Kind::Bool(|c| &mut c.sources.stdin),
        "Read lines from standard input; at the end of the input, drain and exit",
    ),
    key(
        "sources.demo_rate",
        "0",
        number(U32(|c| &mut c.sources.demo_rate), Count, 0, 10_000_000),
        "Generate this many sample records per second; 0 disables it",
    ),
    unset(
        "syslog.tcp_listen",
        Kind::OptionalAddress(|c| &mut c.syslog.tcp_listen),
        "Address for syslog over TCP, octet-counted or newline-delimited; empty disables it",
    ),
    unset(
        "syslog.udp_listen",
        Kind::OptionalAddress(|c| &mut c.syslog.udp_listen),
        "Address for syslog over UDP, one message per datagram; empty disables it",
    ),
    unset(
        "syslog.tls_listen",
        Kind::OptionalAddress(|c| &mut c.syslog.tls_listen),
        "Address for syslog over TLS (RFC 5425); empty disables it",
    ),
    unset(
        "syslog.tls_cert_file",
        Kind::OptionalPath(|c| &mut c.syslog.tls_cert_file),
        "PEM file with the certificate chain of the TLS listener. Reloaded when it changes",
    ),
    unset(
        "syslog.tls_key_file",
        Kind::OptionalPath(|c| &mut c.syslog.tls_key_file),
        "PEM file with the private key of the certificate",
    ),
    unset(
        "syslog.client_ca_file",
        Kind::OptionalPath(|c| &mut c.syslog.client_ca_file),
        "PEM file with CA certificates; senders over TLS must present a certificate issued by one of them",
    ),
    key(
        "syslog.connections_max",
        "128",
        number(Usize(|c| &mut c.syslog.connections_max), Count, 1, 10_000),
        "Maximum number of open connections, TCP and TLS together; additional ones are closed and counted",
    ),
    key(
        "syslog.message_bytes_max",
        "64KiB",
        number(Usize(|c| &mut c.syslog.message_bytes_max), Bytes, LINE_BYTES_MIN, MIB),
        "Maximum size of one message; longer ones are discarded and counted",
    ),
    key(
        "syslog.idle_timeout_ms",
        "1h",
        number(U64(|c| &mut c.syslog.idle_timeout_ms), Millis, SECOND, 24 * HOUR),
        "A connection that receives no data for this long is closed",
    ),
    key(
        "syslog.udp_buffer_bytes",
        "8MiB",
        number(Usize(|c| &mut c.syslog.udp_buffer_bytes), Bytes, 64 * KIB, GIB),
        "Buffer for received datagrams; when it is full, new ones are dropped and counted",
    ),
    unset("files.include", Kind::Globs(|c| &mut c.files.include), "Files to tail; empty disables it"),
    unset(
        "files.exclude",
        Kind::Globs(|c| &mut c.files.exclude),
        "Files to exclude, even if files.include matches them",
    ),
    key(
        "files.from",
        "beginning",
        Kind::Choice {
            words: &["beginning", "end"],
            get: |c| usize::from(c.files.from_end),
            set: |c, word| c.files.from_end = word == 1,
        },
        "Where to start reading files that exist at the first start; files that appear later are read from the beginning",
    ),
    unset(
        "files.host",
        Kind::Name(|c| &mut c.files.host),
        "Host of records that have none, such as the name of the node",
    ),
    key(
        "files.poll_ms",
        "200",
        number(U64(|c| &mut c.files.poll_ms), Millis, 10, MINUTE),
        "Interval between checks of the files for new data",
    ),
    key(
        "files.rescan_ms",
        "2s",
        number(U64(|c| &mut c.files.rescan_ms), Millis, 10, HOUR),
        "Interval between scans for new and rotated files",
    ),
    key(
        "files.open_max",
        "256",
        number(Usize(|c| &mut c.files.open_max), Count, 16, 100_000),
        "Maximum number of files kept open",
    ),
    unset(
        "multiline.start",
        Kind::Pattern(|c| &mut c.multiline.start),
        "Files and standard input: a line that does not match belongs to the record before it. Replaces multiline.stack_traces",
    ),
    key(
        "multiline.stack_traces",
        "true",
        Kind::Bool(|c| &mut c.multiline.stack_traces),
        "Files and standard input: the lines of a stack trace belong to the record before them",
    ),
    key(
        "multiline.timeout_ms",
        "500",
        number(U64(|c| &mut c.multiline.timeout_ms), Millis, 10, MINUTE),
        "How long a record waits for its next line",
    ),
    key(
        "multiline.bytes_max",
        "64KiB",
        number(Usize(|c| &mut c.multiline.bytes_max), Bytes, LINE_BYTES_MIN, FRAME_BYTES_MAX),
        "Maximum size of a record of several lines; a longer one is split",
    ),
    key(
        "log.level",
        "info",
        Kind::Filter(|c| &mut c.log.level),
        "Level of the program's own log, or a filter by module; `off` turns it off. Fatal errors are always printed. Also read from the variable `LOGWEIR_LOG`",
    ),
    key(
        "log.format",
        "text",
        Kind::Choice {
            words: &["text", "json"],
            get: |c| usize::from(c.log.json),
            set: |c, word| c.log.json = word == 1,
        },
        "Format of the program's own log",
    ),
];

/// One key of a section that can occur several times: `[formats.NAME]` or `[alerts.NAME]`.
#[derive(Clone, Copy, Debug)]
pub struct NamedKey {
    /// The section without the name: `formats` or `alerts`.
    pub section: &'static str,
    /// The key's name.
    pub name: &'static str,
    /// The default, in Markdown; empty if there is none.
    pub fallback: &'static str,
    /// Allowed values.
    pub allowed: &'static str,
    /// Description, in one line of Markdown.
    pub description: &'static str,
    /// Whether the value is a secret.
    pub is_secret: bool,
}

impl NamedKey {
    /// The path with `NAME` for the section's name: `alerts.NAME.query`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.NAME.{}", self.section, self.name)
    }
}

const fn named(
    section: &'static str,
    name: &'static str,
    fallback: &'static str,
    allowed: &'static str,
    description: &'static str,
) -> NamedKey {
    NamedKey { section, name, fallback, allowed, description, is_secret: false }
}

/// Keys of the sections that can occur several times.
pub static NAMED_KEYS: &[NamedKey] = &[
    named(
        "formats",
        "pattern",
        "required",
        "a regular expression with named groups",
        "Line format of your own. The groups `ts`, `level`, `service`, `host` and `message` are fields of the record, every \
         other group is an attribute; without `message`, the whole line is the message",
    ),
    named("alerts", "query", "required", "a query, `\"\"` for all records", "Records to count"),
    named(
        "alerts",
        "measure",
        "`count`",
        "one of count, rate, ratio",
        "Value to compare: records in the window, records per second, or the ratio of these records to those that match `of`",
    ),
    named("alerts", "of", "", "a query", "Only with the measure `ratio`: the records to divide by"),
    named(
        "alerts",
        "above",
        "required, or below",
        "a number, at least 0, such as 100 or 0.05",
        "The alert fires while the value is above this number",
    ),
    named(
        "alerts",
        "below",
        "required, or above",
        "a number, at least 0, such as 100 or 0.05",
        "The alert fires while the value is below this number",
    ),
    named("alerts", "window", "`5m`", "a time (ms, s, m, h, d) from 1s to 1d", "Time range that is evaluated"),
    named(
        "alerts",
        "every",
        "`10s`, at most the window",
        "a time (ms, s, m, h, d) from 100ms to 1d; the window is a multiple of it, at most 1000 times as long",
        "Interval between evaluations",
    ),
    named("alerts", "grace", "`10s`", "a time (ms, s, m, h, d) from 0 to 1d", "How long to wait for late records"),
    named(
        "alerts",
        "for",
        "`0`",
        "a time (ms, s, m, h, d) from 0 to 1d",
        "How long the value must stay beyond the threshold before the alert fires",
    ),
    NamedKey {
        is_secret: true,
        ..named(
            "alerts",
            "webhook",
            "alerting.webhook_url",
            "http://… or https://…",
            "Webhook URL of this alert, notified with a POST",
        )
    },
];

/// The key at `path`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The key of a section that can occur several times: for `alerts.cart.query`, the section's name `cart` and its key.
///
/// The name is whatever stands between the section and the key. It is validated later.
#[must_use]
pub fn find_named(path: &str) -> Option<(&str, &'static NamedKey)> {
    let (section, rest) = path.split_once('.')?;
    let (name, key) = rest.rsplit_once('.')?;
    Some((name, NAMED_KEYS.iter().find(|known| known.section == section && known.name == key)?))
}

/// Whether `section` is one that can occur several times.
#[must_use]
pub fn is_named_section(section: &str) -> bool {
    NAMED_KEYS.iter().any(|key| key.section == section)
}

/// The key that was most likely meant by an unknown `path`.
#[must_use]
pub fn nearest(path: &str) -> Option<&'static Key> {
    let path = path.to_lowercase().replace('-', "_");
    let (similarity, best) = KEYS
        .iter()
        .map(|key| (strsim::normalized_damerau_levenshtein(key.path, &path), key))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    if similarity > 0.75 {
        return Some(best);
    }
    // The right name in the wrong section, or a key used as a section.
    let name = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let misplaced = |key: &&Key| name(key.path) == name(&path) || path.starts_with(&format!("{}.", key.path));
    KEYS.iter().find(misplaced).or((similarity > 0.6).then_some(best))
}
