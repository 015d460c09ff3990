//! Wrong clocks. Not libfaketime: it answers with the right time to a signal handler that interrupts it, so that a
//! PostgreSQL whose clock is ahead never sees one of its time limits as passed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crate::disk::library;

/// The clock of the processes that are started with its environment.
pub struct Clock {
    dir: tempfile::TempDir,
    offset: File,
}

impl Clock {
    /// Compiles what makes clocks wrong. They are right until [`Clock::set`].
    ///
    /// # Errors
    /// Why that is impossible on this machine.
    pub fn new() -> Result<Self, String> {
        let dir = library("wrong_clock", include_str!("wrong_clock.c"))?;
        let offset = File::create(dir.path().join("offset")).map_err(|error| format!("a file: {error}"))?;
        let clock = Self { dir, offset };
        clock.set("+0s");
        Ok(clock)
    }

    /// Sets at once how far off it is: a signed number of seconds (`s`), hours (`h`), days (`d`) or years (`y`).
    ///
    /// # Panics
    /// If that is something else, or its file cannot be written.
    pub fn set(&self, offset: &str) {
        let seconds = seconds(offset).unwrap_or_else(|| panic!("{offset:?} is not an offset such as +400d or -1h"));
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).expect("the offset can be written");
    }

    /// Path of the library, for `LD_PRELOAD`.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.dir.path().join("wrong_clock.so")
    }

    /// Environment variables of the processes besides `LD_PRELOAD`.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        vec![("WRONG_CLOCK".to_owned(), self.dir.path().join("offset").display().to_string())]
    }

    /// All environment variables of the processes.
    #[must_use]
    pub fn whole_environment(&self) -> Vec<(String, String)> {
        let mut variables = self.environment();
        variables.push(("LD_PRELOAD".to_owned(), self.library().display().to_string()));
        variables
    }
}

fn seconds(offset: &str) -> Option<i64> {
    let (number, unit) = offset.split_at_checked(offset.len().checked_sub(1)?)?;
    let unit_s = match unit {
        "s" => 1,
        "h" => 3600,
        "d" => 86_400,
        "y" => 31_557_600,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit_s)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_started_with_it_has_another_year() {
        let clock = match Clock::new() {
            Ok(clock) => clock,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let year = || -> i64 {
            let output = Command::new("date").arg("+%Y").envs(clock.whole_environment()).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
        };
        let now = year();
        clock.set("+20y");
        assert!((19..=21).contains(&(year() - now)));
        clock.set("-400d");
        assert!((1..=2).contains(&(now - year())));
    }

    #[test]
    fn an_offset_has_a_sign_a_number_and_a_unit() {
        for (offset, expected) in [("+0s", 0), ("-1h", -3600), ("+400d", 34_560_000), ("+20y", 631_152_000)] {
            assert_eq!(seconds(offset), Some(expected));
        }
        for offset in ["", "d", "+1", "1 d", "+1w"] {
            assert_eq!(seconds(offset), None, "{offset}");
        }
    }
}
