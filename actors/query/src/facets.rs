//! Counts the values of fields.

use std::collections::HashMap;

use logweir_record::record::Record;

use crate::attribute;
use crate::filter::Field;

/// Maximum number of distinct values per field; further ones are not counted, which sets `more`.
const VALUES_MAX: usize = 10_000;

/// Maximum number of services listed.
pub const SERVICES_MAX: u32 = 10_000;

/// Longer values are truncated.
const VALUE_BYTES_MAX: usize = 256;

/// Maximum number of distinct field names.
const NAMES_MAX: usize = 1_000;

/// Counts the values of some fields.
#[derive(Clone, Debug)]
pub struct Facets {
    fields: Vec<(String, Values)>,
}

#[derive(Clone, Debug, Default)]
struct Values {
    counts: HashMap<String, u64, foldhash::fast::RandomState>,
    /// Whether values were not counted.
    more: bool,
}

/// The values of one field, most frequent first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Facet {
    /// Field name.
    pub field: String,
    /// Values.
    pub values: Vec<ValueCount>,
    /// Whether there are more values.
    pub more: bool,
}

/// The frequency of a value.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ValueCount {
    /// The value.
    pub value: String,
    /// Number of records with this value.
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

    /// Returns at most `limit` values per field.
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

/// Counts attribute names.
#[derive(Clone, Debug, Default)]
pub struct Names(HashMap<String, u64, foldhash::fast::RandomState>);

/// The number of records with a field.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NameCount {
    /// Field name.
    pub name: String,
    /// Number of records with this field.
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

    /// Returns the names, most frequent first.
    #[must_use]
    pub fn finish(self) -> Vec<NameCount> {
        let mut names: Vec<_> = self.0.into_iter().map(|(name, count)| NameCount { name, count }).collect();
        names.sort_unstable_by(|a, b| (b.count, &a.name).cmp(&(a.count, &b.name)));
        names
    }
}
