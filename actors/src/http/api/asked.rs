//! What a request for records asks: its parameters, each read once, and none that nobody knows.

use std::str::FromStr;

use actix_web::{HttpRequest, web};
use logweir_engine::clock;

use super::super::answer::Refused;
use crate::query::moment::{duration, moment};
use crate::query::page::Range;
use crate::query::{Filter, parse};

/// Where nobody says when: the last hour.
const RANGE_US: i64 = 3_600_000_000;

/// The parameters of a request that have not been read yet.
pub struct Asked {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
    now_us: i64,
}

impl Asked {
    /// Those of `request`.
    ///
    /// # Errors
    /// They are no form data.
    pub fn of(request: &HttpRequest) -> Result<Self, Refused> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(|error| Refused::new(400, "bad_parameter", format!("the parameters cannot be read: {error}")))?
            .into_inner();
        Ok(Self { pairs, known: Vec::new(), now_us: clock::wall_us() })
    }

    /// The value of a parameter; an empty one is none.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, Refused> {
        self.known.push(name);
        let mut values = self.pairs.extract_if(.., |(given, _)| given == name).map(|(_, value)| value);
        let value = values.next();
        if values.next().is_some() {
            return Err(bad(format!("{name} is given twice")));
        }
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// A number from `min` to `max`.
    pub fn number<T>(&mut self, name: &'static str, default: T, min: T, max: T) -> Result<T, Refused>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.text(name)? else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (&min..=&max).contains(&number));
        number.ok_or_else(|| bad(format!("{name}={text:?} must be a whole number from {min} to {max}")))
    }

    /// One of some words.
    pub fn word<T: Copy>(&mut self, name: &'static str, default: T, words: &[(&str, T)]) -> Result<T, Refused> {
        let Some(text) = self.text(name)? else { return Ok(default) };
        let meant = words.iter().find(|(word, _)| *word == text).map(|&(_, meant)| meant);
        meant.ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            bad(format!("{name}={text:?} is not understood; there are {}", words.join(", ")))
        })
    }

    /// `query`: which records.
    pub fn filter(&mut self) -> Result<Filter, Refused> {
        let query = self.text("query")?.unwrap_or_default();
        parse(&query).map_err(|error| Refused {
            column: Some(error.column),
            ..Refused::new(400, "bad_query", error.to_string())
        })
    }

    /// `start` and `end`: when. The last hour where nothing is said.
    pub fn range(&mut self) -> Result<Range, Refused> {
        let now_us = self.now_us;
        let end_us = self.moment("end")?.unwrap_or(now_us.saturating_add(1));
        let start_us = self.moment("start")?.unwrap_or(end_us.saturating_sub(RANGE_US));
        if start_us > end_us {
            return Err(bad("start is after end".to_owned()));
        }
        Ok(Range { start_us, end_us })
    }

    /// A time.
    pub fn moment(&mut self, name: &'static str) -> Result<Option<i64>, Refused> {
        let now_us = self.now_us;
        self.text(name)?.map(|text| moment(&text, now_us).map_err(|error| bad(format!("{name}: {error}")))).transpose()
    }

    /// `step`: a duration, or none for `auto`.
    pub fn step(&mut self) -> Result<Option<i64>, Refused> {
        match self.text("step")?.as_deref() {
            None | Some("auto") => Ok(None),
            Some(text) => match duration(text).filter(|&us| us > 0) {
                Some(us) => Ok(Some(us)),
                None => Err(bad(format!("step={text:?} is no duration; there are auto and such as 30s, 1m, 6h, 1d"))),
            },
        }
    }

    /// A list with commas.
    pub fn list(&mut self, name: &'static str) -> Result<Vec<String>, Refused> {
        let text = self.text(name)?.unwrap_or_default();
        Ok(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
    }

    /// There must be no more: a misspelt parameter would silently mean its default.
    pub fn finish(self) -> Result<(), Refused> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(bad(format!("the parameter {name:?} is not known here; there are {}", self.known.join(", "))))
            }
        }
    }
}

pub(super) fn bad(detail: String) -> Refused {
    Refused::new(400, "bad_parameter", detail)
}
