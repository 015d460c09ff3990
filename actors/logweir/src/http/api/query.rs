//! `GET /api/v1/query`: records, one page at a time or streamed.
//!
//! A stream consists of pages, too: the next one is read when the client has consumed the previous one. A slow client
//! therefore holds neither a transaction nor memory, and a disconnected one ends the query. A page that cannot be read
//! from the database aborts the stream, so that an incomplete response never looks complete; a stream that is incomplete
//! from the start has the header [`PARTIAL`].

use std::time::Instant;

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream;
use serde::Serialize;

use tokio::sync::OwnedSemaphorePermit;

use super::super::answer::{Answer, HttpError};
use super::super::error_responses::{QUERIES, QueryErrors};
use super::super::shared::Shared;
use super::query_parameters::{QueryParameters, bad_parameter};
use super::record::{CSV_HEADER, RecordBody, csv};
use crate::search::{Page, PageRequest, SearchError, Searcher, Source};
use logweir_query::page::{Direction, Position};
use logweir_store::read::ReadError;

/// Headers of a stream: what it lacks, and until when it is complete.
const PARTIAL: &str = "X-Logweir-Partial";
const COMPLETE_UNTIL: &str = "X-Logweir-Complete-Until";

const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;
/// Maximum number of records in a stream.
const STREAM_LIMIT_MAX: usize = 10_000_000;
/// Records that a stream reads at a time.
const STREAM_PAGE: usize = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Ndjson,
    Csv,
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Page)]
struct Body<'a> {
    #[schema(value_type = Vec<super::record::Body<'a>>)]
    records: Vec<RecordBody<'a>>,
    cursor: Cursor,
    source: Source,
    took_ms: u64,
}

/// Where the next page starts in each direction; null if there are no records in that direction now.
#[derive(Serialize, utoipa::ToSchema)]
struct Cursor {
    older: Option<String>,
    newer: Option<String>,
}

/// Returns records, as a page or a stream.
#[utoipa::path(
    get,
    tag = QUERIES,
    path = "/api/v1/query",
    params(
        ("query" = Option<String>, Query, description = "Filter in the query language; default all records."),
        ("start" = Option<String>, Query, description = "RFC 3339, a Unix timestamp (s, ms, µs or ns), now, now-15m or -15m; default one hour before end."),
        ("end" = Option<String>, Query, description = "End of the range, exclusive, in the same formats; default now."),
        ("limit" = Option<usize>, Query, minimum = 1, description = "Maximum number of records; default 100, at most 10000 in a page and 10000000 in a stream."),
        ("cursor" = Option<String>, Query, description = "Position to continue from, taken from a response."),
        ("direction" = Option<String>, Query, description = "backward (latest first) or forward; default backward."),
        ("format" = Option<String>, Query, description = "json for a page, or ndjson or csv for a stream; default json."),
    ),
    responses(
        (status = 200, description = "Records. A stream that may lack some has the reason in the header `X-Logweir-Partial`, and, if it is known, until when it is complete in `X-Logweir-Complete-Until`."
            , content((Body<'_> = "application/json"), (String = "application/x-ndjson"), (String = "text/csv"))),
        QueryErrors,
    )
)]
pub async fn query(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, HttpError> {
    let began = Instant::now();
    let (format, request) = read(&request)?;
    let searcher = shared.searcher()?.clone();
    if format == Format::Json {
        let page = searcher.page(&request).await?;
        let body = Body {
            cursor: cursor(&request, &page),
            records: page.records.iter().map(RecordBody).collect(),
            source: page.source,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        return Ok(Answer::json(200, &body).into());
    }
    Ok(streamed(searcher, request, format).await?)
}

fn read(request: &HttpRequest) -> Result<(Format, PageRequest), HttpError> {
    let mut parameters = QueryParameters::of(request)?;
    let formats = [("json", Format::Json), ("ndjson", Format::Ndjson), ("csv", Format::Csv)];
    let format = parameters.one_of("format", Format::Json, &formats)?;
    let directions = [("backward", Direction::Backward), ("forward", Direction::Forward)];
    let direction = parameters.one_of("direction", Direction::Backward, &directions)?;
    let limit_max = if format == Format::Json { LIMIT_MAX } else { STREAM_LIMIT_MAX };
    let limit = parameters.number("limit", LIMIT, 1, limit_max)?;
    let after = parameters.text("cursor")?.map(|text| {
        Position::from_cursor(&text)
            .ok_or_else(|| bad_parameter("invalid cursor: expected one from an earlier response".to_owned()))
    });
    let request = PageRequest {
        filter: parameters.filter()?,
        range: parameters.range()?,
        direction,
        after: after.transpose()?,
        limit,
    };
    parameters.finish()?;
    Ok((format, request))
}

fn cursor(request: &PageRequest, page: &Page) -> Cursor {
    let first = page.records.first().map(|found| found.position());
    let last = page.records.last().map(|found| found.position());
    let ahead = last.filter(|_| page.more).map(|position| position.cursor());
    let behind = first.or(request.after).map(|position| position.cursor());
    match request.direction {
        Direction::Backward => Cursor { older: ahead, newer: behind },
        // Newer records may still arrive.
        Direction::Forward => Cursor { older: behind, newer: last.or(request.after).map(|position| position.cursor()) },
    }
}

/// A stream between two pages.
struct Streaming {
    searcher: Searcher,
    /// The request for the next page.
    request: PageRequest,
    /// Records that may still be sent.
    left: usize,
    format: Format,
    _permit: OwnedSemaphorePermit,
    /// A page that has been read already.
    ready: Option<Page>,
    head: &'static str,
    /// Whether the database did not answer at the start.
    from_cache: bool,
}

async fn streamed(searcher: Searcher, request: PageRequest, format: Format) -> Result<HttpResponse, SearchError> {
    let permit = searcher.stream()?;
    let left = request.limit;
    let request = PageRequest { limit: left.min(STREAM_PAGE), ..request };
    // Read before the response starts, while an error can still be reported.
    let first = searcher.stream_page(&request).await?;
    let from_cache = first.without_database;
    let mut response = HttpResponse::Ok();
    let completeness = &first.source.completeness;
    if completeness.partial {
        let reason = completeness.partial_reason.as_deref().unwrap_or("records may be missing");
        response.insert_header((PARTIAL, header_text(reason)));
        if let Some(until) = &completeness.complete_until {
            response.insert_header((COMPLETE_UNTIL, until.as_str()));
        }
    }
    let (content_type, head) = match format {
        Format::Csv => ("text/csv; charset=utf-8; header=present", CSV_HEADER),
        Format::Json | Format::Ndjson => ("application/x-ndjson", ""),
    };
    let streaming =
        Streaming { searcher, request, left, format, _permit: permit, ready: Some(first), head, from_cache };
    let body = stream::try_unfold(Some(streaming), async |streaming| match streaming {
        None => Ok(None),
        Some(streaming) => streaming.next().await.map(Some),
    });
    Ok(response.content_type(content_type).streaming(body))
}

/// `text` as the value of a header, which may contain visible ASCII only.
fn header_text(text: &str) -> String {
    text.chars().map(|letter| if matches!(letter, ' '..='~') { letter } else { '?' }).collect()
}

impl Streaming {
    /// Reads the next page. The part of it that the cache has is not enough, unless the stream has said so.
    async fn next_page(&self) -> Result<Page, SearchError> {
        let page = self.searcher.stream_page(&self.request).await?;
        match (page.without_database && !self.from_cache, &page.source.completeness.partial_reason) {
            (true, reason) => Err(ReadError::Unavailable(reason.clone().unwrap_or_default()).into()),
            (false, _) => Ok(page),
        }
    }

    /// Reads the next page; returns its text and the rest of the stream.
    async fn next(mut self) -> Result<(Bytes, Option<Self>), SearchError> {
        let page = match self.ready.take() {
            Some(page) => page,
            None => self.next_page().await.inspect_err(|error| {
                tracing::warn!(%error, "aborting a record stream: the next page cannot be read");
            })?,
        };
        let mut text = std::mem::take(&mut self.head).to_owned();
        for found in &page.records {
            match self.format {
                Format::Csv => csv(&mut text, found),
                Format::Json | Format::Ndjson => {
                    text.push_str(&serde_json::to_string(&RecordBody(found)).unwrap_or_default());
                    text.push('\n');
                }
            }
        }
        self.left -= page.records.len();
        self.request.after = page.records.last().map(|found| found.position());
        self.request.limit = self.left.min(STREAM_PAGE);
        let more = page.more && self.left > 0;
        Ok((text.into(), more.then_some(self)))
    }
}
