//! Which store, and how it is used.

use std::path::PathBuf;

/// The log store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// `database.url`
    pub url: DatabaseUrl,
    /// `database.read_url`: database for queries; `None` uses `url`.
    pub read_url: Option<DatabaseUrl>,
    /// `database.pool_size`: connections for queries and administration (4).
    pub pool_size: usize,
    /// `database.connect_timeout_ms`: time limit for connecting (5 s).
    pub connect_timeout_ms: u64,
    /// `database.statement_timeout_ms`: time limit for a statement (60 s).
    pub statement_timeout_ms: u64,
    /// `database.retention_days`: age at which partitions are dropped; 0 keeps everything.
    pub retention_days: u32,
    /// `database.compress_after_days`: age at which TimescaleDB compresses a chunk (7); 0 disables it.
    pub compress_after_days: u32,
    /// `database.text_index`: whether the partitions of past days get a text index (true).
    pub text_index: bool,
    /// `database.ca_file`: PEM with CA certificates to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
}

/// URL of the log store.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// `sqlite:PATH`
    Sqlite(PathBuf),
    /// `postgres://…`, as written; may contain a password.
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
