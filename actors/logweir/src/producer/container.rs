//! Container runtimes' line envelopes, and the container that a log file's path identifies.
//!
//! Both kinds of lines are converted to CRI's `TIME STREAM F MESSAGE`, with split lines joined: the parser then knows
//! one envelope. Kubernetes names come from the path alone, without the API server.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;

/// A line taken out of its envelope.
#[derive(Debug, PartialEq, Eq)]
pub struct Unwrapped<'a> {
    /// `TIME STREAM`
    pub envelope: Cow<'a, str>,
    /// Whether it was written to standard error.
    pub is_stderr: bool,
    /// The line continues in the next one of the same stream.
    pub is_partial: bool,
    /// The program's output.
    pub message: Cow<'a, [u8]>,
}

/// Removes the envelope of a line of CRI or Docker's `json-file`; `None` for any other line.
pub fn unwrap(line: &[u8]) -> Option<Unwrapped<'_>> {
    match line.first()? {
        b'0'..=b'9' => cri(line),
        b'{' if line.starts_with(br#"{"log":""#) => docker(line),
        _ => None,
    }
}

fn cri(line: &[u8]) -> Option<Unwrapped<'_>> {
    // `2026-11-21T08:00:00.123456789+00:00 stdout F message`
    let time_end = memchr::memchr(b' ', line.get(..40.min(line.len()))?)?;
    if time_end < 20 || line[10] != b'T' || line[4] != b'-' {
        return None;
    }
    let rest = &line[time_end + 1..];
    let is_stderr = rest.starts_with(b"stderr ");
    if !is_stderr && !rest.starts_with(b"stdout ") {
        return None;
    }
    let rest = &rest[7..];
    let tags_end = memchr::memchr(b' ', rest).unwrap_or(rest.len());
    // Tags are separated by colons; the first states whether the line is complete.
    let is_partial = match rest[..tags_end].split(|&byte| byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let envelope = std::str::from_utf8(&line[..time_end + 7]).ok()?;
    let message = rest.get(tags_end + 1..).unwrap_or_default();
    Some(Unwrapped { envelope: envelope.into(), is_stderr, is_partial, message: message.into() })
}

/// A line with other members is an application's own JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DockerLine<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

fn docker(line: &[u8]) -> Option<Unwrapped<'_>> {
    let DockerLine { log, stream, time } = serde_json::from_slice(line).ok()?;
    let is_stderr = stream == "stderr";
    if !is_stderr && stream != "stdout" {
        return None;
    }
    // A line longer than the runtime's buffer is split; only the last part ends with a line feed.
    let is_partial = !log.ends_with('\n');
    let message = match log {
        Cow::Borrowed(log) => Cow::Borrowed(log.trim_end_matches(['\n', '\r']).as_bytes()),
        Cow::Owned(log) => Cow::Owned(log.trim_end_matches(['\n', '\r']).as_bytes().to_vec()),
    };
    Some(Unwrapped { envelope: format!("{time} {stream}").into(), is_stderr, is_partial, message })
}

/// A container by its Kubernetes names.
#[derive(Debug, PartialEq, Eq)]
pub struct Container<'a> {
    /// `k8s.pod.name`
    pub pod: &'a str,
    /// `k8s.namespace.name`
    pub namespace: &'a str,
    /// `k8s.container.name`
    pub name: &'a str,
    /// `k8s.pod.uid`, if the path contains it.
    pub pod_uid: Option<&'a str>,
}

/// Parses `…/containers/POD_NAMESPACE_CONTAINER-ID.log` or `…/pods/NAMESPACE_POD_UID/CONTAINER/N.log`.
pub fn of_path(path: &Path) -> Option<Container<'_>> {
    let mut names = path.iter().rev().map(|name| name.to_str());
    let (file, parent) = (names.next()??, names.next()??);
    if parent == "containers" {
        let (rest, _id) = file.strip_suffix(".log")?.rsplit_once('-')?;
        let (rest, name) = rest.rsplit_once('_')?;
        let (pod, namespace) = rest.rsplit_once('_')?;
        return Some(Container { pod, namespace, name, pod_uid: None });
    }
    let (of_pod, pods) = (names.next()??, names.next()??);
    let mut parts = (pods == "pods").then(|| of_pod.split('_'))?;
    let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Container { pod, namespace, name: parent, pod_uid: Some(uid) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cri_and_docker_are_unwrapped() {
        let check = |line: &str, envelope: &str, is_stderr, is_partial, message: &str| {
            let message = message.as_bytes().to_vec();
            let expect = Unwrapped { envelope: envelope.into(), is_stderr, is_partial, message: message.into() };
            assert_eq!(unwrap(line.as_bytes()), Some(expect), "{line}");
        };
        let time = "2026-11-21T08:00:00.123456789Z";
        check(&format!("{time} stdout F hello  world"), &format!("{time} stdout"), false, false, "hello  world");
        check(&format!("{time} stderr P:x half"), &format!("{time} stderr"), true, true, "half");
        check(&format!("{time} stdout F"), &format!("{time} stdout"), false, false, "");
        let docker = |log: &str| format!(r#"{{"log":"{log}","stream":"stderr","time":"{time}"}}"#);
        check(&docker(r"a \u003c b\n"), &format!("{time} stderr"), true, false, "a < b");
        check(&docker("half"), &format!("{time} stderr"), true, true, "half");
    }

    #[test]
    fn other_lines_are_not_unwrapped() {
        for line in [
            "",
            "hello",
            "2026-11-21T08:00:00Z stdout",
            "2026-11-21T08:00:00Z stdout X hello",
            "2026-11-21 08:00:00,123 stdout F hello",
            "2026-11-21T08:00:00.123456789Z INFO F hello",
            r#"{"log":"x","stream":"stdout","time":"t","level":"info"}"#,
            r#"{"log":"x"}"#,
            r#"{"log":"#,
        ] {
            assert_eq!(unwrap(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn the_path_identifies_the_container() {
        let named = |path| of_path(Path::new(path)).map(|c| (c.pod, c.namespace, c.name, c.pod_uid));
        assert_eq!(
            named("/var/log/containers/web-7f_shop_nginx-0123abcd.log"),
            Some(("web-7f", "shop", "nginx", None))
        );
        assert_eq!(
            named("/var/log/pods/shop_web-7f_11-22/nginx/0.log"),
            Some(("web-7f", "shop", "nginx", Some("11-22")))
        );
        assert_eq!(named("/var/log/nginx/access.log"), None);
        assert_eq!(named("access.log"), None);
    }
}
