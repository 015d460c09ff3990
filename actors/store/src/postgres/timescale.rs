//! TimescaleDB in this database: whether it is there, whether it can be, and how its functions are called.
//!
//! Its catalogs are shared by all schemas of a database: an object in them is identified by schema *and* name. Its
//! functions are in the schema of the extension, which need not be in `search_path`.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::ddl::{Relation, quoted};
use crate::error::StoreError;

/// The extension of this database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timescale {
    /// The schema of its functions.
    schema: String,
    pub(super) version: String,
    /// The Apache edition, which has no jobs and no compression.
    pub(super) is_apache: bool,
}

/// The oldest version whose compression logweir sets: older ones refuse another order while chunks are compressed, and no
/// test has met them.
const OLDEST: (u32, u32) = (2, 17);

/// The first version whose sparse indexes can be named.
const SPARSE_INDEXES: (u32, u32) = (2, 22);

/// Whether the extension can be created in a database that lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Installed {
    /// It is created already, or not installed.
    No,
    /// Its files are there, and the server has not loaded its library: CREATE EXTENSION would end the session.
    NotPreloaded,
    /// Yes.
    Preloaded,
}

impl Timescale {
    /// Looks for the extension.
    pub(super) async fn find(client: &Client) -> Result<Option<Self>, Error> {
        const SQL: &str = "SELECT n.nspname::text, e.extversion::text, \
            coalesce(current_setting('timescaledb.license', true) = 'apache', false) FROM pg_extension e \
            JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb'";
        let row = client.query_typed_opt(SQL, &[]).await?;
        Ok(row.map(|row| Self { schema: row.get(0), version: row.get(1), is_apache: row.get(2) }))
    }

    /// Whether logweir sets the compression of this version.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if it is too old.
    pub(super) fn check_version(&self) -> Result<(), StoreError> {
        if self.numbers() >= OLDEST {
            return Ok(());
        }
        let (major, minor) = OLDEST;
        Err(StoreError::Systemic(format!(
            "TimescaleDB {} is older than {major}.{minor}, the oldest version on which logweir sets the compression: chunks \
             stay as they are. Install a later one, then ALTER EXTENSION timescaledb UPDATE",
            self.version
        )))
    }

    /// Whether the sparse indexes of compressed chunks can be named.
    pub(super) fn has_sparse_indexes(&self) -> bool {
        self.numbers() >= SPARSE_INDEXES
    }

    fn numbers(&self) -> (u32, u32) {
        let mut numbers = self.version.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or_default());
        (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
    }

    /// The function or procedure `name`, with its schema.
    pub(super) fn function(&self, name: &str) -> String {
        format!("{}.{name}", quoted(&self.schema))
    }

    /// Whether it has the function or procedure `name`: later versions have new names for some.
    pub(super) async fn has(&self, client: &Client, name: &str) -> Result<bool, Error> {
        const SQL: &str = "SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
            WHERE n.nspname = $1 AND p.proname = $2)";
        Ok(client.query_one(SQL, &[&self.schema, &name]).await?.get(0))
    }
}

/// Looks whether the extension can be created. Its library's own setting says whether it is loaded:
/// `shared_preload_libraries` can be read by few roles.
pub(super) async fn installed(client: &Client) -> Result<Installed, Error> {
    const SQL: &str = "SELECT EXISTS (SELECT FROM pg_available_extensions \
        WHERE name = 'timescaledb' AND installed_version IS NULL), \
        EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers')";
    let row = client.query_typed_one(SQL, &[]).await?;
    Ok(match (row.get(0), row.get(1)) {
        (false, _) => Installed::No,
        (true, false) => Installed::NotPreloaded,
        (true, true) => Installed::Preloaded,
    })
}

/// Whether TimescaleDB divides `table`. A database can use TimescaleDB for other tables only.
pub(super) async fn is_hypertable(client: &Client, table: &Relation) -> Result<bool, Error> {
    let view = "SELECT to_regclass('timescaledb_information.hypertables') IS NOT NULL";
    if !client.query_typed_one(view, &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let found = "SELECT FROM timescaledb_information.hypertables \
        WHERE hypertable_schema::text = $1 AND hypertable_name::text = $2";
    let name: [(&(dyn ToSql + Sync), Type); 2] = [(&table.schema, Type::TEXT), (&table.name, Type::TEXT)];
    Ok(client.query_typed_opt(found, &name).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_the_schema_of_the_extension() {
        let timescale = Timescale { schema: "Ext".to_owned(), version: String::new(), is_apache: false };
        assert_eq!(timescale.function("drop_chunks"), "\"Ext\".drop_chunks");
    }

    #[test]
    fn an_old_version_is_refused_by_name() {
        let check = |version: &str| {
            Timescale { schema: String::new(), version: version.to_owned(), is_apache: false }.check_version()
        };
        for version in ["2.17.0", "2.28.3", "2.100.0-dev", "3.0"] {
            assert!(check(version).is_ok(), "{version}");
        }
        let has_sparse = |version: &str| {
            let (schema, version) = (String::new(), version.to_owned());
            Timescale { schema, version, is_apache: false }.has_sparse_indexes()
        };
        assert_eq!(["2.21.4", "2.22.0", "2.28.3"].map(has_sparse), [false, true, true]);
        for version in ["2.16.1", "1.99.0"] {
            assert!(
                check(version).unwrap_err().to_string().contains(&format!("TimescaleDB {version} is older than 2.17"))
            );
        }
    }
}
