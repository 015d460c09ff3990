//! Alert rules: parsing and validation of the `[alerts.NAME]` sections of the configuration. Pure.

use logweir_engine::window::{Aggregate, WindowSpec};
use logweir_query::{self as query, Filter};

use super::quantity::{Unit, quantity, show_number};
use super::raw::Raw;
use super::token::Token;

/// Maximum number of alerts.
pub const RULES_MAX: usize = 100;

/// Maximum number of panes in a window.
const PANES_MAX: u64 = 1000;
const DAY_MS: u64 = 86_400_000;

/// An alert rule.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rule {
    /// Name of the alert.
    pub name: String,
    /// Query that selects the records, as written in the configuration.
    pub query: String,
    /// Filter compiled from `query`.
    pub filter: Filter,
    /// `of` of a ratio, as written in the configuration.
    pub of: Option<String>,
    /// Value that is compared with the threshold.
    pub measure: Measure,
    /// Condition that fires the alert.
    pub threshold: Threshold,
    /// `window`: length of the window (5 min).
    pub window_ms: u64,
    /// `every`: evaluation interval (10 s).
    pub every_ms: u64,
    /// `grace`: how long a window waits for late records (10 s).
    pub grace_ms: u64,
    /// `for`: how long the condition must hold (0).
    pub for_ms: u64,
    /// Webhook to notify; `alerting.webhook_url` where the rule has none.
    pub webhook: Option<Token>,
}

/// The value that is compared with the threshold.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Measure {
    /// Number of matching records in the window.
    Count,
    /// Matching records per second, averaged over the window.
    Rate,
    /// Share of the matching records among the records that this filter matches.
    Ratio(Filter),
}

/// The condition that fires an alert.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Threshold {
    /// Fires above this value.
    Above(f64),
    /// Fires below this value.
    Below(f64),
}

/// Counts of one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Records that match the query.
    pub matched: u64,
    /// Records that match `of`; only used for a ratio.
    pub total: u64,
}

impl Aggregate for Counts {
    fn merge(&mut self, other: &Self) {
        self.matched += other.matched;
        self.total += other.total;
    }
}

impl Threshold {
    /// Returns whether `value` meets the condition.
    #[must_use]
    pub fn is_crossed_by(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::Below(limit) => value < limit,
        }
    }

    /// Returns the limit.
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
    /// Window specification of the rule.
    #[must_use]
    pub(crate) fn spec(&self) -> WindowSpec {
        let us = |millis: u64| i64::try_from(millis * 1000).unwrap_or(i64::MAX);
        WindowSpec::sliding(us(self.window_ms), us(self.every_ms), us(self.grace_ms))
    }

    /// Returns the value that is compared with the threshold; `None` for a ratio without records.
    #[must_use]
    pub(crate) fn value(&self, counts: Counts) -> Option<f64> {
        let matched = counts.matched as f64;
        match self.measure {
            Measure::Count => Some(matched),
            Measure::Rate => Some(matched * 1000.0 / self.window_ms as f64),
            Measure::Ratio(_) if counts.total == 0 => None,
            Measure::Ratio(_) => Some(matched / counts.total as f64),
        }
    }

    /// Parses the keys of `[alerts.NAME]`.
    ///
    /// # Errors
    /// Every problem found, each as the key it concerns and what is accepted.
    pub fn read(name: &str, members: &[(String, Raw)]) -> Result<Self, Vec<(String, String)>> {
        let mut reader = RuleReader { members, errors: Vec::new() };
        let rule = reader.rule(name);
        reader.unknown();
        if reader.errors.is_empty() { Ok(rule) } else { Err(reader.errors) }
    }

    /// The keys of the alert's section with their values: what [`Rule::read`] parses.
    pub(super) fn members(&self) -> Vec<(&'static str, Raw)> {
        let mut members = vec![("query", self.query.clone()), ("measure", self.measure.name().to_owned())];
        members.extend(self.of.clone().map(|of| ("of", of)));
        members.push((self.threshold.name(), self.threshold.limit().to_string()));
        for (name, millis) in
            [("window", self.window_ms), ("every", self.every_ms), ("grace", self.grace_ms), ("for", self.for_ms)]
        {
            members.push((name, show_number(millis, Unit::Millis)));
        }
        members.extend(self.webhook.clone().map(|url| ("webhook", url.0)));
        members.into_iter().map(|(name, value)| (name, Raw::Text(value))).collect()
    }
}

/// Keys of an alert section.
const KEYS: [&str; 10] = ["query", "of", "measure", "above", "below", "window", "every", "grace", "for", "webhook"];

struct RuleReader<'a> {
    members: &'a [(String, Raw)],
    errors: Vec<(String, String)>,
}

impl RuleReader<'_> {
    fn rule(&mut self, name: &str) -> Rule {
        let (query, filter) = self.query("query");
        let mut of = None;
        if self.raw("query").is_none() {
            self.error("query", "missing; expected a query, or \"\" for all records");
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
            self.error("of", "requires measure = \"ratio\"");
        }
        let threshold = match (self.number("above"), self.number("below")) {
            (Some(limit), None) => Threshold::Above(limit),
            (None, Some(limit)) => Threshold::Below(limit),
            _ => {
                if !self.errors.iter().any(|(key, _)| key == "above" || key == "below") {
                    self.error("above", "missing; expected a number in exactly one of above and below");
                }
                Threshold::Above(0.0)
            }
        };
        let window_ms = self.millis("window", 5 * 60_000, 1000);
        let every_ms = self.millis("every", 10_000.min(window_ms), 100);
        if !window_ms.is_multiple_of(every_ms) || window_ms / every_ms > PANES_MAX {
            self.error("every", &format!("must divide window evenly, into at most {PANES_MAX} parts"));
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

    fn raw(&self, key: &str) -> Option<&Raw> {
        self.members.iter().find(|(name, _)| name == key).map(|(_, raw)| raw)
    }

    fn error(&mut self, key: &str, what: &str) {
        self.errors.push((key.to_owned(), what.to_owned()));
    }

    fn query(&mut self, key: &str) -> (String, Filter) {
        let text = match self.raw(key) {
            None => return (String::new(), Filter::All),
            Some(Raw::Text(text)) => text.clone(),
            Some(_) => {
                self.error(key, "expected a query as a string");
                return (String::new(), Filter::All);
            }
        };
        match query::parse(&text) {
            Ok(filter) => (text, filter),
            Err(bad) => {
                self.error(key, &format!("invalid query: {bad}"));
                (text, Filter::All)
            }
        }
    }

    fn word(&mut self, key: &str, words: &[&str]) -> Option<usize> {
        let raw = self.raw(key)?;
        let index = match raw {
            Raw::Text(text) => words.iter().position(|word| word == text),
            _ => None,
        };
        if index.is_none() {
            self.error(key, &format!("expected one of {}", words.join(", ")));
        }
        index
    }

    fn number(&mut self, key: &str) -> Option<f64> {
        let number = match self.raw(key)? {
            Raw::Integer(number) => Some(*number as f64),
            Raw::Text(text) => text.parse::<f64>().ok(),
            _ => None,
        };
        let number = number.filter(|number| number.is_finite() && *number >= 0.0);
        if number.is_none() {
            self.error(key, "expected a number of at least 0, such as 100 or 0.05");
        }
        number
    }

    fn millis(&mut self, key: &str, fallback: u64, min: u64) -> u64 {
        let millis = match self.raw(key) {
            None => return fallback,
            Some(Raw::Text(text)) => quantity(text, Unit::Millis),
            Some(Raw::Integer(number)) => u64::try_from(*number).ok(),
            Some(_) => None,
        };
        millis.filter(|millis| (min..=DAY_MS).contains(millis)).unwrap_or_else(|| {
            self.error(key, &format!("expected a duration from {min}ms to 1d, such as 500ms, 30s or 5m"));
            fallback
        })
    }

    fn webhook(&mut self) -> Option<Token> {
        match self.raw("webhook")? {
            Raw::Text(url) if url.starts_with("http://") || url.starts_with("https://") => Some(Token(url.clone())),
            _ => {
                self.error("webhook", "expected a URL that starts with http:// or https://");
                None
            }
        }
    }

    fn unknown(&mut self) {
        let unknown: Vec<String> =
            self.members.iter().map(|(name, _)| name.clone()).filter(|name| !KEYS.contains(&name.as_str())).collect();
        for name in unknown {
            self.error(&name, &format!("unknown key: expected one of {}", KEYS.join(", ")));
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
    fn a_rule_is_parsed_with_its_defaults() {
        let rule = read(&[("query", text("service:cart")), ("above", Raw::Integer(10))]).unwrap();
        assert_eq!((rule.window_ms, rule.every_ms, rule.grace_ms, rule.for_ms), (300_000, 10_000, 10_000, 0));
        assert!(rule.spec().is_valid());
        assert_eq!(rule.value(Counts { matched: 30, total: 0 }), Some(30.0));
        let short = read(&[("query", text("")), ("below", text("0.5")), ("window", text("2s"))]).unwrap();
        assert_eq!((short.every_ms, short.threshold), (2000, Threshold::Below(0.5)));
    }

    #[test]
    fn rates_are_per_second_and_a_ratio_without_records_has_no_value() {
        let above = ("above", Raw::Integer(1));
        let rate =
            read(&[("query", text("")), above.clone(), ("measure", text("rate")), ("window", text("1m"))]).unwrap();
        assert_eq!(rate.value(Counts { matched: 30, total: 0 }), Some(0.5));
        let ratio = [("query", text("a")), above, ("measure", text("ratio")), ("of", text("service:cart"))];
        let ratio = read(&ratio).unwrap();
        assert_eq!(ratio.value(Counts { matched: 1, total: 4 }), Some(0.25));
        assert_eq!(ratio.value(Counts::default()), None);
    }

    #[test]
    fn every_error_names_its_key() {
        let errors = read(&[
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
        let members: Vec<&str> = errors.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(members, ["query", "measure", "of", "above", "every", "grace", "webhook", "windows"]);
        for members in [&[("above", Raw::Integer(1))][..], &[("query", text(""))]] {
            assert_eq!(read(members).unwrap_err().len(), 1);
        }
        let both = [("query", text("")), ("above", Raw::Integer(1)), ("below", Raw::Integer(2))];
        assert_eq!(read(&both).unwrap_err()[0].0, "above");
    }
}
