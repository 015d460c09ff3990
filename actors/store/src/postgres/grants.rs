//! The privileges that a role needs, as statements, and no more than these: default privileges would give a role that
//! stores the right to change each later partition, and one that reads the dead letters.

use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::quoted;
use super::logs::{FORMER, LATE, find_division, find_late};
use super::view::FUNCTION;
use super::{clock, idempotency, schema};
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
    /// Whether the owner is a superuser, or can become one.
    is_superuser: bool,
    exists: bool,
    /// The schemas of the extensions that maintenance calls, if those are others.
    extensions: Vec<String>,
    /// The tables and partitions, quoted and with their schemas.
    tables: Vec<String>,
    /// Whether there is a table for late records, and one with records of former partitions.
    has_late: bool,
    has_former: bool,
    /// Whether there is the function [`FUNCTION`].
    has_function: bool,
}

const PLACE_SQL: &str = "SELECT current_database()::text, coalesce(n.nspname, current_schema())::text, \
    coalesce(pg_get_userbyid(c.relowner), current_user)::text, c.oid IS NOT NULL, \
    EXISTS (SELECT FROM pg_roles r WHERE r.rolsuper AND pg_has_role(c.relowner, r.oid, 'MEMBER')), \
    ARRAY(SELECT DISTINCT t.nspname::text FROM pg_extension e JOIN pg_namespace t ON t.oid = e.extnamespace \
    WHERE e.extname IN ('pg_trgm', 'timescaledb') AND t.nspname IS DISTINCT FROM coalesce(n.nspname, current_schema()) \
    ORDER BY 1), \
    EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid AND p.proname = 'logweir_logs' AND p.pronargs = 0) \
    FROM (SELECT to_regclass('logs')::oid AS oid) logs LEFT JOIN pg_class c ON c.oid = logs.oid \
    LEFT JOIN pg_namespace n ON n.oid = c.relnamespace";
/// A hypertable passes its owner on to its chunks; a partitioned table does not.
const TABLES_SQL: &str = "WITH RECURSIVE tree AS (SELECT to_regclass('logs')::oid AS oid UNION ALL \
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = $1 AND c.relname = $3 AND c.relkind = 'p' UNION ALL SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid JOIN pg_class c ON c.oid = i.inhrelid \
    WHERE c.relispartition) \
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.oid IN (SELECT oid FROM tree) OR (n.nspname = $1 AND c.relname = ANY($2) AND c.relkind = 'r') ORDER BY 1";

/// Tables and what storing needs on them. Partitions need nothing: they are used through `logs`. Nothing on the trusted
/// time: who could change that could let every record expire.
const STORING: [(&str, &str); 9] = [
    ("logs", "SELECT, INSERT"),
    ("log_volume", "SELECT, INSERT, UPDATE"),
    ("logweir_lane", "SELECT, INSERT, UPDATE"),
    ("logweir_writer", "SELECT, INSERT, UPDATE"),
    ("logweir_takeover", "SELECT, INSERT"),
    ("logweir_dead_letter", "SELECT, INSERT, DELETE"),
    ("logweir_replayed", "SELECT, INSERT, UPDATE"),
    ("logweir_idempotency_key", "SELECT, INSERT, UPDATE"),
    ("logweir_schema_history", "SELECT"),
];
/// What queries need.
const READING: [(&str, &str); 4] =
    [("logs", "SELECT"), ("log_volume", "SELECT"), ("logweir_lane", "SELECT"), ("logweir_writer", "SELECT")];

/// What both need of the table for late records, where there is one.
const LATE_STORING: (&str, &str) = (LATE, "SELECT, INSERT");
const LATE_READING: (&str, &str) = (LATE, "SELECT");
/// And of former partitions, until their records have moved.
const FORMER_READING: (&str, &str) = (FORMER, "SELECT");

const AGAIN: &str = "-- There are no tables yet: run `logweir database prepare`, and this command again.";

/// The statements that let `role` do what `purpose` says.
pub(super) async fn grants(client: &Client, role: &str, purpose: Purpose) -> Result<Vec<String>, StoreError> {
    const WHAT: &str = "looking for the tables";
    let row = client.query_one(PLACE_SQL, &[]).await.map_err(failed(WHAT))?;
    let Some(schema): Option<String> = row.get(1) else {
        return Err(StoreError::Systemic("no schema of search_path exists: create it (CREATE SCHEMA …)".to_owned()));
    };
    let has_late = find_late(client, Some(&schema)).await.map_err(failed(WHAT))?.late().is_some();
    let has_former = find_division(client, Some(&schema)).await.map_err(failed(WHAT))?.former.is_some();
    let late = has_late.then_some(LATE);
    let names: Vec<&str> = schema::tables().chain([clock::TABLE, idempotency::TABLE]).chain(late).collect();
    let tables = client.query(TABLES_SQL, &[&schema, &names, &FORMER]).await.map_err(failed(WHAT))?;
    let place = Place {
        database: row.get(0),
        schema,
        owner: row.get(2),
        is_superuser: row.get(4),
        exists: row.get(3),
        extensions: row.get(5),
        tables: tables.iter().map(|row| row.get(0)).collect(),
        has_late,
        has_former,
        has_function: row.get(6),
    };
    Ok(statements(&place, role, purpose))
}

fn statements(place: &Place, role: &str, purpose: Purpose) -> Vec<String> {
    let Place { database, schema, owner, is_superuser, exists, extensions, tables, has_late, has_former, has_function } =
        place;
    let (database, schema, owner, role) = (quoted(database), quoted(schema), quoted(owner), quoted(role));
    let connect = format!("GRANT CONNECT ON DATABASE {database} TO {role};");
    let usage = format!("GRANT USAGE ON SCHEMA {schema} TO {role};");
    let on_tables = |tables: &[(&str, &str)], late: (&'static str, &'static str)| -> Vec<String> {
        let beside = has_late.then_some(late).into_iter().chain(has_former.then_some(FORMER_READING));
        let of = |(table, rights): (&str, &str)| format!("GRANT {rights} ON {schema}.{} TO {role};", quoted(table));
        if *exists { tables.iter().copied().chain(beside).map(of).collect() } else { vec![AGAIN.to_owned()] }
    };
    match purpose {
        Purpose::Storing => [vec![connect, usage], on_tables(&STORING, LATE_STORING)].concat(),
        Purpose::Reading => {
            let function = format!("GRANT EXECUTE ON FUNCTION {schema}.{FUNCTION}() TO {role};");
            let mut all = [vec![connect, usage], on_tables(&READING, LATE_READING)].concat();
            all.extend((*exists && *has_function).then_some(function));
            all
        }
        Purpose::Maintenance => {
            // CREATE on the database is for the extension pg_trgm.
            let create = format!("GRANT CREATE ON DATABASE {database} TO {role};");
            let mut all = vec![connect, create, format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};")];
            all.extend(extensions.iter().map(|schema| format!("GRANT USAGE ON SCHEMA {} TO {role};", quoted(schema))));
            // To change and drop tables takes their owner. A member of the owner counts as one, but a member of a
            // superuser can become one.
            if *exists && *is_superuser {
                all.extend(tables.iter().map(|table| format!("ALTER TABLE {table} OWNER TO {role};")));
                all.extend(has_function.then(|| format!("ALTER FUNCTION {schema}.{FUNCTION}() OWNER TO {role};")));
            } else if *exists && owner != role {
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
        let tables = vec!["s.logs".to_owned(), "s.logs_default".to_owned()];
        let [database, schema, owner] = ["db", "s", "o"].map(str::to_owned);
        let (extensions, has_late, has_former, has_function) = (Vec::new(), false, false, false);
        let is_superuser = false;
        Place { database, schema, owner, is_superuser, exists, extensions, tables, has_late, has_former, has_function }
    }

    #[test]
    fn every_table_has_its_place_in_the_grants() {
        let sql = schema::sql();
        let mut created: Vec<&str> = sql
            .split("CREATE TABLE ")
            .skip(1)
            .map(|rest| rest.trim_start_matches("IF NOT EXISTS ").split([' ', '(']).next().unwrap_or_default())
            .filter(|table| !["logs_shape", "logs_default", "logweir_late"].contains(table))
            .collect();
        created.sort_unstable();
        created.dedup();
        let mut owned: Vec<&str> = schema::tables().chain([clock::TABLE, idempotency::TABLE]).collect();
        owned.sort_unstable();
        assert_eq!(created, owned);
        let mut stored: Vec<&str> = STORING.iter().map(|(table, _)| *table).chain([clock::TABLE]).collect();
        stored.sort_unstable();
        assert_eq!(stored, owned);
    }

    #[test]
    fn who_maintains_may_use_the_schemas_of_extensions() {
        let elsewhere = Place { extensions: vec!["extensions".to_owned()], ..place(true) };
        let line = r#"GRANT USAGE ON SCHEMA "extensions" TO "r";"#.to_owned();
        assert!(statements(&elsewhere, "r", Purpose::Maintenance).contains(&line));
        assert!(!statements(&elsewhere, "r", Purpose::Storing).contains(&line));
    }

    #[test]
    fn a_role_gets_what_its_purpose_needs() {
        let storing = statements(&place(true), "r", Purpose::Storing);
        assert_eq!(storing.len(), 2 + STORING.len());
        assert!(storing.contains(&r#"GRANT SELECT, INSERT ON "s"."logs" TO "r";"#.to_owned()), "{storing:?}");
        assert_eq!(statements(&place(true), "r", Purpose::Reading).len(), 2 + READING.len());
        let maintenance = statements(&place(true), "r", Purpose::Maintenance);
        assert_eq!(maintenance.last().unwrap(), r#"GRANT "o" TO "r";"#);
        assert!(!statements(&place(true), "o", Purpose::Maintenance).iter().any(|line| line.contains(r#"GRANT "o""#)));
    }

    #[test]
    fn late_records_are_granted_to_roles_that_store_and_read() {
        let late = Place { has_late: true, has_function: true, ..place(true) };
        let storing = r#"GRANT SELECT, INSERT ON "s"."logweir_late" TO "r";"#.to_owned();
        let reading = r#"GRANT SELECT ON "s"."logweir_late" TO "r";"#.to_owned();
        assert!(statements(&late, "r", Purpose::Storing).contains(&storing));
        let function = r#"GRANT EXECUTE ON FUNCTION "s".logweir_logs() TO "r";"#.to_owned();
        let printed = statements(&late, "r", Purpose::Reading);
        assert!(printed.contains(&reading) && printed.contains(&function), "{printed:?}");
    }

    #[test]
    fn former_partitions_may_be_read_until_their_records_have_moved() {
        let moving = Place { has_former: true, ..place(true) };
        let line = r#"GRANT SELECT ON "s"."logweir_partitions" TO "r";"#.to_owned();
        for purpose in [Purpose::Storing, Purpose::Reading] {
            assert!(
                statements(&moving, "r", purpose).contains(&line)
                    && !statements(&place(true), "r", purpose).contains(&line)
            );
        }
    }

    #[test]
    fn a_superusers_tables_are_given_to_the_role_that_maintains_them() {
        let printed = statements(&Place { is_superuser: true, ..place(true) }, "r", Purpose::Maintenance);
        assert!(!printed.iter().any(|line| line.contains(r#"GRANT "o""#)), "{printed:?}");
        assert_eq!(
            printed[3..],
            [r#"ALTER TABLE s.logs OWNER TO "r";"#, r#"ALTER TABLE s.logs_default OWNER TO "r";"#]
        );
    }

    #[test]
    fn nothing_is_granted_on_tables_that_do_not_exist_yet() {
        for purpose in [Purpose::Storing, Purpose::Reading] {
            let printed = statements(&place(false), "r", purpose);
            assert_eq!(printed.len(), 3, "{printed:?}");
            assert!(printed[2].starts_with("--") && printed[2].contains("again"), "{printed:?}");
        }
    }
}
