//! What the configuration says of parsing: the time zone of times that name none, and formats of its own.

use std::sync::LazyLock;

use jiff::tz::TimeZone;

use super::custom::CustomFormat;
use super::format_named;
use crate::message::Format;

/// More formats would make each line slow.
pub const CUSTOM_MAX: usize = 32;

/// The rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The zone of times that name none.
    pub time_zone: TimeZone,
    /// Formats that are tried before the built-in ones, in the order of their names.
    pub custom: Vec<CustomFormat>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { time_zone: TimeZone::UTC, custom: Vec::new() }
    }
}

impl Rules {
    /// What holds where nobody says anything.
    #[must_use]
    pub fn built_in() -> &'static Self {
        static BUILT_IN: LazyLock<Rules> = LazyLock::new(Rules::default);
        &BUILT_IN
    }

    /// The format called `name`, one's own or built in.
    #[must_use]
    pub fn format_named(&self, name: &str) -> Option<Format> {
        let own = self.custom.iter().position(|custom| custom.name == name);
        own.and_then(|number| u16::try_from(number).ok()).map(Format::Custom).or_else(|| format_named(name))
    }

    /// The names that [`Self::format_named`] knows, for people.
    #[must_use]
    pub fn format_names(&self) -> String {
        let own = self.custom.iter().map(|custom| &*custom.name);
        [&*super::format_names()].into_iter().chain(own).collect::<Vec<_>>().join(", ")
    }
}
