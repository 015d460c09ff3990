//! The privileges that a role needs, as statements.

use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::quoted;
use crate::error::StoreError;

/// What a role is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Store records: `database.url` of a server whose `database.maintenance` is false.
    Storing,
    /// Answer queries: `database.read_url`.
    Reading,
    /// Create and maintain the tables: `database.url` of any other server, and of `logweir database prepare`.
    Maintenance,
}

/// Where the tables are, or will be.
struct Place {
    database: String,
    schema: String,
    /// The owner of the tables, or the connected role.
    owner: String,
    exists: bool,
}

/// Tables and what storing needs on them. Partitions need nothing: they are used through `logs`.
const STORING: [(&str, &str); 8] = [
    ("logs", "SELECT, INSERT"),
    ("log_volume", "SELECT, INSERT, UPDATE"),
    ("logweir_lane", "SELECT, INSERT, UPDATE"),
    ("logweir_writer", "SELECT, INSERT, UPDATE"),
    ("logweir_takeover", "SELECT, INSERT"),
    ("logweir_dead_letter", "SELECT, INSERT, DELETE"),
    ("logweir_replayed", "SELECT, INSERT, UPDATE"),
    ("logweir_schema_history", "SELECT"),
];
/// What queries need.
const READING: [(&str, &str); 4] =
    [("logs", "SELECT"), ("log_volume", "SELECT"), ("logweir_lane", "SELECT"), ("logweir_writer", "SELECT")];

/// The statements that let `role` do what `purpose` says.
pub(super) async fn grants(client: &Client, role: &str, purpose: Purpose) -> Result<Vec<String>, StoreError> {
    let row = client
        .query_one(
            "SELECT current_database()::text, coalesce(n.nspname, current_schema())::text, \
             coalesce(pg_get_userbyid(c.relowner), current_user)::text, c.oid IS NOT NULL \
             FROM (SELECT to_regclass('logs')::oid AS oid) logs LEFT JOIN pg_class c ON c.oid = logs.oid \
             LEFT JOIN pg_namespace n ON n.oid = c.relnamespace",
            &[],
        )
        .await
        .map_err(failed("looking for the tables"))?;
    let Some(schema) = row.get(1) else {
        return Err(StoreError::Systemic("no schema of search_path exists: create it (CREATE SCHEMA …)".to_owned()));
    };
    let place = Place { database: row.get(0), schema, owner: row.get(2), exists: row.get(3) };
    Ok(statements(&place, role, purpose))
}

fn statements(place: &Place, role: &str, purpose: Purpose) -> Vec<String> {
    let Place { database, schema, owner, exists } = place;
    let (database, schema, owner, role) = (quoted(database), quoted(schema), quoted(owner), quoted(role));
    let connect = format!("GRANT CONNECT ON DATABASE {database} TO {role};");
    let usage = format!("GRANT USAGE ON SCHEMA {schema} TO {role};");
    // For tables that do not exist yet, or are dropped and made again.
    let later = |rights: &str| {
        format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT {rights} ON TABLES TO {role};")
    };
    let on_tables = |tables: &[(&str, &str)]| -> Vec<String> {
        let of = |(table, rights): &(&str, &str)| format!("GRANT {rights} ON {schema}.{} TO {role};", quoted(table));
        if *exists { tables.iter().map(of).collect() } else { Vec::new() }
    };
    match purpose {
        Purpose::Storing => {
            [vec![connect, usage], on_tables(&STORING), vec![later("SELECT, INSERT, UPDATE, DELETE")]].concat()
        }
        Purpose::Reading => [vec![connect, usage], on_tables(&READING), vec![later("SELECT")]].concat(),
        Purpose::Maintenance => {
            // CREATE on the database is for the extension pg_trgm.
            let create = format!("GRANT CREATE ON DATABASE {database} TO {role};");
            let mut all = vec![connect, create, format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};")];
            if *exists && owner != role {
                // To change and drop tables takes their owner; a member of the owner counts as one.
                all.push(format!("GRANT {owner} TO {role};"));
            }
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(exists: bool) -> Place {
        Place { database: "db".to_owned(), schema: "s".to_owned(), owner: "o".to_owned(), exists }
    }

    #[test]
    fn a_role_gets_what_its_purpose_needs() {
        let storing = statements(&place(true), "r", Purpose::Storing);
        assert_eq!(storing.len(), 3 + STORING.len());
        assert!(storing.contains(&r#"GRANT SELECT, INSERT ON "s"."logs" TO "r";"#.to_owned()), "{storing:?}");
        assert_eq!(statements(&place(true), "r", Purpose::Reading).len(), 3 + READING.len());
        let maintenance = statements(&place(true), "r", Purpose::Maintenance);
        assert_eq!(maintenance.last().unwrap(), r#"GRANT "o" TO "r";"#);
        assert!(!statements(&place(true), "o", Purpose::Maintenance).iter().any(|line| line.contains(r#"GRANT "o""#)));
    }

    #[test]
    fn tables_that_do_not_exist_yet_get_default_privileges_only() {
        let storing = statements(&place(false), "r", Purpose::Storing);
        assert_eq!(storing.len(), 3, "{storing:?}");
        assert!(storing[2].starts_with(r#"ALTER DEFAULT PRIVILEGES FOR ROLE "o" IN SCHEMA "s" GRANT SELECT, INSERT"#));
    }
}
