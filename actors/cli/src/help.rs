//! `logweir help`, `version`, `completions` and `man`: what is generated from the definition of the command line, and the
//! documents of `actors/cli/docs`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Args, Command};
use clap_complete::Shell;

use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::terminal::wants_color;

/// The documents as (name, title, Markdown).
const TOPICS: &[(&str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/topics.rs"));

/// Options of `run` that are listed by `logweir run --help` only, though they are accepted without a command as well.
const SHOWN_WITHOUT_COMMAND: [&str; 5] = ["config", "quiet", "verbose", "help", "version"];

const NAME_WIDTH: usize = 16;

#[derive(Debug, Args)]
pub(super) struct HelpArgs {
    /// A command, such as `journal check`, or a topic
    #[arg(value_name = "COMMAND|TOPIC", value_parser = Subject, hide_possible_values = true)]
    subject: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell that the script is for
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Print the page of this command, such as `journal check` [default: the page of logweir itself]
    #[arg(value_name = "COMMAND", conflicts_with = "output_dir")]
    command: Vec<String>,
    /// Write the pages of all commands into DIR, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Any word, with names that completions offer.
#[derive(Clone)]
struct Subject;

impl TypedValueParser for Subject {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue>>> {
        let topics = TOPICS.iter().map(|(name, title, _)| PossibleValue::new(*name).help(description(name, title)));
        Some(Box::new(COMMANDS.iter().map(|name| PossibleValue::new(*name)).chain(topics)))
    }
}

/// A topic in the list of topics; its title where it is a new one.
fn description(name: &str, title: &'static str) -> &'static str {
    match name {
        "alerts" => "Alerts on counts, rates and ratios of records",
        "files" => "Tail files and container logs",
        "formats" => "Recognized line formats and custom formats",
        "intake" => "Send records with POST /ingest: parameters, acknowledgment, responses",
        "live-tail" => "Stream records as they arrive, over HTTP and on the command line",
        "logql" => "Query from Grafana, with LogQL",
        "query-language" => "Query syntax of the web UI, query, tail, alerts and the API",
        "shippers" => "Endpoints of Loki, Elasticsearch, Splunk and OpenTelemetry for log shippers",
        "syslog" => "Receive syslog over UDP, TCP and TLS",
        "web-ui" => "Search and watch records in a browser",
        _ => title,
    }
}

/// Every command and subcommand. A constant, because the definition of the command line contains it.
const COMMANDS: [&str; 29] = [
    "run",
    "validate",
    "health",
    "parse",
    "produce",
    "verify",
    "query",
    "tail",
    "top",
    "journal",
    "database",
    "dead-letters",
    "help",
    "version",
    "completions",
    "man",
    "check",
    "dump",
    "repair",
    "drain",
    "adopt",
    "prepare",
    "grants",
    "migrate",
    "schema",
    "list",
    "replay",
    "purge",
    "logweir",
];

/// `command` with the topics, the exit codes, and without the options of `run` in its help.
pub(super) fn described(command: Command) -> Command {
    let hidden: Vec<_> = command.get_arguments().map(|argument| argument.get_id().clone()).collect();
    let hidden = hidden.into_iter().filter(|id| !SHOWN_WITHOUT_COMMAND.contains(&id.as_str()));
    let command = hidden.fold(command, |command, id| command.mut_arg(id, |argument| argument.hide(true)));
    let mut topics = "Topics (logweir help TOPIC):\n".to_owned();
    for (name, title, _) in TOPICS {
        let _ = writeln!(topics, "  {name:NAME_WIDTH$}{}", description(name, title));
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\nCommands:\n{{subcommands}}\n\n{topics}\nOptions:\n{{options}}{{after-help}}"
    );
    command.help_template(template).mut_args(|argument| argument.help_heading(None::<&str>)).after_help(exit::list())
}

/// The (sub)command that `words` name.
fn find<'a>(mut command: &'a mut Command, words: &[String]) -> Result<&'a mut Command, Failure> {
    for word in words.iter().filter(|word| *word != "logweir") {
        if command.find_subcommand(word).is_none() {
            return Err(unknown(command, word));
        }
        command = command.find_subcommand_mut(word).expect("it was found");
    }
    Ok(command)
}

fn unknown(parent: &Command, word: &str) -> Failure {
    const SIMILARITY_MIN: f64 = 0.7;
    let (kind, list) = match parent.get_name() {
        "logweir" => ("command or topic", "logweir help".to_owned()),
        name => ("subcommand", format!("logweir help {name}")),
    };
    let topics = TOPICS.iter().filter(|_| parent.get_name() == "logweir").map(|(name, ..)| *name);
    let similar = parent.get_subcommands().map(Command::get_name).chain(topics).filter(|name| *name != word);
    let best = similar
        .map(|name| (strsim::normalized_damerau_levenshtein(name, word), name))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN);
    let hint = best.map_or(String::new(), |(_, name)| format!("; did you mean {name}?"));
    Failure::new(exit::USAGE, format!("unknown {kind} {word:?}: `{list}` lists them{hint}"))
}

pub(super) fn help(args: &HelpArgs, mut command: Command) -> Outcome {
    if let [subject] = &args.subject[..]
        && let Some((_, _, text)) = TOPICS.iter().find(|(name, ..)| name == subject)
    {
        return print(text);
    }
    command.build();
    let help = find(&mut command, &args.subject)?.render_long_help();
    let colored = wants_color(io::stdout().is_terminal());
    print(&if colored { help.ansi().to_string() } else { help.to_string() })
}

pub(super) fn version(command: &Command) -> Outcome {
    print(&command.render_version())
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "logweir", &mut script);
    io::stdout().write_all(&script)?;
    Ok(exit::OK.into())
}

pub(super) fn man(args: &ManArgs, command: Command) -> Outcome {
    let mut command = command.disable_help_subcommand(true);
    if let Some(dir) = &args.output_dir {
        let generated = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
        generated.map_err(|error| Failure::new(exit::DISK, format!("cannot write to {}: {error}", dir.display())))?;
        return Ok(exit::OK.into());
    }
    command.build();
    let command = find(&mut command, &args.command)?.clone();
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    io::stdout().write_all(&page)?;
    Ok(exit::OK.into())
}

/// Writes help to standard output, where a full disk is an error like any other.
pub(super) fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(exit::OK.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn command() -> Command {
        described(Cli::command())
    }

    #[test]
    fn help_knows_every_command() {
        let command = command();
        for known in
            command.get_subcommands().flat_map(|command| std::iter::once(command).chain(command.get_subcommands()))
        {
            assert!(COMMANDS.contains(&known.get_name()), "{}", known.get_name());
        }
    }

    #[test]
    fn a_misspelled_command_or_topic_is_reported_with_a_similar_one() {
        for (words, expected) in [
            (&["formts"][..], "unknown command or topic \"formts\": `logweir help` lists them; did you mean formats?"),
            (&["qury"], "unknown command or topic \"qury\": `logweir help` lists them; did you mean query?"),
            (&["xyz"], "unknown command or topic \"xyz\": `logweir help` lists them"),
            (
                &["journal", "chek"],
                "unknown subcommand \"chek\": `logweir help journal` lists them; did you mean check?",
            ),
        ] {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            let Err(Failure::Message(exit::USAGE, why)) = find(&mut command(), &words).map(drop) else { panic!() };
            assert_eq!(why, expected);
        }
    }

    #[test]
    fn every_document_is_a_topic_with_a_title() {
        for topic in ["intake", "formats", "shippers", "syslog", "files", "query-language", "alerts", "logql"] {
            assert!(TOPICS.iter().any(|(name, title, _)| *name == topic && !title.is_empty()), "{topic}");
        }
    }
}
