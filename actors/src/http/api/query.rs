//! `GET /api/v1/query`: records, a page at a time or streamed.
//!
//! A stream is made of pages too: the next one is read when the client has taken the one before. So a client that is slow
//! holds neither a transaction nor memory, and one that goes away stops it. A page that cannot be read cuts the stream off:
//! what looks complete is complete.

use std::time::Instant;

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream;
use serde::Serialize;

use tokio::sync::OwnedSemaphorePermit;

use super::super::Shared;
use super::super::answer::{Answer, Refused};
use super::super::described::{READ, Read};
use super::asked::{Asked, bad};
use super::record::{CSV_HEADER, RecordBody, csv};
use crate::query::page::{Direction, Position};
use crate::search::{Page, PageRequest, SearchError, Searcher, Source};

const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;
/// What a stream may give.
const STREAM_LIMIT_MAX: usize = 10_000_000;
/// Records that a stream reads at once.
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

/// Where the next page begins, each way. None: there is nothing that way now.
#[derive(Serialize, utoipa::ToSchema)]
struct Cursor {
    older: Option<String>,
    newer: Option<String>,
}

/// The handler.
#[utoipa::path(
    get,
    tag = READ,
    path = "/api/v1/query",
    params(
        ("query" = Option<String>, Query, description = "which records, in the query language; all of them without it"),
        ("start" = Option<String>, Query, description = "RFC 3339, a number since 1970 (s, ms, us, ns), now, now-15m or -15m; an hour before end"),
        ("end" = Option<String>, Query, description = "the moment behind the last, in the same forms; now"),
        ("limit" = Option<usize>, Query, minimum = 1, description = "100; at most 10000, in a stream 10000000"),
        ("cursor" = Option<String>, Query, description = "where to go on, from an answer"),
        ("direction" = Option<String>, Query, description = "backward (newest first) or forward"),
        ("format" = Option<String>, Query, description = "json, or streamed: ndjson, csv"),
    ),
    responses(
        (status = 200, description = "records"
            , content((Body<'_> = "application/json"), (String = "application/x-ndjson"), (String = "text/csv"))),
        Read,
    )
)]
pub async fn query(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, Refused> {
    let began = Instant::now();
    let (format, wanted) = read(&request)?;
    let searcher = shared.searcher()?.clone();
    if format == Format::Json {
        let page = searcher.page(&wanted).await?;
        let body = Body {
            cursor: cursor(&wanted, &page),
            records: page.records.iter().map(RecordBody).collect(),
            source: page.source,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        return Ok(Answer::json(200, &body).into());
    }
    Ok(streamed(searcher, wanted, format).await?)
}

fn read(request: &HttpRequest) -> Result<(Format, PageRequest), Refused> {
    let mut asked = Asked::of(request)?;
    let formats = [("json", Format::Json), ("ndjson", Format::Ndjson), ("csv", Format::Csv)];
    let format = asked.word("format", Format::Json, &formats)?;
    let directions = [("backward", Direction::Backward), ("forward", Direction::Forward)];
    let direction = asked.word("direction", Direction::Backward, &directions)?;
    let limit_max = if format == Format::Json { LIMIT_MAX } else { STREAM_LIMIT_MAX };
    let limit = asked.number("limit", LIMIT, 1, limit_max)?;
    let after = asked.text("cursor")?.map(|text| {
        Position::from_cursor(&text)
            .ok_or_else(|| bad("cursor is none of ours; take it from an answer, or leave it out".to_owned()))
    });
    let wanted =
        PageRequest { filter: asked.filter()?, range: asked.range()?, direction, after: after.transpose()?, limit };
    asked.finish()?;
    Ok((format, wanted))
}

fn cursor(wanted: &PageRequest, page: &Page) -> Cursor {
    let first = page.records.first().map(|found| found.position());
    let last = page.records.last().map(|found| found.position());
    let ahead = last.filter(|_| page.more).map(|position| position.cursor());
    let behind = first.or(wanted.after).map(|position| position.cursor());
    match wanted.direction {
        Direction::Backward => Cursor { older: ahead, newer: behind },
        // There may always be newer ones later.
        Direction::Forward => Cursor { older: behind, newer: last.or(wanted.after).map(|position| position.cursor()) },
    }
}

/// A stream between two of its pages.
struct Streaming {
    searcher: Searcher,
    /// The next page.
    wanted: PageRequest,
    /// Records that may still be given.
    left: usize,
    format: Format,
    _permit: OwnedSemaphorePermit,
    /// A page that is there already.
    ready: Option<Page>,
    head: &'static str,
}

async fn streamed(searcher: Searcher, wanted: PageRequest, format: Format) -> Result<HttpResponse, SearchError> {
    let permit = searcher.stream()?;
    let left = wanted.limit;
    let wanted = PageRequest { limit: left.min(STREAM_PAGE), ..wanted };
    // Before the answer begins: what is wrong can still be said.
    let ready = Some(searcher.portion(&wanted).await?);
    let (content_type, head) = match format {
        Format::Csv => ("text/csv; charset=utf-8; header=present", CSV_HEADER),
        Format::Json | Format::Ndjson => ("application/x-ndjson", ""),
    };
    let streaming = Streaming { searcher, wanted, left, format, _permit: permit, ready, head };
    let body = stream::try_unfold(Some(streaming), async |streaming| match streaming {
        None => Ok(None),
        Some(streaming) => streaming.next().await.map(Some),
    });
    Ok(HttpResponse::Ok().content_type(content_type).streaming(body))
}

impl Streaming {
    /// The text of the next page, and what comes behind it.
    async fn next(mut self) -> Result<(Bytes, Option<Self>), SearchError> {
        let page = match self.ready.take() {
            Some(page) => page,
            None => self.searcher.portion(&self.wanted).await.inspect_err(|error| {
                tracing::warn!(%error, "a stream of records is cut off");
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
        self.wanted.after = page.records.last().map(|found| found.position());
        self.wanted.limit = self.left.min(STREAM_PAGE);
        let more = page.more && self.left > 0;
        Ok((text.into(), more.then_some(self)))
    }
}
