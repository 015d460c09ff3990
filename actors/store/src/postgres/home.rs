//! The schema of the tables.
//!
//! `search_path` decides it once per process. From then on each statement names it: what comes to stand before the tables
//! while lanes are open (`ALTER ROLE … SET search_path`, a schema with the role's name, a temporary table) neither gets
//! rows nor stops a lane. Refused: setting `search_path`, which for a session would reach other clients of a pooler.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::{Relation, quoted};
use crate::error::StoreError;

/// The tables that identify records: if one is missing, ids would be used again.
pub(super) const IDENTITY: [&str; 2] = ["logweir_writer", "logweir_lane"];

/// The schema of the tables; displayed quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home(Arc<str>);

/// What this process knows of it.
#[derive(Clone, Default)]
pub(super) struct KnownHome {
    home: Arc<Mutex<Option<Home>>>,
    told: Arc<Mutex<String>>,
}

impl Home {
    pub(super) fn new(schema: &str) -> Self {
        Self(schema.into())
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// The table `name` in it.
    pub(super) fn table(&self, name: &str) -> Relation {
        Relation { schema: self.0.to_string(), name: name.to_owned() }
    }

    /// The statement `template`, which writes the schema as `$home`.
    pub(super) fn sql(&self, template: &str) -> String {
        template.replace("$home", &quoted(&self.0))
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(&self.0))
    }
}

impl KnownHome {
    pub(super) fn get(&self) -> Option<Home> {
        self.lock().clone()
    }

    pub(super) fn set(&self, home: Home) {
        *self.lock() = Some(home);
    }

    /// Returns the schema; asks `search_path` if it is not known yet.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if there are no tables.
    pub(super) async fn find(&self, client: &Client) -> Result<Home, StoreError> {
        const FIND: &str = "SELECT n.nspname::text FROM unnest(current_schemas(false)) WITH ORDINALITY AS s (name, place) \
            JOIN pg_namespace n ON n.nspname = s.name JOIN pg_class c ON c.relnamespace = n.oid \
            WHERE c.relname IN ('logweir_writer', 'logweir_lane') ORDER BY s.place LIMIT 1";
        if let Some(home) = self.get() {
            return Ok(home);
        }
        let Some(row) = client.query_typed_opt(FIND, &[]).await.map_err(failed("looking for the tables"))? else {
            return Err(StoreError::Systemic(
                "search_path finds no tables of logweir: `logweir database prepare` creates them, and so does a server that \
                 stores; if they exist, add their schema to the search_path of the role or of database.url \
                 (options=-c search_path=…)"
                    .to_owned(),
            ));
        };
        let home = Home::new(row.get(0));
        self.set(home.clone());
        Ok(home)
    }

    /// Whether this message differs from the last one: each lane looks at the tables, and all find the same.
    pub(super) fn is_news(&self, text: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *told != text;
        text.clone_into(&mut told);
        is_news
    }

    fn lock(&self) -> MutexGuard<'_, Option<Home>> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_names_the_schema() {
        let odd = Home::new("Other \"schema\"");
        assert_eq!(odd.sql("SELECT FROM $home.logs"), r#"SELECT FROM "Other ""schema""".logs"#);
        assert_eq!(odd.table("logs").to_string(), r#""Other ""schema"""."logs""#);
    }
}
