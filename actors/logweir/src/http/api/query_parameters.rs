//! Parameters of a query request. Each is read once; unknown ones are rejected.

use std::str::FromStr;

use actix_web::{HttpRequest, web};
use logweir_engine::clock;

use super::super::answer::HttpError;
use logweir_query::page::Range;
use logweir_query::time::{parse_duration, parse_time, range_end};
use logweir_query::{Filter, parse};

/// Default range: the last hour.
const RANGE_US: i64 = 3_600_000_000;

/// The parameters of a request that have not been read yet.
pub struct QueryParameters {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
    now_us: i64,
}

impl QueryParameters {
    /// The parameters of `request`.
    ///
    /// # Errors
    /// The query string cannot be decoded.
    pub fn of(request: &HttpRequest) -> Result<Self, HttpError> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(|error| HttpError::new(400, "bad_parameter", format!("invalid query string: {error}")))?
            .into_inner();
        Ok(Self { pairs, known: Vec::new(), now_us: clock::wall_us() })
    }

    /// The value of a parameter; an empty one counts as missing.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, HttpError> {
        self.known.push(name);
        let mut values = self.pairs.extract_if(.., |(key, _)| key == name).map(|(_, value)| value);
        let value = values.next();
        if values.next().is_some() {
            return Err(bad_parameter(format!("duplicate parameter {name}: expected it once")));
        }
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// An integer from `min` to `max`.
    pub fn number<T>(&mut self, name: &'static str, default: T, min: T, max: T) -> Result<T, HttpError>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.text(name)? else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (&min..=&max).contains(&number));
        number.ok_or_else(|| bad_parameter(format!("invalid {name} {text:?}: expected an integer from {min} to {max}")))
    }

    /// One of a list of choices.
    pub fn one_of<T: Copy>(&mut self, name: &'static str, default: T, choices: &[(&str, T)]) -> Result<T, HttpError> {
        let Some(text) = self.text(name)? else { return Ok(default) };
        let choice = choices.iter().find(|(word, _)| *word == text).map(|&(_, choice)| choice);
        choice.ok_or_else(|| {
            let choices: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            bad_parameter(format!("invalid {name} {text:?}: expected one of {}", choices.join(", ")))
        })
    }

    /// `query`: the filter.
    pub fn filter(&mut self) -> Result<Filter, HttpError> {
        let query = self.text("query")?.unwrap_or_default();
        parse(&query).map_err(|error| HttpError {
            column: Some(error.column),
            ..HttpError::new(400, "bad_query", error.to_string())
        })
    }

    /// `start` and `end`; default the last hour.
    pub fn range(&mut self) -> Result<Range, HttpError> {
        let now_us = self.now_us;
        let end_us = self.time_us("end")?.map_or(now_us.saturating_add(1), range_end);
        let start_us = self.time_us("start")?.unwrap_or(end_us.saturating_sub(RANGE_US));
        if start_us > end_us {
            return Err(bad_parameter("invalid range: start is after end".to_owned()));
        }
        Ok(Range { start_us, end_us })
    }

    /// A time, in microseconds since the Unix epoch.
    pub fn time_us(&mut self, name: &'static str) -> Result<Option<i64>, HttpError> {
        let now_us = self.now_us;
        self.text(name)?
            .map(|text| parse_time(&text, now_us).map_err(|error| bad_parameter(format!("{name}: {error}"))))
            .transpose()
    }

    /// `step`: a duration in microseconds; `None` for `auto`.
    pub fn step(&mut self) -> Result<Option<i64>, HttpError> {
        match self.text("step")?.as_deref() {
            None | Some("auto") => Ok(None),
            Some(text) => match parse_duration(text).filter(|&us| us > 0) {
                Some(us) => Ok(Some(us)),
                None => Err(bad_parameter(format!(
                    "invalid step {text:?}: expected auto or a duration such as 30s, 1m, 6h or 1d"
                ))),
            },
        }
    }

    /// A comma-separated list.
    pub fn list(&mut self, name: &'static str) -> Result<Vec<String>, HttpError> {
        let text = self.text(name)?.unwrap_or_default();
        Ok(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
    }

    /// Rejects the remaining parameters: a misspelled one would silently mean its default.
    pub fn finish(self) -> Result<(), HttpError> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => {
                let known = self.known.join(", ");
                Err(bad_parameter(format!("unknown parameter {name:?}: expected one of {known}")))
            }
        }
    }
}

pub(super) fn bad_parameter(detail: String) -> HttpError {
    HttpError::new(400, "bad_parameter", detail)
}
