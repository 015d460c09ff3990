//! Parameters of a request, from its URL and, because Grafana sends long queries with POST, from a form in its body.
//! Unknown parameters are ignored, as Loki does: every version of Grafana sends different ones.

use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, web};
use logweir_engine::clock;

use super::super::answer::HttpError;
use logweir_query::logql::{self, Expression, window_ms};
use logweir_query::page::{Direction, Range};
use logweir_query::time::{parse_time, range_end};
use logweir_query::{Filter, QueryError};

/// Default range: the last hour.
const RANGE_US: i64 = 3_600_000_000;
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 5_000;
/// Default number of points.
const POINTS: i64 = 250;

pub(super) struct LokiParameters {
    pairs: Vec<(String, String)>,
    now_us: i64,
}

impl LokiParameters {
    pub(super) fn of(request: &HttpRequest, body: &web::Bytes) -> Result<Self, HttpError> {
        let mut pairs = form(request.query_string())?;
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/x-www-form-urlencoded") {
            pairs.extend(form(&String::from_utf8_lossy(body))?);
        }
        Ok(Self { pairs, now_us: clock::wall_us() })
    }

    /// The value of a parameter; an empty one counts as missing.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find_map(|(key, value)| (key == name && !value.is_empty()).then_some(&**value))
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = move |(key, value): &'a (String, String)| (key == name).then_some(&**value);
        self.pairs.iter().filter_map(named).filter(|value| !value.is_empty())
    }

    pub(super) fn expression(&self) -> Result<Expression, HttpError> {
        let query = self
            .text("query")
            .ok_or_else(|| bad_parameter("missing query: expected LogQL such as {service_name=\"cart\"}".to_owned()))?;
        logql::parse(query).map_err(bad_query)
    }

    /// The selector in `query`; every record if there is none.
    pub(super) fn selector(&self) -> Result<Filter, HttpError> {
        self.text("query").map_or(Ok(Filter::All), |query| logql::parse_selector(query).map_err(bad_query))
    }

    pub(super) fn range(&self) -> Result<Range, HttpError> {
        let end_us = self.time_us("end")?.map_or(self.now_us, range_end);
        let since_us = match self.text("since") {
            None => RANGE_US,
            Some(text) => {
                window_ms(text)
                    .ok_or_else(|| bad_parameter(format!("invalid since {text:?}: expected a duration such as 1h")))?
                    * 1_000
            }
        };
        let start_us = self.time_us("start")?.unwrap_or(end_us.saturating_sub(since_us));
        if start_us > end_us {
            return Err(bad_parameter("invalid range: start is after end".to_owned()));
        }
        Ok(Range { start_us, end_us })
    }

    pub(super) fn time(&self) -> Result<i64, HttpError> {
        Ok(self.time_us("time")?.unwrap_or(self.now_us))
    }

    fn time_us(&self, name: &str) -> Result<Option<i64>, HttpError> {
        let read = |text| parse_time(text, self.now_us).map_err(|error| bad_parameter(format!("{name}: {error}")));
        self.text(name).map(read).transpose()
    }

    pub(super) fn limit(&self) -> Result<usize, HttpError> {
        let Some(text) = self.text("limit") else { return Ok(LIMIT) };
        let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
        limit.ok_or_else(|| bad_parameter(format!("invalid limit {text:?}: expected a number from 1 to {LIMIT_MAX}")))
    }

    pub(super) fn direction(&self) -> Result<Direction, HttpError> {
        match self.text("direction").map(str::to_ascii_lowercase).as_deref() {
            None | Some("backward") => Ok(Direction::Backward),
            Some("forward") => Ok(Direction::Forward),
            Some(other) => Err(bad_parameter(format!("invalid direction {other:?}: expected backward or forward"))),
        }
    }

    /// The step in microseconds, from a duration or a number of seconds.
    pub(super) fn step_us(&self, range: Range) -> Result<i64, HttpError> {
        let Some(text) = self.text("step") else {
            return Ok(((range.end_us - range.start_us) / POINTS / 1_000_000).max(1) * 1_000_000);
        };
        let text =
            if text.ends_with(|last: char| last.is_ascii_digit()) { format!("{text}s") } else { text.to_owned() };
        let step_ms = window_ms(&text).ok_or_else(|| {
            bad_parameter(format!("invalid step {text:?}: expected a duration such as 30s, or seconds"))
        })?;
        Ok(step_ms * 1_000)
    }
}

fn form(text: &str) -> Result<Vec<(String, String)>, HttpError> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(text);
    pairs.map(web::Query::into_inner).map_err(|error| bad_parameter(format!("invalid parameters: {error}")))
}

pub(super) fn bad_query(error: QueryError) -> HttpError {
    let QueryError { column, detail, .. } = error;
    let detail = format!("parse error at line 1, col {column}: {detail}");
    HttpError { column: Some(column), ..HttpError::new(400, "bad_query", detail) }
}

pub(super) fn bad_parameter(detail: String) -> HttpError {
    HttpError::new(400, "bad_parameter", detail)
}
