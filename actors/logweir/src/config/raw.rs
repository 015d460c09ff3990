//! A value before it is parsed.

/// A value as a layer provides it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Raw {
    /// A string, an environment variable or a flag.
    Text(String),
    /// A TOML array of strings.
    List(Vec<String>),
    /// A TOML integer.
    Integer(i64),
    /// A TOML number with a fraction, as written.
    Fraction(String),
    /// A TOML boolean.
    Bool(bool),
    /// A TOML value that no key accepts, by its type.
    Other(&'static str),
}

impl Raw {
    /// The value as it was written, for an error message.
    pub(super) fn printed(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(format!("{text:?}")),
            Self::List(list) => Some(format!("{list:?}")),
            Self::Integer(number) => Some(number.to_string()),
            Self::Fraction(number) => Some(number.clone()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Other(kind) => Some((*kind).to_owned()),
        }
    }
}
