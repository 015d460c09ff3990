//! The one table of keys: what can be set, in which unit and range, with which default, and what it is for.
//!
//! Parsing, the check for unknown keys, the effective configuration and the README's reference are all read from it,
//! so a key cannot exist in one of them only.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{AuthMode, CacheUrl, Config, DatabaseUrl, HostPort, Role};
use crate::message::AckLevel;
use crate::token::Token;

/// Where in the typed [`Config`] a key's value stands.
pub type Lens<T> = fn(&mut Config) -> &mut T;

/// One key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its path, `section.name`, or the name alone at the top.
    pub path: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What holds where nobody says anything.
    pub fallback: Fallback,
    /// What it is for, in one line.
    pub doc: &'static str,
}

/// What holds where nobody says anything.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// This text, read as if it had been typed.
    Value(&'static str),
    /// It follows from other values or from the machine, in these words.
    Derived(&'static str),
    /// Nothing.
    Unset,
}

/// What a number counts. The plain number is in the unit that the key's name ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes: `65536`, `64KiB`.
    Bytes,
    /// Milliseconds: `50`, `50ms`, `5s`.
    Millis,
    /// Seconds: `60`, `60s`, `1d`.
    Seconds,
    /// Days: `7`, `7d`.
    Days,
}

/// A number's place and width.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// 16 bits.
    U16(Lens<u16>),
    /// 32 bits.
    U32(Lens<u32>),
    /// 64 bits.
    U64(Lens<u64>),
    /// As wide as memory.
    Usize(Lens<usize>),
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number from `min` to `max`, in the plain unit.
    Number {
        /// Where it goes.
        place: Place,
        /// What it counts.
        unit: Unit,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// `true` or `false`.
    Bool(Lens<bool>),
    /// One of some words.
    Choice {
        /// The words.
        words: &'static [&'static str],
        /// Which of them holds.
        get: fn(&Config) -> usize,
        /// Makes one of them hold.
        set: fn(&mut Config, usize),
    },
    /// `IP:PORT`.
    Address(Lens<SocketAddr>),
    /// `IP:PORT`, or none.
    OptionalAddress(Lens<Option<SocketAddr>>),
    /// A path.
    Path(Lens<PathBuf>),
    /// A path, or none.
    OptionalPath(Lens<Option<PathBuf>>),
    /// Secrets that a header can carry.
    Tokens(Lens<Vec<Token>>),
    /// An address that may hold a secret, or none.
    Webhook(Lens<Option<Token>>),
    /// Where the database is.
    Database(Lens<DatabaseUrl>),
    /// Where the database is, or none. Only `PostgreSQL` has replicas.
    OptionalDatabase(Lens<Option<DatabaseUrl>>),
    /// Where the cache is.
    Cache(Lens<CacheUrl>),
    /// A filter of log lines.
    Filter(Lens<String>),
    /// Paths with `*`, `**`, `?` and `[…]`.
    Globs(Lens<Vec<String>>),
    /// A regular expression, or none.
    Pattern(Lens<String>),
    /// A name, or none.
    Name(Lens<String>),
    /// Names of hosts, each with or without a port.
    Hosts(Lens<Vec<HostPort>>),
    /// A time zone by its IANA name.
    Zone(Lens<jiff::tz::TimeZone>),
}

impl Kind {
    /// Whether the value must not be shown, and may be given as a file.
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

/// A frame holds one payload; the rest of the MiB is more than the segment's and the frame's header will ever need.
const SEGMENT_BYTES_MIN: u64 = FRAME_BYTES_MAX + MIB;
const FRAME_BYTES_MAX: u64 = logweir_engine::codec::PAYLOAD_BYTES_MAX as u64;

const fn number(place: Place, unit: Unit, min: u64, max: u64) -> Kind {
    Kind::Number { place, unit, min, max }
}

const fn key(path: &'static str, fallback: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, fallback: Fallback::Value(fallback), doc }
}

const fn derived(path: &'static str, fallback: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, fallback: Fallback::Derived(fallback), doc }
}

const fn unset(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, fallback: Fallback::Unset, doc }
}

use Place::{U16, U32, U64, Usize};
use Unit::{Bytes, Count, Days, Millis, Seconds};

/// Every key, in the order in which people read about them.
pub static KEYS: &[Key] = &[
    key(
        "role",
        "all",
        Kind::Choice {
            words: &["all", "processor", "gateway"],
            get: |c| c.role as usize,
            set: |c, word| c.role = [Role::All, Role::Processor, Role::Gateway][word],
        },
        "processor: takes and stores records; gateway: page and query API; all: both",
    ),
    key(
        "data_dir",
        "logweir-data",
        Kind::Path(|c| &mut c.data_dir),
        "the volume: the journal lies here, and SQLite where that is the store",
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
        "when a request is answered that does not choose: admitted, on disk, or in the database",
    ),
    derived(
        "lanes",
        "3; 1 with SQLite, which has one writer",
        number(U16(|c| &mut c.lanes), Count, 1, 64),
        "units of order and of parallel flushing",
    ),
    key("http.listen", "127.0.0.1:8080", Kind::Address(|c| &mut c.http.listen), "intake, query API and web page"),
    derived(
        "http.workers",
        "half of the cores, at least 1",
        number(Usize(|c| &mut c.http.workers), Count, 1, 256),
        "threads that read requests",
    ),
    key(
        "http.connections_max",
        "1024",
        number(Usize(|c| &mut c.http.connections_max), Count, 1, 100_000),
        "open connections",
    ),
    key(
        "http.body_bytes_max",
        "8MiB",
        number(Usize(|c| &mut c.http.body_bytes_max), Bytes, KIB, FRAME_BYTES_MAX),
        "a request's body as it is sent; 413 above",
    ),
    key(
        "http.decompressed_bytes_max",
        "12MiB",
        number(Usize(|c| &mut c.http.decompressed_bytes_max), Bytes, KIB, FRAME_BYTES_MAX),
        "a request's body after decompression; 413 above",
    ),
    key(
        "http.line_bytes_max",
        "256KiB",
        number(Usize(|c| &mut c.http.line_bytes_max), Bytes, 256, FRAME_BYTES_MAX),
        "one record's line; longer lines are discarded and counted",
    ),
    key(
        "http.inflight_bytes_max",
        "64MiB",
        number(Usize(|c| &mut c.http.inflight_bytes_max), Bytes, KIB, 16 * GIB),
        "bodies being read, all together; 429 above",
    ),
    key(
        "http.request_timeout_ms",
        "30s",
        number(U64(|c| &mut c.http.request_timeout_ms), Millis, 100, 10 * MINUTE),
        "a request must have been read within this",
    ),
    key(
        "http.ack_timeout_ms",
        "10s",
        number(U64(|c| &mut c.http.ack_timeout_ms), Millis, 10, 10 * MINUTE),
        "how long an answer may wait for its ack level before 503",
    ),
    unset(
        "http.tls_cert_file",
        Kind::OptionalPath(|c| &mut c.http.tls_cert_file),
        "PEM: the certificate and what leads to its root; empty for plain HTTP. Read again when it changes",
    ),
    unset("http.tls_key_file", Kind::OptionalPath(|c| &mut c.http.tls_key_file), "PEM: the certificate's key"),
    unset(
        "http.tls_client_ca_file",
        Kind::OptionalPath(|c| &mut c.http.tls_client_ca_file),
        "PEM: clients must have a certificate of these",
    ),
    key("admin.listen", "127.0.0.1:9600", Kind::Address(|c| &mut c.admin.listen), "health, metrics, status and drain"),
    derived(
        "auth.mode",
        "token if any token is given, else none (on loopback only)",
        Kind::Choice {
            words: &["token", "none"],
            get: |c| usize::from(c.auth.mode == AuthMode::None),
            set: |c, word| c.auth.mode = [AuthMode::Token, AuthMode::None][word],
        },
        "whether requests need a bearer token; off loopback `none` must be said explicitly",
    ),
    unset(
        "auth.ingest_tokens",
        Kind::Tokens(|c| &mut c.auth.ingest_tokens),
        "tokens that may send records, as TOKEN or NAME=TOKEN",
    ),
    unset("auth.query_tokens", Kind::Tokens(|c| &mut c.auth.query_tokens), "tokens that may read records"),
    unset("auth.admin_tokens", Kind::Tokens(|c| &mut c.auth.admin_tokens), "tokens that may use the admin listener"),
    key(
        "auth.stamp_token",
        "false",
        Kind::Bool(|c| &mut c.auth.stamp_token),
        "each record gets the attribute logweir.token with the name of its sender's token",
    ),
    key(
        "limits.bytes_per_s",
        "0",
        number(U64(|c| &mut c.limits.bytes_per_s), Bytes, 0, 1 << 40),
        "bytes of bodies that one token may send in a second; 0 for any; 429 above",
    ),
    key(
        "limits.bytes_per_day",
        "0",
        number(U64(|c| &mut c.limits.bytes_per_day), Bytes, 0, 1 << 50),
        "bytes of bodies that one token may send in a day of UTC; 0 for any; 429 above",
    ),
    key(
        "batch.rows_max",
        "20000",
        number(Usize(|c| &mut c.batch.rows_max), Count, 1, 1_000_000),
        "a batch with this many records leaves",
    ),
    key(
        "batch.bytes_max",
        "8MiB",
        number(Usize(|c| &mut c.batch.bytes_max), Bytes, 64 * KIB, 256 * MIB),
        "a batch of this size leaves",
    ),
    key(
        "batch.linger_ms",
        "50",
        number(U64(|c| &mut c.batch.linger_ms), Millis, 0, MINUTE),
        "a batch of this age leaves",
    ),
    key(
        "journal.segment_bytes",
        "64MiB",
        number(U64(|c| &mut c.journal.segment_bytes), Bytes, SEGMENT_BYTES_MIN, GIB),
        "one segment file; holds at least one frame of the largest payload",
    ),
    key(
        "journal.quota_bytes",
        "4GiB",
        number(U64(|c| &mut c.journal.quota_bytes), Bytes, 4 * SEGMENT_BYTES_MIN, 64 << 40),
        "all files of the journal together; intake answers 503 above",
    ),
    key(
        "journal.ballast_bytes",
        "64MiB",
        number(U64(|c| &mut c.journal.ballast_bytes), Bytes, 0, GIB),
        "kept back so that a full disk can still be drained; 0 for none",
    ),
    key(
        "journal.queue_bytes_max",
        "32MiB",
        number(Usize(|c| &mut c.journal.queue_bytes_max), Bytes, FRAME_BYTES_MAX, GIB),
        "payloads that wait for the writer thread",
    ),
    key(
        "journal.retain_segments",
        "2",
        number(Usize(|c| &mut c.journal.retain_segments), Count, 0, 1000),
        "settled segments kept in case the database goes back in time",
    ),
    key(
        "journal.retain_s",
        "0s",
        number(U64(|c| &mut c.journal.retain_s), Seconds, 0, 365 * 86_400),
        "how long settled segments are kept for the same reason, as far as the quota has room",
    ),
    derived(
        "database.url",
        "sqlite:DATA_DIR/logweir.db",
        Kind::Database(|c| &mut c.database.url),
        "the log store; DATABASE_URL is understood too",
    ),
    unset(
        "database.read_url",
        Kind::OptionalDatabase(|c| &mut c.database.read_url),
        "where queries go, such as a replica; database.url if it is not given",
    ),
    key(
        "database.pool_size",
        "4",
        number(Usize(|c| &mut c.database.pool_size), Count, 1, 256),
        "connections for queries and administration; each lane has one of its own besides",
    ),
    key(
        "database.connect_timeout_ms",
        "5s",
        number(U64(|c| &mut c.database.connect_timeout_ms), Millis, 10, 5 * MINUTE),
        "how long a connection may take",
    ),
    key(
        "database.statement_timeout_ms",
        "60s",
        number(U64(|c| &mut c.database.statement_timeout_ms), Millis, 100, HOUR),
        "how long a statement may take",
    ),
    key(
        "database.retention_days",
        "0",
        number(U32(|c| &mut c.database.retention_days), Days, 0, 36_500),
        "older partitions are dropped; 0 keeps everything",
    ),
    key(
        "database.compress_after_days",
        "7",
        number(U32(|c| &mut c.database.compress_after_days), Days, 0, 36_500),
        "TimescaleDB only: when a chunk is compressed; 0 for never",
    ),
    key(
        "database.text_index",
        "true",
        Kind::Bool(|c| &mut c.database.text_index),
        "PostgreSQL without TimescaleDB: partitions of days that are over get an index for text (pg_trgm), as large as the text",
    ),
    unset(
        "database.ca_file",
        Kind::OptionalPath(|c| &mut c.database.ca_file),
        "PEM certificates to trust besides the system's",
    ),
    unset(
        "gateway.processors",
        Kind::Hosts(|c| &mut c.gateway.processors),
        "role gateway: where the processors are; a name that has several addresses stands for all of them",
    ),
    key(
        "gateway.lookup_ms",
        "5s",
        number(U64(|c| &mut c.gateway.lookup_ms), Millis, 100, HOUR),
        "how often the names are looked up",
    ),
    key(
        "gateway.timeout_ms",
        "2s",
        number(U64(|c| &mut c.gateway.timeout_ms), Millis, 10, 5 * MINUTE),
        "how long a processor may take to answer, and a name to be looked up",
    ),
    key(
        "gateway.requests_max",
        "16",
        number(Usize(|c| &mut c.gateway.requests_max), Count, 1, 1000),
        "processors that are asked at once; further ones wait",
    ),
    unset(
        "gateway.tls_ca_file",
        Kind::OptionalPath(|c| &mut c.gateway.tls_ca_file),
        "PEM: processors are asked over TLS, and must have a certificate of these for a name in gateway.processors",
    ),
    unset(
        "gateway.tls_cert_file",
        Kind::OptionalPath(|c| &mut c.gateway.tls_cert_file),
        "PEM: the certificate that processors are shown",
    ),
    unset("gateway.tls_key_file", Kind::OptionalPath(|c| &mut c.gateway.tls_key_file), "PEM: the certificate's key"),
    key("cache.url", "memory:", Kind::Cache(|c| &mut c.cache.url), "the hot cache; REDIS_URL is understood too"),
    key(
        "cache.recent_records",
        "1000",
        number(Usize(|c| &mut c.cache.recent_records), Count, 1, 100_000),
        "records kept per service",
    ),
    key(
        "cache.recent_records_per_s",
        "20000",
        number(Usize(|c| &mut c.cache.recent_records_per_s), Count, 1, 10_000_000),
        "records that enter the windows in a second; at a higher rate the newest of each batch do",
    ),
    key(
        "cache.services_max",
        "1000",
        number(Usize(|c| &mut c.cache.services_max), Count, 1, 1_000_000),
        "services kept; the least recent goes",
    ),
    key(
        "cache.timeout_ms",
        "500",
        number(U64(|c| &mut c.cache.timeout_ms), Millis, 1, MINUTE),
        "how long a command may take",
    ),
    key(
        "cache.ttl_s",
        "1d",
        number(U64(|c| &mut c.cache.ttl_s), Seconds, 1, 365 * 86_400),
        "entries that nobody renews go after this",
    ),
    key(
        "query.timeout_ms",
        "30s",
        number(U64(|c| &mut c.query.timeout_ms), Millis, 10, HOUR),
        "how long a query may take; 504 after it",
    ),
    key(
        "query.running_max",
        "4",
        number(Usize(|c| &mut c.query.running_max), Count, 1, 256),
        "queries that run at once, each on a connection of database.pool_size",
    ),
    key(
        "query.waiting_max",
        "32",
        number(Usize(|c| &mut c.query.waiting_max), Count, 0, 10_000),
        "queries that wait for their turn; 429 above",
    ),
    key(
        "query.streams_max",
        "8",
        number(Usize(|c| &mut c.query.streams_max), Count, 1, 10_000),
        "answers that are streamed at once; 429 above",
    ),
    key(
        "query.page_bytes_max",
        "4MiB",
        number(Usize(|c| &mut c.query.page_bytes_max), Bytes, 64 * KIB, 64 * MIB),
        "a page of records ends when it has so many bytes",
    ),
    key(
        "tail.clients_max",
        "32",
        number(Usize(|c| &mut c.tail.clients_max), Count, 0, 1000),
        "live tails at once; 429 above",
    ),
    key(
        "tail.buffer_bytes",
        "8MiB",
        number(Usize(|c| &mut c.tail.buffer_bytes), Bytes, 64 * KIB, GIB),
        "newest records, kept once for all tails; who falls behind them is told how many went past unseen",
    ),
    key(
        "tail.records_per_s",
        "10000",
        number(Usize(|c| &mut c.tail.records_per_s), Count, 1, 10_000_000),
        "records that one tail gets in a second; how many more there were is told",
    ),
    unset(
        "alerting.webhook_url",
        Kind::Webhook(|c| &mut c.alerting.webhook_url),
        "where alerts are told that name no webhook of their own; alerts are sections [alerts.NAME] of the file",
    ),
    key(
        "shutdown.linger_ms",
        "0",
        number(U64(|c| &mut c.shutdown.linger_ms), Millis, 0, 10 * MINUTE),
        "intake goes on this long after readiness has turned 503; 5s behind a load balancer",
    ),
    key(
        "shutdown.deadline_ms",
        "25s",
        number(U64(|c| &mut c.shutdown.deadline_ms), Millis, 1, HOUR),
        "how long the flusher may go on after SIGTERM",
    ),
    key(
        "parse.time_zone",
        "UTC",
        Kind::Zone(|c| &mut c.parse.time_zone),
        "the zone of times that name none, such as `Europe/Berlin`",
    ),
    key(
        "sources.stdin",
        "false",
        Kind::Bool(|c| &mut c.sources.stdin),
        "read lines from standard input; its end drains and exits",
    ),
    key(
        "sources.demo_rate",
        "0",
        number(U32(|c| &mut c.sources.demo_rate), Count, 0, 10_000_000),
        "records per second of made-up services; 0 for none",
    ),
    unset(
        "syslog.tcp_listen",
        Kind::OptionalAddress(|c| &mut c.syslog.tcp_listen),
        "syslog over TCP, octet-counted frames and lines; empty for off",
    ),
    unset(
        "syslog.udp_listen",
        Kind::OptionalAddress(|c| &mut c.syslog.udp_listen),
        "syslog over UDP, one message per datagram; empty for off",
    ),
    unset(
        "syslog.tls_listen",
        Kind::OptionalAddress(|c| &mut c.syslog.tls_listen),
        "syslog over TLS (RFC 5425); empty for off",
    ),
    unset(
        "syslog.tls_cert_file",
        Kind::OptionalPath(|c| &mut c.syslog.tls_cert_file),
        "PEM: the TLS listener's certificate and what leads to its root",
    ),
    unset("syslog.tls_key_file", Kind::OptionalPath(|c| &mut c.syslog.tls_key_file), "PEM: the certificate's key"),
    unset(
        "syslog.client_ca_file",
        Kind::OptionalPath(|c| &mut c.syslog.client_ca_file),
        "PEM: senders on the TLS listener must have a certificate of these",
    ),
    key(
        "syslog.connections_max",
        "128",
        number(Usize(|c| &mut c.syslog.connections_max), Count, 1, 10_000),
        "open connections, TCP and TLS together; further ones are closed and counted",
    ),
    key(
        "syslog.message_bytes_max",
        "64KiB",
        number(Usize(|c| &mut c.syslog.message_bytes_max), Bytes, KIB, MIB),
        "one message; longer ones are discarded and counted",
    ),
    key(
        "syslog.idle_timeout_ms",
        "1h",
        number(U64(|c| &mut c.syslog.idle_timeout_ms), Millis, SECOND, 24 * HOUR),
        "a connection on which nothing comes for so long is closed",
    ),
    key(
        "syslog.udp_buffer_bytes",
        "8MiB",
        number(Usize(|c| &mut c.syslog.udp_buffer_bytes), Bytes, 64 * KIB, GIB),
        "datagrams that wait; further ones are dropped and counted",
    ),
    unset("files.include", Kind::Globs(|c| &mut c.files.include), "files that are tailed; none for off"),
    unset("files.exclude", Kind::Globs(|c| &mut c.files.exclude), "files that are left out of it"),
    key(
        "files.from",
        "beginning",
        Kind::Choice {
            words: &["beginning", "end"],
            get: |c| usize::from(c.files.from_end),
            set: |c, word| c.files.from_end = word == 1,
        },
        "where files are begun that are there at the very first start; later ones are read from the beginning",
    ),
    unset(
        "files.host",
        Kind::Name(|c| &mut c.files.host),
        "the host of records that name none, such as the node's name",
    ),
    key(
        "files.poll_ms",
        "200",
        number(U64(|c| &mut c.files.poll_ms), Millis, 10, MINUTE),
        "how often the files are looked at",
    ),
    key(
        "files.rescan_ms",
        "2s",
        number(U64(|c| &mut c.files.rescan_ms), Millis, 10, HOUR),
        "how often the globs are looked through for new and rotated files",
    ),
    key(
        "files.open_max",
        "256",
        number(Usize(|c| &mut c.files.open_max), Count, 16, 100_000),
        "descriptors that are kept open",
    ),
    unset(
        "multiline.start",
        Kind::Pattern(|c| &mut c.multiline.start),
        "files and standard input: a line that does not match belongs to the record before; instead of stack_traces",
    ),
    key(
        "multiline.stack_traces",
        "true",
        Kind::Bool(|c| &mut c.multiline.stack_traces),
        "files and standard input: the lines of a stack trace belong to the record before",
    ),
    key(
        "multiline.timeout_ms",
        "500",
        number(U64(|c| &mut c.multiline.timeout_ms), Millis, 10, MINUTE),
        "how long a record waits for its next line",
    ),
    key(
        "multiline.bytes_max",
        "64KiB",
        number(Usize(|c| &mut c.multiline.bytes_max), Bytes, 256, FRAME_BYTES_MAX),
        "a record that would become longer is ended, and begun anew",
    ),
    key(
        "log.level",
        "info",
        Kind::Filter(|c| &mut c.log.level),
        "the program's own lines: a level, or a filter such as `info,logweir=debug`",
    ),
    key(
        "log.format",
        "text",
        Kind::Choice {
            words: &["text", "json"],
            get: |c| usize::from(c.log.json),
            set: |c, word| c.log.json = word == 1,
        },
        "how they are written",
    ),
];

/// The key at `path`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The key that somebody who typed `path` most likely meant.
#[must_use]
pub fn nearest(path: &str) -> Option<&'static Key> {
    let path = path.to_lowercase().replace('-', "_");
    let (likeness, likest) = KEYS
        .iter()
        .map(|key| (strsim::normalized_damerau_levenshtein(key.path, &path), key))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    if likeness > 0.75 {
        return Some(likest);
    }
    // The right name in the wrong section, or a key used as a section.
    let name = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let misplaced = |key: &&Key| name(key.path) == name(&path) || path.starts_with(&format!("{}.", key.path));
    KEYS.iter().find(misplaced).or((likeness > 0.6).then_some(likest))
}
