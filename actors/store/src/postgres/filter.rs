//! Translates filters to SQL. All user input is passed as parameters.
//!
//! A condition must be true or false as in [`Filter::matches`], never NULL: nullable expressions default to false.
//! Text is compared under the collation "C", which folds case for A to Z only.

use tokio_postgres::types::{ToSql, Type};

use super::types::Time;
use logweir_query::attribute;
use logweir_query::{Field, Filter, Test, Text, TextKind};
use logweir_record::timestamp::MAX_US;

/// [`number`](logweir_query::text::number) as a regular expression.
const NUMBER: &str = "^[-+]?[0-9]{1,100}(\\.[0-9]{1,100})?([eE][-+]?[0-9]{1,2})?$";

/// A statement under construction.
#[derive(Default)]
pub(super) struct Sql {
    pub(super) text: String,
    values: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
    needs_unicode: bool,
}

impl Sql {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }

    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a parameter and returns its placeholder.
    pub(super) fn value(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> String {
        self.values.push((Box::new(value), kind));
        format!("${}", self.values.len())
    }

    pub(super) fn time(&mut self, ts_us: i64) -> String {
        self.value(Time(ts_us), Type::TIMESTAMPTZ)
    }

    /// The exclusive end of a range. One beyond the last time that a record can have includes that time.
    pub(super) fn end(&mut self, ts_us: i64) -> String {
        match ts_us > MAX_US {
            true => "'infinity'::timestamptz".to_owned(),
            false => self.time(ts_us),
        }
    }

    pub(super) fn number(&mut self, number: i64) -> String {
        self.value(number, Type::INT8)
    }

    fn string(&mut self, text: &str) -> String {
        self.value(text.to_owned(), Type::TEXT)
    }

    pub(super) fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.values.iter().map(|(value, _)| &**value as &(dyn ToSql + Sync)).collect()
    }

    /// Whether a filter in it compares numbers of characters: see [`Text::needs_unicode`].
    pub(super) fn needs_unicode(&self) -> bool {
        self.needs_unicode
    }

    pub(super) fn types(&self) -> Vec<Type> {
        self.values.iter().map(|(_, kind)| kind.clone()).collect()
    }

    /// Appends `filter` as one condition.
    pub(super) fn filter(&mut self, filter: &Filter) -> &mut Self {
        let condition = self.condition(filter);
        self.push(&condition)
    }

    fn condition(&mut self, filter: &Filter) -> String {
        match filter {
            Filter::All => "TRUE".to_owned(),
            Filter::And(filters) if filters.is_empty() => "TRUE".to_owned(),
            Filter::Or(filters) if filters.is_empty() => "FALSE".to_owned(),
            Filter::And(filters) => self.joined(filters, " AND "),
            Filter::Or(filters) => self.joined(filters, " OR "),
            Filter::Not(filter) => format!("NOT {}", self.condition(filter)),
            Filter::Severity(range) => {
                let min = self.value(i16::from(range.min), Type::INT2);
                let max = self.value(i16::from(range.max), Type::INT2);
                format!("(severity BETWEEN {min} AND {max})")
            }
            Filter::Field { field, test } => self.test(field, test),
        }
    }

    fn joined(&mut self, filters: &[Filter], by: &str) -> String {
        let conditions: Vec<_> = filters.iter().map(|filter| self.condition(filter)).collect();
        format!("({})", conditions.join(by))
    }

    fn test(&mut self, field: &Field, test: &Test) -> String {
        let column = match field {
            Field::Service => "service",
            Field::Host => "host",
            Field::Message => "message",
            Field::Attribute(name) => return self.attribute(name, test),
        };
        match test {
            Test::Exists => format!("({column} <> '')"),
            test => self.text_test(column, test),
        }
    }

    /// Returns the condition for an attribute; false if the record does not have it.
    fn attribute(&mut self, name: &str, test: &Test) -> String {
        // No stored name contains NUL.
        if name.contains('\0') {
            return "FALSE".to_owned();
        }
        let ways: Vec<_> = attribute::paths(name)
            .map(|path| {
                path.into_iter().fold("attributes".to_owned(), |at, name| format!("{at} -> {}", self.string(name)))
            })
            .collect();
        let value = format!("COALESCE({})", ways.join(", "));
        if *test == Test::Exists {
            return format!("COALESCE(jsonb_typeof({value}) <> 'null', FALSE)");
        }
        let text =
            format!("(CASE WHEN jsonb_typeof({value}) IN ('string', 'number', 'boolean') THEN {value} #>> '{{}}' END)");
        format!("COALESCE({}, FALSE)", self.text_test(&text, test))
    }

    fn text_test(&mut self, text: &str, test: &Test) -> String {
        match test {
            Test::Exists => format!("({text} IS NOT NULL)"),
            Test::OneOf(values) => {
                let values: Vec<String> = values.iter().filter(|value| !value.contains('\0')).cloned().collect();
                match &*values {
                    [value] => format!("({text} = {})", self.string(value)),
                    _ => format!("({text} = ANY ({}))", self.value(values, Type::TEXT_ARRAY)),
                }
            }
            Test::Text(wanted) => self.like(text, wanted),
            Test::Compare(comparison, than) => {
                let than = self.value(*than, Type::FLOAT8);
                let number = self.string(NUMBER);
                // CASE protects the cast from text that is not a number.
                format!(
                    "(CASE WHEN {text} COLLATE \"C\" ~ {number} THEN ({text})::float8 {} {than} ELSE FALSE END)",
                    comparison.sign()
                )
            }
        }
    }

    /// Uses LIKE where it suffices, since a trigram index supports it best; and in front of a regular expression for
    /// words, so that the index can narrow the candidates.
    fn like(&mut self, text: &str, wanted: &Text) -> String {
        let pattern = wanted.pattern();
        // No stored text contains NUL. A regular expression that contains one can still match.
        if wanted.kind() != TextKind::Regex && pattern.contains('\0') {
            return "FALSE".to_owned();
        }
        let operator = if wanted.case_sensitive() { "LIKE" } else { "ILIKE" };
        let (before, after) = match wanted.kind() {
            TextKind::Prefix => ("", "%"),
            TextKind::Suffix => ("%", ""),
            _ => ("%", "%"),
        };
        let mut like = None;
        if wanted.kind() != TextKind::Regex {
            let literal = self.string(&format!("{before}{}{after}", escaped(pattern)));
            like = Some(format!("{text} COLLATE \"C\" {operator} {literal}"));
        }
        let regex = match wanted.kind() {
            TextKind::Words | TextKind::WordsFrom | TextKind::WordsTo | TextKind::Regex => {
                let regex = self.string(wanted.postgres());
                self.needs_unicode |= wanted.needs_unicode();
                Some(format!("{text} COLLATE \"C\" ~ {regex}"))
            }
            TextKind::Substring | TextKind::Prefix | TextKind::Suffix => None,
        };
        let both: Vec<_> = [like, regex].into_iter().flatten().collect();
        format!("({})", both.join(" AND "))
    }
}

/// Escapes the LIKE metacharacters in `pattern`.
fn escaped(pattern: &str) -> String {
    let mut escaped = String::with_capacity(pattern.len());
    for character in pattern.chars() {
        if matches!(character, '%' | '_' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_query::parse;

    #[test]
    fn user_input_never_appears_in_the_statement() {
        let query = r#"o'clock "a; DROP" service:("x'y", z) "na'me.b":v* user>1 ~"q'+" NOT host:h severity>=warn"#;
        let mut sql = Sql::default();
        sql.filter(&parse(&query.replace("o'clock", "\"o'clock\"")).unwrap());
        let typed = sql.text.replace("'null'", "").replace("'string', 'number', 'boolean'", "").replace("'{}'", "");
        for part in ["'", ";", "DROP", "na", "clock"] {
            assert!(!typed.contains(part), "{part} in {typed}");
        }
        assert_eq!(sql.values.len(), sql.types().len());
    }
}
