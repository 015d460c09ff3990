//! The query as arguments of a command.

use clap::Args;

/// The query and how to type it in a shell.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct QueryWords {
    /// Query, such as service:cart severity>=warn; every record by default
    ///
    /// Several arguments are joined by spaces, and one that contains spaces is searched as a phrase:
    /// service:cart "card declined" are two terms. A single argument is used as it is. The shell interprets > < ( ) ! * and
    /// quotes: quote terms that contain them, as in 'severity>=warn', or the whole query. Negate with NOT, because an argument
    /// that starts with - is an option. `logweir help query-language` describes the language.
    #[arg(value_name = "QUERY")]
    words: Vec<String>,
}

impl QueryWords {
    /// The query in the query language.
    pub(super) fn query(&self) -> String {
        match &self.words[..] {
            [query] => query.clone(),
            words => words.iter().map(|word| term(word)).collect::<Vec<_>>().join(" "),
        }
    }
}

/// One of several arguments as a term: the shell has removed the quotes around a phrase.
fn term(word: &str) -> String {
    let is_query = ["\"", "`", "(", ")", " AND ", " OR ", "NOT "].iter().any(|part| word.contains(part));
    if !word.contains(char::is_whitespace) || is_query {
        return word.to_owned();
    }
    let operator = |c: char| matches!(c, ':' | '=' | '<' | '>' | '~');
    let name = word.split(char::is_whitespace).next().unwrap_or_default();
    let (field, phrase) = match name.rfind(operator) {
        Some(end) if !name.starts_with(operator) => word.split_at(end + 1),
        _ => ("", word),
    };
    format!("{field}\"{}\"", phrase.replace('\\', "\\\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_one_query() {
        let query = |words: &[&str]| QueryWords { words: words.iter().map(|&word| word.to_owned()).collect() }.query();
        for (words, expected) in [
            (&[][..], ""),
            (&["service:a severity>=warn"], "service:a severity>=warn"),
            (&["service:a", "severity>=warn"], "service:a severity>=warn"),
            (&["service:a", "card declined"], r#"service:a "card declined""#),
            (&["service:a", "user:Ada B"], r#"service:a user:"Ada B""#),
            (&["service:a", "path:~a b"], r#"service:a path:~"a b""#),
            (&["service:a", "at 12:30 today"], r#"service:a "at 12:30 today""#),
            (&["a", "(b OR c)", "NOT d"], "a (b OR c) NOT d"),
            (&["a", r#""b c""#], r#"a "b c""#),
        ] {
            assert_eq!(query(words), expected);
        }
    }
}
