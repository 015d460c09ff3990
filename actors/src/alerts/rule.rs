//! What an alert watches: `[alerts.NAME]` of the configuration, read and checked. Pure.

use logweir_engine::window::{Aggregate, WindowSpec};

use crate::config::keys::Unit;
use crate::config::value::{Raw, quantity};
use crate::query::{self, Filter};
use crate::token::Token;

/// Alerts that there may be.
pub const RULES_MAX: usize = 100;

/// Panes in a window at most.
const PANES_MAX: u64 = 1000;
const DAY_MS: u64 = 86_400_000;

/// One alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Which records, as it was typed.
    pub query: String,
    /// Which records.
    pub filter: Filter,
    /// `of` of a ratio, as it was typed.
    pub of: Option<String>,
    /// What is compared.
    pub measure: Measure,
    /// With what.
    pub threshold: Threshold,
    /// `window`: how far back it looks (5 min).
    pub window_ms: u64,
    /// `every`: how often (10 s).
    pub every_ms: u64,
    /// `grace`: how long it waits for records that come late (10 s).
    pub grace_ms: u64,
    /// `for`: how long it must hold (0).
    pub for_ms: u64,
    /// Where it is told; `alerting.webhook_url` where it names none itself.
    pub webhook: Option<Token>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    /// How many there are in the window.
    Count,
    /// How many there are in a second, on average.
    Rate,
    /// Which share they have of those that this filter wants too.
    Ratio(Filter),
}

/// When it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// Above this.
    Above(f64),
    /// Below this.
    Below(f64),
}

/// What a window gathers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that the alert is about.
    pub matched: u64,
    /// Of so many; only for a ratio.
    pub of: u64,
}

impl Aggregate for Tally {
    fn merge(&mut self, other: &Self) {
        self.matched += other.matched;
        self.of += other.of;
    }
}

impl Threshold {
    /// Whether `value` is beyond it.
    #[must_use]
    pub fn is_passed(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::Below(limit) => value < limit,
        }
    }

    /// The number.
    #[must_use]
    pub fn limit(self) -> f64 {
        match self {
            Self::Above(limit) | Self::Below(limit) => limit,
        }
    }

    /// `above` or `below`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Above(_) => "above",
            Self::Below(_) => "below",
        }
    }
}

impl Measure {
    /// `count`, `rate` or `ratio`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Rate => "rate",
            Self::Ratio(_) => "ratio",
        }
    }
}

impl Rule {
    /// The windows that it looks at.
    #[must_use]
    pub fn spec(&self) -> WindowSpec {
        let us = |millis: u64| i64::try_from(millis * 1000).unwrap_or(i64::MAX);
        WindowSpec::sliding(us(self.window_ms), us(self.every_ms), us(self.grace_ms))
    }

    /// What is compared with the threshold; none for a ratio of nothing.
    #[must_use]
    pub fn value(&self, tally: Tally) -> Option<f64> {
        let matched = tally.matched as f64;
        match self.measure {
            Measure::Count => Some(matched),
            Measure::Rate => Some(matched * 1000.0 / self.window_ms as f64),
            Measure::Ratio(_) if tally.of == 0 => None,
            Measure::Ratio(_) => Some(matched / tally.of as f64),
        }
    }

    /// Reads the members of `[alerts.NAME]`.
    ///
    /// # Errors
    /// What is wrong, each with the member that it is about, and what is allowed.
    pub fn read(name: &str, members: &[(String, Raw)]) -> Result<Self, Vec<(String, String)>> {
        let mut reading = Reading { members, wrong: Vec::new() };
        let rule = reading.rule(name);
        reading.unknown();
        if reading.wrong.is_empty() { Ok(rule) } else { Err(reading.wrong) }
    }
}

/// The members that there are.
const MEMBERS: [&str; 10] = ["query", "of", "measure", "above", "below", "window", "every", "grace", "for", "webhook"];

struct Reading<'a> {
    members: &'a [(String, Raw)],
    wrong: Vec<(String, String)>,
}

impl Reading<'_> {
    fn rule(&mut self, name: &str) -> Rule {
        let (query, filter) = self.query("query");
        let mut of = None;
        if self.raw("query").is_none() {
            self.complain("query", "is missing: say which records it is about, \"\" for all");
        }
        let measure = match self.word("measure", &["count", "rate", "ratio"]) {
            Some(1) => Measure::Rate,
            Some(2) => {
                let (text, filter) = self.query("of");
                of = Some(text);
                Measure::Ratio(filter)
            }
            _ => Measure::Count,
        };
        if self.raw("of").is_some() && !matches!(measure, Measure::Ratio(_)) {
            self.complain("of", "is only for measure = \"ratio\"");
        }
        let threshold = match (self.number("above"), self.number("below")) {
            (Some(limit), None) => Threshold::Above(limit),
            (None, Some(limit)) => Threshold::Below(limit),
            _ => {
                if !self.wrong.iter().any(|(member, _)| member == "above" || member == "below") {
                    self.complain("above", "needs a number, in either above or below");
                }
                Threshold::Above(0.0)
            }
        };
        let window_ms = self.millis("window", 5 * 60_000, 1000);
        let every_ms = self.millis("every", 10_000.min(window_ms), 100);
        if !window_ms.is_multiple_of(every_ms) || window_ms / every_ms > PANES_MAX {
            self.complain("every", &format!("must go into window a whole number of times, at most {PANES_MAX}"));
        }
        Rule {
            name: name.to_owned(),
            query,
            filter,
            of,
            measure,
            threshold,
            window_ms,
            every_ms,
            grace_ms: self.millis("grace", 10_000, 0),
            for_ms: self.millis("for", 0, 0),
            webhook: self.webhook(),
        }
    }

    fn raw(&self, member: &str) -> Option<&Raw> {
        self.members.iter().find(|(name, _)| name == member).map(|(_, raw)| raw)
    }

    fn complain(&mut self, member: &str, what: &str) {
        self.wrong.push((member.to_owned(), what.to_owned()));
    }

    fn query(&mut self, member: &str) -> (String, Filter) {
        let text = match self.raw(member) {
            None => return (String::new(), Filter::All),
            Some(Raw::Text(text)) => text.clone(),
            Some(_) => {
                self.complain(member, "must be a query as a string");
                return (String::new(), Filter::All);
            }
        };
        match query::parse(&text) {
            Ok(filter) => (text, filter),
            Err(bad) => {
                self.complain(member, &format!("is no query: {bad}"));
                (text, Filter::All)
            }
        }
    }

    fn word(&mut self, member: &str, words: &[&str]) -> Option<usize> {
        let raw = self.raw(member)?;
        let index = match raw {
            Raw::Text(text) => words.iter().position(|word| word == text),
            _ => None,
        };
        if index.is_none() {
            self.complain(member, &format!("must be one of {}", words.join(", ")));
        }
        index
    }

    fn number(&mut self, member: &str) -> Option<f64> {
        let number = match self.raw(member)? {
            Raw::Integer(number) => Some(*number as f64),
            Raw::Text(text) => text.parse::<f64>().ok(),
            _ => None,
        };
        let number = number.filter(|number| number.is_finite() && *number >= 0.0);
        if number.is_none() {
            self.complain(member, "must be a number from 0 on, such as 100 or 0.05");
        }
        number
    }

    fn millis(&mut self, member: &str, fallback: u64, min: u64) -> u64 {
        let millis = match self.raw(member) {
            None => return fallback,
            Some(Raw::Text(text)) => quantity(text, Unit::Millis),
            Some(Raw::Integer(number)) => u64::try_from(*number).ok(),
            Some(_) => None,
        };
        millis.filter(|millis| (min..=DAY_MS).contains(millis)).unwrap_or_else(|| {
            self.complain(member, &format!("must be a time such as 500ms, 30s or 5m, from {min}ms to 1d"));
            fallback
        })
    }

    fn webhook(&mut self) -> Option<Token> {
        match self.raw("webhook")? {
            Raw::Text(url) if url.starts_with("http://") || url.starts_with("https://") => Some(Token(url.clone())),
            _ => {
                self.complain("webhook", "must be http://… or https://…");
                None
            }
        }
    }

    fn unknown(&mut self) {
        let unknown: Vec<String> = self
            .members
            .iter()
            .map(|(name, _)| name.clone())
            .filter(|name| !MEMBERS.contains(&name.as_str()))
            .collect();
        for name in unknown {
            self.complain(&name, &format!("is not a key: an alert has {}", MEMBERS.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    fn read(members: &[(&str, Raw)]) -> Result<Rule, Vec<(String, String)>> {
        let members: Vec<_> = members.iter().map(|(name, raw)| ((*name).to_owned(), raw.clone())).collect();
        Rule::read("cart", &members)
    }

    #[test]
    fn a_rule_is_read_with_what_goes_without_saying() {
        let rule = read(&[("query", text("service:cart")), ("above", Raw::Integer(10))]).unwrap();
        assert_eq!((rule.window_ms, rule.every_ms, rule.grace_ms, rule.for_ms), (300_000, 10_000, 10_000, 0));
        assert!(rule.spec().holds());
        assert_eq!(rule.value(Tally { matched: 30, of: 0 }), Some(30.0));
        let short = read(&[("query", text("")), ("below", text("0.5")), ("window", text("2s"))]).unwrap();
        assert_eq!((short.every_ms, short.threshold), (2000, Threshold::Below(0.5)));
    }

    #[test]
    fn rates_are_a_second_s_and_a_ratio_of_nothing_is_nothing() {
        let above = ("above", Raw::Integer(1));
        let rate =
            read(&[("query", text("")), above.clone(), ("measure", text("rate")), ("window", text("1m"))]).unwrap();
        assert_eq!(rate.value(Tally { matched: 30, of: 0 }), Some(0.5));
        let ratio = [("query", text("a")), above, ("measure", text("ratio")), ("of", text("service:cart"))];
        let ratio = read(&ratio).unwrap();
        assert_eq!(ratio.value(Tally { matched: 1, of: 4 }), Some(0.25));
        assert_eq!(ratio.value(Tally::default()), None);
    }

    #[test]
    fn every_mistake_is_named_with_its_member() {
        let wrong = read(&[
            ("query", text("a (")),
            ("of", text("b")),
            ("measure", text("mean")),
            ("above", text("many")),
            ("window", text("1m")),
            ("every", text("7s")),
            ("grace", Raw::Bool(true)),
            ("webhook", text("ftp://x")),
            ("windows", text("1m")),
        ])
        .unwrap_err();
        let members: Vec<&str> = wrong.iter().map(|(member, _)| member.as_str()).collect();
        assert_eq!(members, ["query", "measure", "of", "above", "every", "grace", "webhook", "windows"]);
        for members in [&[("above", Raw::Integer(1))][..], &[("query", text(""))]] {
            assert_eq!(read(members).unwrap_err().len(), 1);
        }
        let both = [("query", text("")), ("above", Raw::Integer(1)), ("below", Raw::Integer(2))];
        assert_eq!(read(&both).unwrap_err()[0].0, "above");
    }
}
