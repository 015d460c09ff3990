//! Moves rows from the default partition to a new one in a way that subscribers of a publication can follow.
//!
//! A partition is filled before it is attached, since existing rows may violate constraints that new ones have to meet,
//! and no trigger should act on them again. Logical replication takes it for a table of its own until then:
//!
//! - Deletions are published: a subscriber deletes the rows from its `logs`, and waits for a table that it does not have.
//!   So the rows are held in an unlogged table, which is never published, and inserted when the partition is attached.
//! - Only insertions are published: a subscriber has the rows and keeps them. They must not come a second time, so the
//!   partition is unlogged until it has them.

use tokio_postgres::{Client, Error};

use super::ddl::{Relation, quoted};

/// What the publications of a table tell subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    Nothing,
    Insertions,
    Deletions,
    /// One publication this, another one that: no way of moving rows is right for the subscribers of both.
    Both,
}

impl Published {
    /// Of `logs` or its default partition.
    pub(super) async fn of(client: &Client, logs: &Relation, default: &Relation) -> Result<Self, Error> {
        let row = client
            .query_one(
                "SELECT coalesce(bool_or(p.pubdelete), false), coalesce(bool_or(NOT p.pubdelete), false) \
                 FROM pg_publication_tables t JOIN pg_publication p USING (pubname) \
                 WHERE (t.schemaname, t.tablename) IN (($1, $2), ($3, $4))",
                &[&logs.schema, &logs.name, &default.schema, &default.name],
            )
            .await?;
        Ok(match (row.get(0), row.get(1)) {
            (false, false) => Self::Nothing,
            (false, true) => Self::Insertions,
            (true, false) => Self::Deletions,
            (true, true) => Self::Both,
        })
    }
}

/// Rows on their way to a partition.
pub(super) struct Moving {
    partition: Relation,
    columns: String,
    published: Published,
}

impl Moving {
    pub(super) fn new(partition: Relation, columns: String, published: Published) -> Self {
        Self { partition, columns, published }
    }

    /// Where the rows are until the partition is attached.
    fn held(&self) -> Relation {
        match self.published {
            Published::Deletions => {
                let Relation { schema, name } = &self.partition;
                Relation { schema: schema.clone(), name: format!("{name}_moving") }
            }
            _ => self.partition.clone(),
        }
    }

    /// Takes the rows that satisfy `condition` out of `default`. Returns their number.
    pub(super) async fn take(&self, client: &Client, default: &Relation, condition: &str) -> Result<u64, Error> {
        let Self { partition, columns, published } = self;
        let held = self.held();
        match published {
            Published::Nothing | Published::Both => {}
            Published::Insertions => client.batch_execute(&format!("ALTER TABLE {partition} SET UNLOGGED")).await?,
            Published::Deletions => {
                client.batch_execute(&format!("CREATE UNLOGGED TABLE {held} (LIKE {partition})")).await?;
            }
        }
        let sql = format!(
            "WITH moved AS (DELETE FROM {default} WHERE {condition} RETURNING {columns}) \
             INSERT INTO {held} ({columns}) SELECT {columns} FROM moved"
        );
        let moved = client.execute(&sql, &[]).await?;
        if *published == Published::Insertions {
            client.batch_execute(&format!("ALTER TABLE {partition} SET LOGGED")).await?;
        }
        Ok(moved)
    }

    /// Inserts what is still held into the partition, which is attached now. Triggers have acted on these rows before.
    pub(super) async fn put_back(&self, client: &Client) -> Result<(), Error> {
        if self.published != Published::Deletions {
            return Ok(());
        }
        let Self { partition, columns, .. } = self;
        let held = self.held();
        let triggers = client
            .query(
                "SELECT tgname::text, tgenabled = 'A' FROM pg_trigger \
                 WHERE tgrelid = $1::text::regclass AND NOT tgisinternal AND tgenabled IN ('O', 'A')",
                &[&partition.to_string()],
            )
            .await?;
        let alter = |change: &dyn Fn(bool) -> &'static str| {
            let clause = |row: &tokio_postgres::Row| format!("{} TRIGGER {}", change(row.get(1)), quoted(row.get(0)));
            let clauses = triggers.iter().map(clause).collect::<Vec<_>>().join(", ");
            if clauses.is_empty() { String::new() } else { format!("ALTER TABLE {partition} {clauses}; ") }
        };
        let off = alter(&|_| "DISABLE");
        let on = alter(&|always| if always { "ENABLE ALWAYS" } else { "ENABLE" });
        let sql = format!(
            "{off}INSERT INTO {partition} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {held}; \
             DROP TABLE {held}; SET CONSTRAINTS ALL IMMEDIATE; {on}"
        );
        client.batch_execute(&sql).await
    }
}
