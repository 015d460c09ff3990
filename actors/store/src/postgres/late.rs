//! Records far from the present, on TimescaleDB: they go into a table of their own, and from there into chunks.
//!
//! - A chunk is a table, and its sender decides how many days a batch has. So no flush makes chunks but those of the days
//!   around the present.
//! - A late record never waits for who holds its chunk: a compression takes hours of a large one.
//! - It is stored in the transaction of its batch ([`place`](super::place) says why), with its id and its counter, and moves
//!   in one transaction, so each query sees it once.
//! - A day gets a chunk when it has many records, or once it is near the present. A few records of a day stay: thousands
//!   of chunks would make each query lock thousands of tables.
//! - Daily partitions need none of this: the default partition takes what has no partition.

use tokio_postgres::{Client, Error};

use super::ddl::{Relation, in_transaction, quoted};
use super::logs::{LATE, Logs};
use crate::error::StoreError;

/// The same as [`make`] for administrators, who run it after everything else.
pub(super) const CREATE_SQL: &str = "DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
        CREATE TABLE logweir_late (LIKE logs, stored_at timestamptz NOT NULL DEFAULT now());
        CREATE INDEX logweir_late_ts_idx ON logweir_late (ts);
        ALTER TABLE logweir_late REPLICA IDENTITY FULL;
    END IF;
END
$$;";

/// Creates the table. All who read `logs` read it, too. `stored_at` tells the mover how long a record has waited.
pub(super) async fn make(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    let late = logs.beside(LATE);
    in_transaction(client, "creating a table for late records", async {
        logs.create_like(client, &late, &[]).await?;
        let index = quoted(&format!("{LATE}_ts_idx"));
        client
            .batch_execute(&format!(
                "ALTER TABLE {late} ADD stored_at timestamptz NOT NULL DEFAULT now(); \
                 CREATE INDEX {index} ON {late} (ts); ALTER TABLE {late} REPLICA IDENTITY FULL"
            ))
            .await?;
        grant_like(client, &late, logs).await
    })
    .await
}

/// Grants on `late` what is granted on `logs`.
async fn grant_like(client: &Client, late: &Relation, logs: &Logs) -> Result<(), Error> {
    const GRANTED: &str = "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, \
        string_agg(a.privilege_type, ', ') FROM pg_class c, aclexplode(c.relacl) a \
        WHERE c.oid = $1 AND a.grantee <> c.relowner GROUP BY 1";
    for row in client.query(GRANTED, &[&logs.oid]).await? {
        let (role, privileges): (&str, &str) = (row.get(0), row.get(1));
        client.batch_execute(&format!("GRANT {privileges} ON {late} TO {role}")).await?;
    }
    Ok(())
}
