//! One log event, borrowed from the chunk or the input that owns its text.

use std::fmt;

/// Severity of an event as an OpenTelemetry severity number: 1..=24, or 0 if unspecified.
///
/// Source: OpenTelemetry, "Logs Data Model", field `SeverityNumber`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Severity(u8);

impl Severity {
    /// 0: no severity was specified.
    pub const UNSPECIFIED: Self = Self(0);
    /// 1.
    pub const TRACE: Self = Self(1);
    /// 5.
    pub const DEBUG: Self = Self(5);
    /// 9.
    pub const INFO: Self = Self(9);
    /// 13.
    pub const WARN: Self = Self(13);
    /// 17.
    pub const ERROR: Self = Self(17);
    /// 21.
    pub const FATAL: Self = Self(21);

    /// Returns the severity with this OpenTelemetry number, or `None` above 24.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        if number <= 24 { Some(Self(number)) } else { None }
    }

    /// The OpenTelemetry severity number, 0..=24.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The short name of the number's range: `TRACE`, `DEBUG`, … `FATAL`, or `UNSPECIFIED`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "UNSPECIFIED",
            1..=4 => "TRACE",
            5..=8 => "DEBUG",
            9..=12 => "INFO",
            13..=16 => "WARN",
            17..=20 => "ERROR",
            _ => "FATAL",
        }
    }

    /// Parses a level name as programs write it, case-insensitively: `info`, `WARNING`, `err`, `crit`, … Returns `None`
    /// for an unknown name.
    ///
    /// Syslog's names are mapped as in OpenTelemetry's appendix B: notice → INFO2, crit → ERROR2, alert → ERROR3, emerg
    /// → FATAL.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        // Fast path for the most common spellings.
        match text {
            "info" | "INFO" => return Some(Self::INFO),
            "warn" | "WARN" => return Some(Self::WARN),
            "error" | "ERROR" => return Some(Self::ERROR),
            "debug" | "DEBUG" => return Some(Self::DEBUG),
            _ => {}
        }
        let mut lower = [0_u8; 16];
        let text = text.trim().as_bytes();
        let lower = lower.get_mut(..text.len())?;
        lower.copy_from_slice(text);
        lower.make_ascii_lowercase();
        Some(match &*lower {
            b"trace" | b"trc" | b"trce" | b"finest" | b"verbose" | b"vrb" | b"silly" => Self::TRACE,
            b"finer" => Self(2),
            b"debug" | b"dbg" | b"dbug" | b"fine" | b"config" | b"debug1" | b"debug2" | b"debug3" | b"debug4"
            | b"debug5" => Self::DEBUG,
            b"info" | b"inf" | b"information" | b"informational" | b"log" | b"http" | b"note" | b"system"
            | b"success" => Self::INFO,
            b"notice" | b"audit" => Self(10),
            b"warn" | b"warning" | b"wrn" => Self::WARN,
            b"error" | b"err" | b"eror" | b"erro" | b"severe" | b"fail" => Self::ERROR,
            b"critical" | b"crit" | b"dpanic" => Self(18),
            b"alert" => Self(19),
            b"fatal" | b"emerg" | b"emergency" | b"panic" | b"ftl" | b"pnc" | b"failure" => Self::FATAL,
            _ => return None,
        })
    }
}

impl fmt::Debug for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// One log event, borrowed from the [`Chunk`](crate::chunk::Chunk) (or from the input) that owns its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Event time in microseconds since 1970-01-01 00:00 UTC.
    pub ts_us: i64,
    /// Severity.
    pub severity: Severity,
    /// Name of the program that wrote the event.
    pub service: &'a str,
    /// Machine, pod or container that the event came from; empty if unknown.
    pub host: &'a str,
    /// Message text.
    pub message: &'a str,
    /// All other fields: the text of one JSON object, or empty.
    pub attributes: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_names_map_to_opentelemetry_numbers() {
        for (text, number) in [
            ("TRACE", 1),
            ("debug", 5),
            ("Info", 9),
            ("notice", 10),
            ("WARNING", 13),
            ("warn", 13),
            ("err", 17),
            ("Error", 17),
            ("crit", 18),
            ("alert", 19),
            ("emerg", 21),
            (" fatal ", 21),
            ("SEVERE", 17),
            ("FAILURE", 21),
            ("DEBUG3", 5),
            ("Note", 9),
            ("FTL", 21),
            ("trce", 1),
        ] {
            assert_eq!(Severity::from_text(text).map(Severity::number), Some(number), "{text}");
        }
        assert_eq!(Severity::from_text("whatever"), None);
        assert_eq!(Severity::from_text("a level name of more than sixteen bytes"), None);
        assert_eq!(Severity::from_number(25), None);
    }
}
