//! The formats that can be specified by name: the one list for configuration, HTTP, command line and documentation.

use crate::format::Format;

/// A format that can be specified by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FormatInfo {
    /// Name in `?format=`, `--format` and the configuration.
    pub name: &'static str,
    /// Other accepted names, mostly of loggers that write this format.
    pub aliases: &'static [&'static str],
    /// One line that describes it, lower case, without a full stop.
    pub description: &'static str,
}

const fn info(name: &'static str, description: &'static str) -> FormatInfo {
    FormatInfo { name, aliases: &[], description }
}

/// Loggers whose lines are read as `application`.
const LOGGERS: &[&str] = &["log4j", "logback", "hadoop", "spark", "zookeeper", "python", "go", "zap", "zerolog"];

/// All built-in formats.
pub static FORMATS: &[FormatInfo] = &[
    info("auto", "detected from the body and from each line (the default)"),
    info("json", "a JSON array of objects, or objects spread over several lines"),
    info("lines", "lines of text, the format of each detected; never a JSON document"),
    info("ndjson", "one JSON object per line"),
    FormatInfo {
        aliases: &["clf", "combined"],
        ..info("access_log", "access log of Apache or nginx, common or combined")
    },
    info("syslog", "syslog, RFC 5424 or RFC 3164, with or without <PRI>"),
    info("nginx_error", "error log of nginx"),
    info("apache_error", "error log of Apache 2.2 or 2.4"),
    info("logfmt", "name=value pairs only"),
    info("key_value", "a message that ends with at least two name=value pairs"),
    FormatInfo {
        aliases: LOGGERS,
        ..info("application", "time, level, logger and message, as written by most logging libraries")
    },
    FormatInfo { aliases: &["klog"], ..info("glog", "Google's glog and Kubernetes' klog") },
    info("redis", "log of a Redis server"),
    info("postgres", "log of a PostgreSQL server"),
    info("cri", "CRI container log line (containerd, CRI-O); its content is parsed as a line"),
    info("docker", "line of Docker's json-file driver; its content is parsed as a line"),
    info("logcat", "Android's logcat, threadtime format"),
    info("supercomputer", "published logs of BlueGene/L, Thunderbird and similar systems"),
    info("plain", "plain text; each line is a message"),
];

/// Returns the built-in format called `name`, or the format of the logger of that name.
#[must_use]
pub fn format_named(name: &str) -> Option<Format> {
    let known = FORMATS.iter().find(|format| format.name == name || format.aliases.contains(&name))?;
    match known.name {
        "auto" => Some(Format::Auto),
        "json" => Some(Format::Json),
        "lines" => Some(Format::Lines),
        "ndjson" => Some(Format::Ndjson),
        "plain" => Some(Format::Plain),
        "access_log" => Some(Format::AccessLog),
        name => Some(Format::Line(name)),
    }
}

/// The names in [`FORMATS`], separated by commas, for error messages.
#[must_use]
pub fn format_names() -> String {
    FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ")
}
