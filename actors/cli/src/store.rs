//! The database, for commands that use it without a server.

use std::sync::Arc;

use logweir_store::{self as store, Database, DatabaseUrl, LogStore};

use crate::exit;
use crate::failure::Failure;

/// The configured store, which a server must have created: these commands neither migrate the schema nor create a file.
pub(super) fn open_store(database: &Database) -> Result<Arc<dyn LogStore>, Failure> {
    if let DatabaseUrl::Sqlite(path) = &database.url
        && !path.is_file()
    {
        let message =
            format!("database file {} does not exist: start the server first, or set database.url", path.display());
        return Err(Failure::new(exit::UNAVAILABLE, message));
    }
    Ok(store::open(database).map_err(Failure::store)?.store())
}

/// Runs `future` on this thread.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::UNAVAILABLE, format!("cannot start a runtime: {error}")))?;
    Ok(runtime.block_on(future))
}
