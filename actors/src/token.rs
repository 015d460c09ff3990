//! A secret as it stands in a configuration, perhaps with a name: `NAME=SECRET`.

/// A secret; prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl Token {
    /// What a sender must say: what stands behind `NAME=`, or all of it.
    #[must_use]
    pub fn secret(&self) -> &str {
        self.parts().1
    }

    /// Its name; `unnamed` where it has none.
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
            // Base64 may end in one or two of these.
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
