//! Errors of a configuration, and where a value comes from.

use std::fmt;
use std::path::PathBuf;

/// Source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The table of keys.
    Default,
    /// A line of the file; 0 for the file as a whole.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A file named by an environment variable.
    SecretFile(String, PathBuf),
    /// A flag.
    Flag(&'static str),
    /// The embedding program.
    Program,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, 0) => write!(f, "{}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::SecretFile(name, path) => write!(f, "{} (environment variable {name})", path.display()),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Program => f.write_str("program"),
        }
    }
}

/// One error of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Path of the key; empty for an unknown key, a whole file or a variable.
    pub key: String,
    /// Value, unless it is unreadable or secret.
    pub value: Option<String>,
    /// Source of the value.
    pub source: Source,
    /// What is wrong, and what is accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, source, message } = self;
        let is_default = matches!(source, Source::Default);
        if !is_default && *source != Source::Program {
            write!(f, "{source}: ")?;
        }
        if key.is_empty() {
            return f.write_str(message);
        }
        write!(f, "invalid {key}")?;
        if let Some(value) = value {
            write!(f, " {value}")?;
        }
        write!(f, "{}: {message}", if is_default { " (default)" } else { "" })
    }
}

/// All errors of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl ConfigError {
    /// A single error of the key at `path`, found when its value was first used.
    #[must_use]
    pub fn at(path: &str, message: impl fmt::Display) -> Self {
        let (key, message) = (path.to_owned(), message.to_string());
        Self(vec![Problem { key, value: None, source: Source::Program, message }])
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [problem] => write!(f, "invalid configuration: {problem}"),
            problems => {
                write!(f, "invalid configuration, {} errors:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}
