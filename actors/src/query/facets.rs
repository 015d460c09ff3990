//! The values that fields have, and how often.

use std::collections::HashMap;

use logweir_engine::record::Record;

use super::attribute;
use super::filter::Field;

/// Different values of one field that are told apart; what comes later is not counted, and `more` says so.
const VALUES_MAX: usize = 10_000;

/// Services that are listed.
pub const SERVICES_MAX: u32 = 10_000;

/// Values are cut to this.
const VALUE_BYTES_MAX: usize = 256;

/// Different names of fields that are told apart.
const NAMES_MAX: usize = 1_000;

/// The values of some fields, being counted.
#[derive(Clone)]
pub struct Facets {
    fields: Vec<(String, Values)>,
}

#[derive(Clone, Default)]
struct Values {
    counts: HashMap<String, u64, foldhash::fast::RandomState>,
    /// Some were left out.
    more: bool,
}

/// The values of one field, the most frequent first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Facet {
    /// The field's name.
    pub field: String,
    /// Its values.
    pub values: Vec<ValueCount>,
    /// Whether there are others.
    pub more: bool,
}

/// How often a value was seen.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct ValueCount {
    /// The value.
    pub value: String,
    /// The number of records that have it.
    pub count: u64,
}

impl Facets {
    /// Counts the values of the fields with these names.
    #[must_use]
    pub fn of(names: impl IntoIterator<Item = String>) -> Self {
        Self { fields: names.into_iter().map(|name| (name, Values::default())).collect() }
    }

    /// Whether the message is one of the fields.
    #[must_use]
    pub fn needs_message(&self) -> bool {
        self.fields.iter().any(|(name, _)| Field::named(name) == Field::Message)
    }

    /// Counts one record.
    pub fn add(&mut self, record: &Record<'_>) {
        for (name, values) in &mut self.fields {
            if matches!(&**name, "severity" | "level") {
                values.add(record.severity.name());
            } else if let Some(text) = Field::named(name).text(record).filter(|text| !text.is_empty()) {
                values.add(&text);
            }
        }
    }

    /// At most `limit` values of each.
    #[must_use]
    pub fn finish(self, limit: usize) -> Vec<Facet> {
        let facet = |(field, values): (String, Values)| {
            let more = values.more || values.counts.len() > limit;
            let mut values: Vec<_> =
                values.counts.into_iter().map(|(value, count)| ValueCount { value, count }).collect();
            values.sort_unstable_by(|a, b| (b.count, &a.value).cmp(&(a.count, &b.value)));
            values.truncate(limit);
            Facet { field, values, more }
        };
        self.fields.into_iter().map(facet).collect()
    }
}

impl Values {
    fn add(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(VALUE_BYTES_MAX)];
        if let Some(count) = self.counts.get_mut(text) {
            *count += 1;
        } else if self.counts.len() < VALUES_MAX {
            self.counts.insert(text.to_owned(), 1);
        } else {
            self.more = true;
        }
    }
}

/// The names of attributes, being counted.
#[derive(Default)]
pub struct Names(HashMap<String, u64, foldhash::fast::RandomState>);

/// How many records have a field.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct NameCount {
    /// The field's name.
    pub name: String,
    /// The number of records that have it.
    pub count: u64,
}

impl Names {
    /// Counts the attributes of one record.
    pub fn add(&mut self, record: &Record<'_>) {
        attribute::names(record.attributes, &mut |name| {
            if let Some(count) = self.0.get_mut(name) {
                *count += 1;
            } else if self.0.len() < NAMES_MAX {
                self.0.insert(name.to_owned(), 1);
            }
        });
    }

    /// The names, the most frequent first.
    #[must_use]
    pub fn finish(self) -> Vec<NameCount> {
        let mut names: Vec<_> = self.0.into_iter().map(|(name, count)| NameCount { name, count }).collect();
        names.sort_unstable_by(|a, b| (b.count, &a.name).cmp(&(a.count, &b.name)));
        names
    }
}
