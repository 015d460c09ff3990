//! Processors that write to another database than the one that this gateway reads: told once each, and counted.
//!
//! Every result says so too. This says it before the first query, to those who run the gateway.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::search::Searcher;
use crate::search::completeness::ELSEWHERE;

/// How often the processors' journals are looked for in the database: only a restart with other settings changes where
/// they are.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// Compares the database that `searcher` reads with the processors periodically. Never completes.
pub async fn watch(searcher: &Searcher) {
    let mut known = BTreeSet::new();
    loop {
        // A database that does not answer says nothing about where the records are, and each query reports it.
        if let Ok(found) = searcher.elsewhere().await {
            known = tell(known, found);
        }
        tokio::time::sleep(COMPARE_EVERY).await;
    }
}

/// Tells what has changed since `known`, and returns `found`.
fn tell(known: BTreeSet<Arc<str>>, found: BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
    metrics::gauge!("logweir_gateway_other_database_processors")
        .set(u32::try_from(found.len()).map_or(f64::INFINITY, f64::from));
    for processor in found.difference(&known) {
        tracing::warn!(%processor, "queries lack all records of this processor: {ELSEWHERE}");
    }
    for processor in known.difference(&found) {
        tracing::info!(%processor, "queries have the records of this processor, or it has not answered for minutes");
    }
    found
}
