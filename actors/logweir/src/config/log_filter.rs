//! Validation of `log.level`.
//!
//! `EnvFilter` takes any word that is not a level for a module, and then logs nothing else: `verbose` or `infoo` would
//! silence the program. So levels must be spelled correctly, and modules must be plausible.

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Common names of levels in other programs, and ours.
const ALIASES: [(&str, &str); 10] = [
    ("verbose", "debug"),
    ("fine", "debug"),
    ("all", "trace"),
    ("notice", "info"),
    ("information", "info"),
    ("warning", "warn"),
    ("err", "error"),
    ("fatal", "error"),
    ("critical", "error"),
    ("none", "off"),
];

/// Crates of the program that log.
const CRATES: [&str; 20] = [
    "logweir",
    "logweir_engine",
    "logweir_store",
    "logweir_tls",
    "actix_http",
    "actix_rt",
    "actix_server",
    "actix_web",
    "deadpool",
    "fred",
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "reqwest",
    "rustls",
    "tokio",
    "tokio_postgres",
    "tokio_util",
    "ureq",
];

/// A similar name counts as a misspelling from here on.
const SIMILARITY_MIN: f64 = 0.7;

/// What is accepted, for error messages and the reference.
pub const ALLOWED: &str = "error, warn, info, debug, trace or a filter such as info,logweir=debug";

/// Checks a level or a comma-separated filter.
///
/// # Errors
/// What is accepted, and what was probably meant.
pub fn check(text: &str) -> Result<(), String> {
    let expected = |hint: Option<String>| match hint {
        Some(hint) => format!("expected {ALLOWED}; {hint}"),
        None => format!("expected {ALLOWED}"),
    };
    if text.is_empty() {
        return Err(expected(None));
    }
    for directive in text.split(',') {
        check_directive(directive).map_err(expected)?;
    }
    #[cfg(feature = "server")]
    tracing_subscriber::EnvFilter::try_new(text).map_err(|error| expected(Some(error.to_string())))?;
    Ok(())
}

fn check_directive(directive: &str) -> Result<(), Option<String>> {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    // Filters by span, `[name]`, would match nothing: the program has no spans.
    let Some((target, level)) = directive.split_once('=') else {
        return if is_level(directive) { Ok(()) } else { Err(nearest_level(directive)) };
    };
    if !is_level(level) {
        return Err(nearest_level(level));
    }
    check_target(target)
}

fn check_target(target: &str) -> Result<(), Option<String>> {
    let identifier = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if !target.split("::").all(identifier) {
        return Err(Some(format!("{target:?} is not the path of a module, such as logweir::http")));
    }
    let krate = target.split("::").next().unwrap_or_default();
    if LEVELS.iter().any(|level| level.eq_ignore_ascii_case(krate)) {
        return Err(Some(format!("{krate} is a level: expected the path of a module before the =")));
    }
    if CRATES.contains(&krate) {
        return Ok(());
    }
    match most_similar(krate, &CRATES) {
        Some(meant) => Err(Some(format!("did you mean {meant}?"))),
        None => Ok(()),
    }
}

fn nearest_level(word: &str) -> Option<String> {
    let word = word.to_ascii_lowercase();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == word).map(|(_, level)| *level);
    if let Some(level) = alias.or_else(|| most_similar(&word, &LEVELS)) {
        return Some(format!("did you mean {level}?"));
    }
    CRATES.contains(&word.as_str()).then(|| format!("did you mean {word}=debug?"))
}

fn most_similar<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let similarity = |known: &str| strsim::normalized_damerau_levenshtein(known, word);
    let best = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(best) >= SIMILARITY_MIN).then_some(*best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_plausible_filters_are_accepted() {
        for text in [
            "error",
            "WARN",
            "info",
            "debug",
            "trace",
            "off",
            "info,logweir=debug",
            "warn,logweir_store::postgres=trace",
            "info,actix_server=off",
            "info,some_module=debug",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn everything_else_is_rejected_with_a_suggestion() {
        for (text, hint) in [
            ("verbose", "; did you mean debug?"),
            ("infoo", "; did you mean info?"),
            ("warning", "; did you mean warn?"),
            ("chatty", ""),
            ("", ""),
            ("info,", ""),
            ("3", ""),
            ("logweir", "; did you mean logweir=debug?"),
            ("logweir=verbose", "; did you mean debug?"),
            ("info,logwier=debug", "; did you mean logweir?"),
            ("info=debug", "; info is a level: expected the path of a module before the ="),
            ("info,tokio-postgres=debug", "; \"tokio-postgres\" is not the path of a module, such as logweir::http"),
            ("a=b=c", ""),
            ("[1]", ""),
            ("[span]=debug", "; \"[span]\" is not the path of a module, such as logweir::http"),
            ("=debug", "; \"\" is not the path of a module, such as logweir::http"),
            ("info, logweir=debug", "; \" logweir\" is not the path of a module, such as logweir::http"),
        ] {
            assert_eq!(check(text), Err(format!("expected {ALLOWED}{hint}")), "{text}");
        }
    }
}
