//! The error type of the library.

use logweir_engine::stage::Exit;

use crate::config::ConfigError;

/// Why a [`Logweir`](crate::Logweir) could not start, or had to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(ConfigError),
    /// Something that is needed is unavailable: the journal's lock, an address, the database.
    #[error("{0}")]
    Unavailable(String),
    /// A stage failed or was restarted too often.
    #[error("{0}")]
    Stage(String),
    /// The journal's disk failed. Acknowledged records are on disk; the next start reads them again.
    #[error("{0}")]
    Disk(String),
    /// Another process has taken over this journal's identity in the database.
    #[error("{0}")]
    Fenced(String),
}

impl Error {
    /// Exit code for a process that ends with this error, as in `sysexits.h`.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_) => Exit::CONFIG,
            Self::Unavailable(_) => Exit::UNAVAILABLE,
            Self::Stage(_) => Exit::SOFTWARE,
            Self::Disk(_) => Exit::IO_ERROR,
            Self::Fenced(_) => Exit::FENCED,
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<Exit> for Error {
    fn from(exit: Exit) -> Self {
        match exit.code {
            Exit::UNAVAILABLE => Self::Unavailable(exit.reason),
            Exit::IO_ERROR => Self::Disk(exit.reason),
            Exit::FENCED => Self::Fenced(exit.reason),
            _ => Self::Stage(exit.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_an_exit_is_kept_and_so_is_its_code() {
        for code in [Exit::UNAVAILABLE, Exit::SOFTWARE, Exit::IO_ERROR, Exit::FENCED] {
            let error = Error::from(Exit::new(code, "why"));
            assert_eq!((error.code(), error.to_string()), (code, "why".to_owned()));
        }
        let error = Error::from(ConfigError::at("lanes", "expected a number"));
        assert_eq!(error.code(), Exit::CONFIG);
        assert_eq!(error.to_string(), "invalid configuration: invalid lanes: expected a number");
    }
}
