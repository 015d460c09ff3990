//! A late record that `logs` refuses becomes a dead letter, as it would have if it had been stored there.

use logweir_record::record::{Record, Severity};
use tokio_postgres::Client;
use uuid::Uuid;

use super::super::ddl::transaction;
use super::super::logs::Logs;
use super::super::place::INSERT_SQL;
use super::super::retention::{Uncounted, uncount};
use super::super::types::{Json, Time};
use super::refusal::Refusal;
use super::waiting::{LIMITS, Listed};
use crate::error::{Rejection, StoreError};
use crate::lane::ORDINAL_BITS;
use crate::protocol::driver::flush::is_about_values;
use crate::protocol::raw_record;
use crate::protocol::sample::Sample;

/// Makes sure that `logs` takes another record where one of the time `ts_us` was refused. What concerns every record is
/// no record's fault.
///
/// # Errors
/// It takes none.
pub(super) async fn check_others(
    client: &Client,
    logs: &Logs,
    ts_us: i64,
    now_us: i64,
    rejection: &Rejection,
) -> Result<(), StoreError> {
    let about_values = is_about_values(&rejection.code);
    let times: &[i64] = if about_values { &[ts_us, now_us] } else { &[ts_us] };
    for nth in 0..2 {
        let sample = match nth {
            0 => Some(Sample::synthetic(now_us)),
            _ => stored(client, logs).await?,
        };
        let Some(record) = sample.as_ref().and_then(Sample::record) else { continue };
        for &ts_us in times {
            match takes(client, logs, &Record { ts_us, ..record }).await {
                Ok(true) => return Ok(()),
                Ok(false) | Err(Refusal::Rows(_) | Refusal::TooMuch(_)) => {}
                Err(Refusal::Failed(error)) => return Err(error),
            }
        }
    }
    let of_that_time = if about_values { "" } else { " of that time" };
    Err(StoreError::Systemic(format!(
        "{} refuses every record{of_that_time} (others were tried, too), so late records stay where they are: {}",
        logs.table, rejection.reason
    )))
}

/// A record that `logs` has, if there is one.
async fn stored(client: &Client, logs: &Logs) -> Result<Option<Sample>, StoreError> {
    let sql = format!(
        "SELECT severity, service, host, message, attributes::text FROM {} ORDER BY ts DESC LIMIT 1",
        logs.table
    );
    // An error means that this sample is missing.
    let found = client.query_opt(&sql, &[]).await.ok().flatten();
    Ok(found.map(|row| {
        let attributes: Option<&str> = row.get(4);
        Sample::of(&Record {
            ts_us: 0,
            severity: severity(row.get(0)),
            service: row.get(1),
            host: row.get(2),
            message: row.get(3),
            attributes: attributes.unwrap_or_default(),
        })
    }))
}

fn severity(number: i16) -> Severity {
    u8::try_from(number).ok().and_then(Severity::from_number).unwrap_or_default()
}

/// Whether `logs` takes a record, which is rolled back.
async fn takes(client: &Client, logs: &Logs, record: &Record<'_>) -> Result<bool, Refusal> {
    /// Not an error: what the transaction ends with, so that it is rolled back.
    enum End {
        Tried(u64),
        Refused(Refusal),
    }
    impl From<tokio_postgres::Error> for End {
        fn from(error: tokio_postgres::Error) -> Self {
            Self::Refused(error.into())
        }
    }
    let sql = INSERT_SQL.replace("$logs", &logs.table.to_string());
    let severity = i16::from(record.severity.number());
    let attributes = (!record.attributes.is_empty()).then_some(Json(record.attributes));
    let tried = transaction::<(), End>(LIMITS, client, async {
        client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
        let (ts, id) = (Time(record.ts_us), 0_i64);
        let inserted = client
            .execute(&sql, &[&id, &ts, &severity, &record.service, &record.host, &record.message, &attributes])
            .await?;
        Err(End::Tried(inserted))
    });
    match tried.await {
        Err(End::Tried(inserted)) => Ok(inserted == 1),
        Err(End::Refused(refusal)) => Err(refusal),
        Ok(()) => Ok(false),
    }
}

/// Makes a dead letter of a record that waits. One transaction with the counters of its lane, in the order of a flush:
/// it is accounted for at each moment. Its frame is not known any more.
pub(super) async fn bury(client: &Client, logs: &Logs, row: &Listed, rejection: &Rejection) -> Result<bool, Refusal> {
    let Some(late) = &logs.late else { return Ok(false) };
    let take = format!(
        "DELETE FROM {late} WHERE ctid = $1::text::tid AND ts = $2 RETURNING id, severity, service, host, message, \
         attributes::text, current_setting('server_encoding') <> 'UTF8'"
    );
    let recount = format!(
        "UPDATE {} SET rows = rows - 1, dead = dead + 1 WHERE lane_id = $1 RETURNING writer_id, lane",
        logs.beside("logweir_lane")
    );
    let write = format!(
        "INSERT INTO {} (id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at) \
         VALUES ($1, $2, $3, 0, 0, $4, $5, $6, clock_timestamp())",
        logs.beside("logweir_dead_letter")
    );
    let buried = transaction::<bool, Refusal>(LIMITS, client, async {
        let Some(taken) = client.query_opt(&take, &[&row.ctid, &Time(row.ts_us)]).await? else { return Ok(false) };
        let id: i64 = taken.get(0);
        let lane_id = i32::try_from(id >> ORDINAL_BITS).unwrap_or(i32::MAX);
        let attributes: Option<&str> = taken.get(5);
        let record = Record {
            ts_us: row.ts_us,
            severity: severity(taken.get(1)),
            service: taken.get(2),
            host: taken.get(3),
            message: taken.get(4),
            attributes: attributes.unwrap_or_default(),
        };
        let (mut raw, mut reason) = (raw_record::raw(&record), rejection.reason.clone());
        if taken.get(6) {
            (raw, reason) = (raw_record::ascii(&raw), raw_record::ascii(&reason));
        }
        // A lane that was reset since has another number, and accounts for this record as inherited.
        let lane = client.query_opt(&recount, &[&lane_id]).await?;
        let (writer, lane) = lane.map_or((Uuid::nil(), 0), |lane| (lane.get(0), lane.get(1)));
        client.execute(&write, &[&id, &writer, &lane, &rejection.code, &reason, &raw]).await?;
        uncount(client, logs, &[Uncounted::of(row.ts_us, record.service, taken.get(1), lane_id)]).await?;
        Ok(true)
    })
    .await?;
    if buried {
        metrics::counter!("logweir_store_dead_letters_total", "sqlstate" => rejection.code.clone()).increment(1);
        tracing::warn!(sqlstate = rejection.code, reason = rejection.reason, "dead-lettered a late record");
    }
    Ok(buried)
}
