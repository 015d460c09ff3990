//! Which store, and how it is used.

use std::path::PathBuf;

/// Which store, and how it is used: what [`open`](crate::open) opens. The fields are named like the keys of logweir's
/// configuration without `database.`; messages use the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Database {
    /// The store.
    pub url: DatabaseUrl,
    /// File that `url` was read from. It is read again for each connection, so that its password can be changed;
    /// PostgreSQL only.
    pub url_file: Option<PathBuf>,
    /// A PostgreSQL server for queries, such as a replica; `None` uses `url`.
    pub read_url: Option<DatabaseUrl>,
    /// File that `read_url` was read from; as `url_file`.
    pub read_url_file: Option<PathBuf>,
    /// Maximum number of connections for queries; PostgreSQL only.
    pub pool_size: usize,
    /// Time limit for connecting, in milliseconds; PostgreSQL only.
    pub connect_timeout_ms: u64,
    /// Age in seconds at which a connection is replaced by a new one; PostgreSQL only.
    pub connection_age_max_s: u64,
    /// Time limit for a statement, in milliseconds; PostgreSQL only.
    pub statement_timeout_ms: u64,
    /// Age in days at which records are deleted, by event time; 0 keeps everything.
    pub retention_days: u32,
    /// Age in days at which TimescaleDB compresses a chunk; 0 disables it.
    pub compress_after_days: u32,
    /// Whether records are compressed while they are stored. `TimescaleDB` 2.21 and later only.
    pub direct_compress: bool,
    /// Seconds that a chunk has; 0 decides by the rate. `TimescaleDB` only.
    pub chunk_interval_s: u32,
    /// Days before the present from which on a record is late: TimescaleDB stores it beside the chunks first.
    pub late_after_days: u32,
    /// Days after the present from which on a record is handled as a late one.
    pub early_after_days: u32,
    /// Whether the partitions of past days get a text index; PostgreSQL without TimescaleDB only.
    pub text_index: bool,
    /// Whether the server maintains the tables: partitions, retention, indexes. False for a role that may only read and
    /// write rows.
    pub maintenance: bool,
    /// PEM file with CA certificates of the servers, in addition to the system's, unless a URL has `sslrootcert`; PostgreSQL
    /// only.
    pub ca_file: Option<PathBuf>,
}

impl Database {
    /// The store at `url` with the defaults: 4 connections for queries, 5 s for connecting, connections replaced after
    /// half an hour, 60 s for a statement, records kept forever, chunks compressed after 7 days, records late after 7 days
    /// and early by 1 day, text indexes, maintenance, no CA file.
    #[must_use]
    pub fn new(url: DatabaseUrl) -> Self {
        Self {
            url,
            url_file: None,
            read_url: None,
            read_url_file: None,
            pool_size: 4,
            connect_timeout_ms: 5_000,
            connection_age_max_s: 1_800,
            statement_timeout_ms: 60_000,
            retention_days: 0,
            compress_after_days: 7,
            direct_compress: false,
            chunk_interval_s: 0,
            late_after_days: 7,
            early_after_days: 1,
            text_index: true,
            maintenance: true,
            ca_file: None,
        }
    }
}

/// URL of a store. Its `Debug` output hides the password.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatabaseUrl {
    /// `sqlite:PATH`
    Sqlite(PathBuf),
    /// `postgres://…` or `host=… dbname=…`, as written; may contain a password.
    Postgres(String),
    /// `blackhole:`, for measurements: accepts every record and stores none.
    Blackhole,
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres://***"),
            Self::Blackhole => f.write_str("blackhole:"),
        }
    }
}
