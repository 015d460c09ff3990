//! Configured parsing rules: the time zone of times without one, and custom formats.

use std::sync::LazyLock;

use jiff::tz::TimeZone;

use crate::catalog::{format_named, format_names};
use crate::custom_format::CustomFormat;
use crate::format::Format;

/// The parsing rules.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rules {
    /// Zone of times that do not specify one.
    pub time_zone: TimeZone,
    /// Custom formats, tried before the built-in ones in this order. Each one slows down the parsing of every line.
    pub custom: Vec<CustomFormat>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { time_zone: TimeZone::UTC, custom: Vec::new() }
    }
}

impl Rules {
    /// The default rules.
    #[must_use]
    pub fn built_in() -> &'static Self {
        static BUILT_IN: LazyLock<Rules> = LazyLock::new(Rules::default);
        &BUILT_IN
    }

    /// Returns the custom or built-in format called `name`.
    #[must_use]
    pub fn format_named(&self, name: &str) -> Option<Format> {
        let own = self.custom.iter().position(|custom| custom.name == name);
        own.and_then(|number| u16::try_from(number).ok()).map(Format::Custom).or_else(|| format_named(name))
    }

    /// The names that [`Self::format_named`] accepts, separated by commas, for error messages.
    #[must_use]
    pub fn format_names(&self) -> String {
        let own = self.custom.iter().map(|custom| &*custom.name);
        [&*format_names()].into_iter().chain(own).collect::<Vec<_>>().join(", ")
    }
}
