// The example in the README stores in SQLite.
#![cfg_attr(feature = "sqlite", doc = include_str!("../README.md"))]
//!
//! # Code map
//!
//! Each module uses only those above it in this list; so do the files of a folder.
//!
//! ```text
//! settings           which store, and how it is used
//! digest             which frame a lane is at, or in
//! lane               a lane's row: cursor and counters; ids of records
//! error              why a store failed, by what must happen next
//! batch              consecutive frames of a lane that commit together
//! lease              a run's claim to a writer, the lease, and where an overtaken copy forks
//! dead_letter        a record that the database rejected
//! maintenance        steps that keep the tables in order, each of which may fail alone
//! store              the traits: what a store and a lane's connection do
//! throttle/          queries yield to flushes while the database is behind
//!   gate             whether they yield, and which query may read next
//!   pause            durations of reads and pauses
//!   pieces           reads that wait for a server
//!   thread           reads on a thread of their own
//! read               the trait of the read side, its requests and results
//! volume             counts records per service, minute and severity
//! replay             dead letters as JSON, and their replay
//! telemetry          metrics that every store has
//! protocol/          what every database shares of the exactly-once protocol
//!   migrations       which SQL files a database still needs
//!   clock            the time by which records expire
//!   takeover         who may acquire a lease, which lanes are reset, where a copy forks
//!   cursor           why a compare-and-set matched no row
//!   rows             the rows of a batch, with their ids
//!   requests         which records repeat a request that another frame has stored
//!   key_age          which idempotency keys have expired
//!   raw_record       a dead letter's record as text
//!   volume_counter   the counters of a batch
//!   sample           a record that the table accepts, to try whether it accepts any
//!   driver/          the order of the statements, for any database
//!     statements     what a database contributes
//!     flush          one lane's transactions; which rows are dead letters
//!     lease          acquires a lease, opens lanes
//! blackhole          a store that discards everything
//! postgres/          PostgreSQL and TimescaleDB
//!   types            timestamptz and jsonb, binary
//!   error_class      SQLSTATEs: retry, an operator must act (and how), or one bad row
//!   connection_string  what a URL or `key=value` pairs say
//!   access           certificates and passwords, read again for each connection
//!   backend          the server process of a connection, as announced
//!   pooler           whether a pooler assigns server processes per session
//!   connect          connections, and their errors
//!   patience         how long an answer is waited for before a new connection is tried
//!   pool             pools for queries and administration
//!   ddl              statements that change tables: names, transactions, what to do about failures
//!   home             the schema of the tables
//!   lane_row         reads the rows of lanes and writers
//!   moving           rows from the default partition to a new one, seen by subscribers
//!   partition        daily partitions, retention, replica identities
//!   index            indexes of closed partitions
//!   policy           TimescaleDB's own jobs
//!   clock            the trusted time in the database
//!   idempotency      what is stored of each request that may be repeated
//!   takeover_digest  a column that tables of an earlier version lack
//!   schema           the tables that a flush needs
//!   grants           the privileges that a role needs, as statements
//!   maintain         a round of maintenance: its steps, on one connection
//!   copy             rows in binary COPY format
//!   flush            statements of a flush, on a lane's connection
//!   lease            statements that acquire a lease and open lanes
//!   dead_letters     reads and replays dead letters
//!   filter           filters as SQL
//!   read_error       why a query failed
//!   read             queries
//!   store            the store, made of the files above
//! sqlite/            SQLite
//!   file             whether the file is still there, and the size of its write-ahead log
//!   connection       sizes, errors, blocking threads
//!   clock            the trusted time in the file
//!   idempotency      what is stored of each request that may be repeated
//!   schema           migrations
//!   retention        deletes expired records
//!   lane_row         reads the rows of lanes and writers
//!   session          a transaction whose statements complete at once
//!   lease            statements that acquire a lease and open lanes
//!   flush            statements of a flush
//!   dead_letters     reads and replays dead letters
//!   read             queries
//!   store            the store, made of the files above
//! open               opens the store that a URL names
//! bench              internals for the benchmarks (feature `bench`)
//! ```
//!
//! # Why a takeover can reset a lane
//!
//! A journal can be older than the database (a restored volume snapshot, or a disk that lost confirmed writes at power
//! loss). A lane's cursor is then above the journal's tail, and new frames would be mistaken for stored ones. Acquiring
//! the lease resets such a lane: it restarts at the tail under a new `lane_id`.

mod settings;
mod digest;
mod lane;
mod error;
mod batch;
mod lease;
mod dead_letter;
mod maintenance;
mod store;
pub mod throttle;
pub mod read;
pub mod volume;
pub mod replay;
mod telemetry;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod protocol;
pub mod blackhole;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod open;
#[cfg(feature = "__bench")]
#[doc(hidden)]
pub mod bench;

pub use self::batch::{Batch, BatchFrame, Gap};
pub use self::dead_letter::DeadLetter;
pub use self::digest::Digest;
pub use self::error::{Rejection, StoreError};
pub use self::lane::{Flushed, LaneRow, LaneStart, ORDINAL_BITS, Position, StoredCount, id_of};
pub use self::lease::{Claim, ForkLane, ForkPoint, Lease};
pub use self::maintenance::MaintenanceStep;
pub use self::open::{AnyStore, open};
pub use self::settings::{Database, DatabaseUrl};
pub use self::store::{LaneWriter, LogStore};
