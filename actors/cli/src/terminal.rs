//! Whether output is colored, by the usual environment variables: <https://no-color.org>,
//! <https://bixense.com/clicolors>.

/// Whether to color output to a stream; `is_terminal`: whether it is one.
///
/// `NO_COLOR` turns colors off. Otherwise `CLICOLOR_FORCE` turns them on, also for a file or a pipe. Otherwise only a
/// terminal gets colors, unless `CLICOLOR` is 0 or `TERM` is `dumb`.
#[must_use]
pub fn wants_color(is_terminal: bool) -> bool {
    decide(is_terminal, |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

fn decide(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    is_terminal && set("CLICOLOR").as_deref() != Some("0") && set("TERM").as_deref() != Some("dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_variables_decide() {
        for (is_terminal, variables, colors) in [
            (true, &[][..], true),
            (false, &[], false),
            (true, &[("TERM", "xterm")], true),
            (true, &[("NO_COLOR", "1")], false),
            (true, &[("NO_COLOR", "")], true),
            (true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], false),
            (false, &[("CLICOLOR_FORCE", "1")], true),
            (false, &[("CLICOLOR_FORCE", "0")], false),
            (true, &[("CLICOLOR", "0")], false),
            (true, &[("CLICOLOR", "1")], true),
            (true, &[("TERM", "dumb")], false),
            (true, &[("TERM", "dumb"), ("CLICOLOR_FORCE", "1")], true),
        ] {
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value): &(_, &str)| (*value).to_owned())
            };
            assert_eq!(decide(is_terminal, variable), colors, "{is_terminal} {variables:?}");
        }
    }
}
