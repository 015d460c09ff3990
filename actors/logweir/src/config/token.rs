//! A secret of the configuration with an optional name: `NAME=SECRET`.

/// A secret. `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl Token {
    /// Returns the secret without `NAME=`.
    #[must_use]
    pub fn secret(&self) -> &str {
        self.parts().1
    }

    /// Returns the name, or `unnamed`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().0
    }

    fn parts(&self) -> (&str, &str) {
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        match self.0.split_once('=') {
            // Base64 may end with one or two `=`.
            Some((name, secret)) if is_name(name) && !secret.trim_end_matches('=').is_empty() => (name, secret),
            _ => ("unnamed", &self.0),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
