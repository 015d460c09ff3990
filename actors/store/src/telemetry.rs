//! Metrics that are the same for every store.

use logweir_engine::journal::LaneId;

use crate::error::StoreError;
use crate::lane::Flushed;

/// Records a flush's metrics; the same for every store.
pub(crate) fn measure(lane: LaneId, started: tokio::time::Instant, result: &Result<Flushed, StoreError>) {
    metrics::histogram!("logweir_store_flush_seconds").record(started.elapsed().as_secs_f64());
    match result {
        Ok(flushed) => {
            metrics::counter!("logweir_store_transactions_total").increment(1);
            metrics::counter!("logweir_store_rows_total", "lane" => lane.to_string()).increment(flushed.rows);
            if flushed.repeated > 0 {
                metrics::counter!("logweir_discarded_records_total",
                    "component" => "store", "reason" => "repeated", "intentional" => "true")
                .increment(flushed.repeated);
            }
        }
        Err(error) => metrics::counter!("logweir_store_errors_total", "class" => error.class()).increment(1),
    }
}
