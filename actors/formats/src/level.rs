//! Levels as lines have them: in words, as a letter, as syslog's code.

use logweir_record::record::Severity;

/// By code, RFC 5424 table 2 in OpenTelemetry's numbers: emergency, alert, critical, error, warning, notice, info,
/// debug.
const SEVERITIES: [u8; 8] = [21, 19, 18, 17, 13, 10, 9, 5];

/// A level in capitals: prose does not begin like that.
pub fn bare_level(word: &str) -> Option<Severity> {
    let known = matches!(
        word,
        "TRACE"
            | "DEBUG"
            | "INFO"
            | "NOTICE"
            | "WARN"
            | "WARNING"
            | "ERROR"
            | "SEVERE"
            | "FATAL"
            | "CRITICAL"
            | "CRIT"
            | "ALERT"
            | "EMERG"
            | "EMERGENCY"
            | "PANIC"
            | "DPANIC"
            | "FINE"
            | "FINER"
            | "FINEST"
            | "CONFIG"
            | "VERBOSE"
            | "AUDIT"
            | "TRC"
            | "DBG"
            | "INF"
            | "WRN"
            | "ERR"
            | "FTL"
            | "PNC"
            | "SUCCESS"
            | "ERRO"
    );
    known.then(|| Severity::from_text(word)).flatten()
}

/// A level in any case, where the surroundings show that it is one.
pub fn delimited_level(word: &str) -> Option<Severity> {
    let letters = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    letters.then(|| Severity::from_text(word)).flatten()
}

/// Whether a word is a level, and thus neither host nor program.
pub fn is_level(word: &str) -> bool {
    bare_level(word).is_some()
}

/// Severity of the leading letter; `D` is MongoDB's.
pub fn of_letter(letter: u8) -> Option<Severity> {
    Some(match letter {
        b'D' => Severity::DEBUG,
        b'I' => Severity::INFO,
        b'W' => Severity::WARN,
        b'E' => Severity::ERROR,
        b'F' => Severity::FATAL,
        _ => return None,
    })
}

/// Severity of a code from 0 (emergency) to 7 (debug).
pub fn of_syslog(code: u8) -> Option<Severity> {
    SEVERITIES.get(usize::from(code)).and_then(|&number| Severity::from_number(number))
}
