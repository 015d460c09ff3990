//! Tests the harness itself against a real PostgreSQL: cuts at COMMIT and crashes.

use std::time::{Duration, Instant};

use logweir_tests::client::PATIENCE;
use logweir_tests::postgres::{Options, Server, wait_until};
use logweir_tests::proxy::{AtCommit, Proxy};
use logweir_tests::store::Store;
use tokio_postgres::NoTls;

/// Inserts a row in a transaction through the proxy, with the client library that logweir uses.
fn insert(url: &str) -> Result<(), tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let transaction = client.transaction().await?;
        transaction.execute("INSERT INTO t VALUES (1)", &[]).await?;
        transaction.commit().await
    })
}

#[test]
fn a_commit_is_lost_before_or_after_it_takes_effect() {
    let postgres = Server::start(&Options::default());
    postgres.execute("CREATE TABLE t (n int)");
    let proxy = Proxy::start(([127, 0, 0, 1], postgres.port()).into()).unwrap();
    let through = format!("postgres://postgres@{}/postgres", proxy.addr());
    let count = || Store::Postgres(postgres.url("postgres")).rows("SELECT count(*) FROM t").unwrap()[0][0].clone();

    insert(&through).unwrap();
    assert_eq!(count(), "1");
    proxy.cut_at_commit(AtCommit::RequestLost, 1);
    insert(&through).unwrap_err();
    assert_eq!(count(), "1");
    proxy.cut_at_commit(AtCommit::ReplyLost, 1);
    insert(&through).unwrap_err();
    assert_eq!(count(), "2");
    proxy.cut_at_commit(AtCommit::Late(Duration::from_millis(200)), 1);
    insert(&through).unwrap_err();
    let deadline = Instant::now() + PATIENCE;
    while count() == "2" {
        assert!(Instant::now() < deadline, "the late COMMIT never arrives");
    }
    assert_eq!(count(), "3");
    assert_eq!(proxy.commits_cut(), 3);
    insert(&through).unwrap();
    assert_eq!(count(), "4");
}

#[test]
fn postgres_recovers_from_a_crash_and_an_immediate_restart() {
    let postgres = Server::start(&Options::default());
    postgres.execute("CREATE TABLE t (n int)");
    postgres.kill();
    assert!(Store::Postgres(postgres.url("postgres")).rows("SELECT 1").is_err());
    postgres.restart();
    postgres.execute("INSERT INTO t VALUES (1)");
    postgres.stop_immediately();
    postgres.restart();
    postgres.execute("INSERT INTO t VALUES (1)");
}

#[test]
fn records_that_move_to_a_new_partition_while_they_are_counted_are_found() {
    let postgres = Server::start(&Options::default());
    postgres.execute(
        "CREATE TABLE logs (id int) PARTITION BY RANGE (id); CREATE TABLE logs_default PARTITION OF logs DEFAULT; \
         INSERT INTO logs VALUES (1), (2)",
    );
    let store = Store::Postgres(postgres.url("postgres"));
    let holder = postgres.session();
    holder.execute("BEGIN; LOCK TABLE logs_default IN ACCESS EXCLUSIVE MODE");
    let counted = std::thread::scope(|scope| {
        let counting = scope.spawn(|| store.count());
        let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        wait_until("the records are being counted", || !store.run(waits).unwrap().is_empty());
        holder.execute(
            "CREATE TABLE moved (LIKE logs); WITH gone AS (DELETE FROM logs_default RETURNING *) \
             INSERT INTO moved SELECT * FROM gone; ALTER TABLE logs ATTACH PARTITION moved FOR VALUES FROM (1) TO (9); COMMIT",
        );
        counting.join().unwrap()
    });
    assert_eq!(counted, Ok(2));
}
