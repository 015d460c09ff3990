//! PostgreSQL and TimescaleDB.
//!
//! Each lane flushes over its own long-lived connection (`flush`). Lease acquisition, preparation and maintenance use
//! short-lived connections; queries and administration use two small pools.

mod types;
mod error_class;
mod connect;
mod pool;
mod lane_row;
mod ddl;
mod partition;
mod index;
mod policy;
mod grants;
mod schema;
mod maintain;
mod lease;
pub(crate) mod copy;
mod flush;
mod dead_letters;
mod filter;
mod read_error;
mod read;
mod store;

pub use self::grants::Purpose;
pub use self::store::PostgresStore;
