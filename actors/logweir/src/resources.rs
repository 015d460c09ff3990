//! Compares what the system grants with what the configuration needs, once, at the start: a limit that is met only under
//! load is met at the worst moment.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, Role};
use crate::control_group::Limits;
use crate::pipeline::threads_for_lanes;

/// Connections of the admin listener: probes and scrapes are answered however many clients are connected.
pub(crate) const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Descriptors of the runtime, standard streams, signals, listeners and lookups of names.
const PROGRAM: usize = 40;
/// Descriptors of one thread with a runtime of its own.
const PER_THREAD: usize = 4;
/// Threads besides those that read requests and those that parse: store, cache, alerts, tail, admin listener.
const OTHER_THREADS: usize = 6;
/// Descriptors of the journal: the active segment, the spare one, the directory, the lock, and files that come and go.
const JOURNAL: usize = 16;
/// Connections to the database besides those of lanes and queries, to Redis, and to webhooks.
const OTHER_CONNECTIONS: usize = 24;
/// A connection to SQLite has the database, its log and its index open.
const PER_DATABASE_CONNECTION: usize = 3;
/// What each kind of connection gets at least: less is an error.
const LEAST: usize = 8;

/// Raises the soft limit of open files to the hard one, and returns it; `None` if there is none.
fn raise_descriptors() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, ?current, ?maximum, "cannot raise the limit of open files");
            current
        }
    }
}

/// A setting that takes descriptors, and what it was reduced to.
#[derive(Debug, PartialEq, Eq)]
struct Reduced {
    key: &'static str,
    from: usize,
    to: usize,
}

/// Descriptors that are kept for what must work however many clients are connected: journal, database, probes.
fn descriptors_kept(config: &Config, cores: usize) -> usize {
    let threads = config.http.workers + cores + OTHER_THREADS;
    let lanes = usize::from(config.lanes());
    // The journal's readers: one per lane, alerts and the live tail.
    let readers = lanes + 2;
    let database = PER_DATABASE_CONNECTION * (lanes + config.query.running_max);
    PROGRAM
        + PER_THREAD * threads
        + JOURNAL
        + readers
        + database
        + OTHER_CONNECTIONS
        + config.alerts.len()
        + ADMIN_CONNECTIONS_MAX
}

/// Divides the descriptors that are left among the kinds of connections and files, as the configuration weights them.
/// Pure: the limit and the number of cores are arguments.
///
/// # Errors
/// The limit is too low for any division; what to do.
fn divide(config: &mut Config, limit: Option<u64>, cores: usize) -> Result<Vec<Reduced>, String> {
    let Some(limit) = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)) else { return Ok(Vec::new()) };
    let kept = descriptors_kept(config, cores);
    let has_syslog = config.syslog.tcp_listen.is_some() || config.syslog.tls_listen.is_some();
    // A gateway opens a connection to a processor for each one from a client.
    let each = if config.role == Role::Gateway { 2 } else { 1 };
    let has_files = !config.files.include.is_empty();
    let mut takers = vec![("http.connections_max", &mut config.http.connections_max, each)];
    if has_syslog {
        takers.push(("syslog.connections_max", &mut config.syslog.connections_max, 1));
    }
    if has_files {
        takers.push(("files.open_max", &mut config.files.open_max, 1));
    }
    let least: usize = takers.iter().map(|(_, value, each)| LEAST.min(**value) * each).sum();
    let wanted: usize = takers.iter().map(|(_, value, each)| **value * each).sum();
    let left = limit.saturating_sub(kept);
    if left >= wanted {
        return Ok(Vec::new());
    }
    if left < least {
        return Err(format!(
            "the limit of open files is {limit}, but this configuration needs at least {} and up to {}: raise it \
             (`ulimit -n`, LimitNOFILE= in systemd, `--ulimit nofile=` in Docker)",
            kept + least,
            kept + wanted
        ));
    }
    let reduce = |(key, value, _): (&'static str, &mut usize, usize)| {
        let from = *value;
        // All of them shrink by the same factor.
        *value = (from * left / wanted).max(LEAST.min(from));
        Reduced { key, from, to: *value }
    };
    Ok(takers.into_iter().map(reduce).collect())
}

/// Raises the limit of open files, and reduces the numbers of connections and files in `config` to what it allows.
///
/// # Errors
/// The limit is too low; what to do.
pub(crate) fn fit_descriptors(config: &mut Config) -> Result<(), String> {
    let limit = raise_descriptors();
    for Reduced { key, from, to } in divide(config, limit, cores())? {
        tracing::warn!(
            key,
            configured = from,
            reduced_to = to,
            descriptors_max = limit,
            kept_for_journal_database_and_probes = descriptors_kept(config, cores()),
            "the limit of open files is too low for the configuration: raise it, or lower the setting"
        );
    }
    Ok(())
}

/// Warns if the control group allows less memory than the process may need.
pub(crate) fn compare_memory(memory_bytes_max: usize, limits: Limits) {
    if let Some(limit_bytes) = limits.memory_bytes.filter(|limit| *limit < memory_bytes_max as u64) {
        tracing::warn!(
            limit_bytes,
            memory_bytes_max,
            "the control group's memory limit is below what logweir may use, so the kernel may kill it under load: raise \
             the limit above memory_bytes_max, or lower the bounds in the configuration (log.level=debug lists them)"
        );
    }
}

/// Warns if more threads read and parse than there are cores, or than the control group lets run.
pub(crate) fn compare_cores(config: &Config, limits: Limits) {
    let (workers, cores) = (config.http.workers, cores());
    if workers > 2 * cores {
        tracing::warn!(
            workers,
            cores,
            "http.workers is more than twice the number of CPU cores that this process may use: threads wait for each other"
        );
    }
    let threads = busy_threads(config);
    if let Some(cpus) = limits.cpus.filter(|cpus| is_short_of_cpu(*cpus, threads)) {
        tracing::warn!(
            cpus,
            threads,
            "the control group's CPU limit is less than half a core per thread that reads or parses: under load, the \
             kernel stops all threads of this process for the rest of each period; raise the limit or lower http.workers"
        );
    }
}

/// Threads that use a core each under load: those that read requests, and those that parse.
fn busy_threads(config: &Config) -> usize {
    let parsing = if config.role == Role::Gateway { 0 } else { threads_for_lanes().min(config.lanes().into()) };
    config.http.workers + parsing
}

/// A thread that reads requests also waits for clients: half a core is enough.
fn is_short_of_cpu(cpus: f64, threads: usize) -> bool {
    2.0 * cpus < threads as f64
}

/// Warns if the volume fills up before the journal has reached its quota.
pub(crate) fn compare_volume(config: &Config, journal_bytes: u64) {
    let Some(free_bytes) = volume_bytes_free(&config.data_dir) else { return };
    let quota_bytes = config.journal.quota_bytes;
    if quota_bytes > journal_bytes.saturating_add(free_bytes) {
        tracing::warn!(
            quota_bytes,
            journal_bytes,
            free_bytes,
            "the volume has less space than journal.quota_bytes: a backlog fills the volume, and intake is rejected from \
             then on; lower the quota or enlarge the volume"
        );
    }
}

/// Bytes available to an unprivileged process on the volume of `dir`.
pub(crate) fn volume_bytes_free(dir: &Path) -> Option<u64> {
    let volume = rustix::fs::statvfs(dir).ok()?;
    Some(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// CPU cores that this process may use: its affinity and the quota of its control group count.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::in_dir("data");
        (config.http.workers, config.lanes) = (2, Some(4));
        config
    }

    fn connections(limit: u64) -> Result<usize, String> {
        let mut config = config();
        divide(&mut config, Some(limit), 4).map(|_| config.http.connections_max)
    }

    #[test]
    fn connections_get_what_journal_database_and_probes_leave() {
        let kept = descriptors_kept(&config(), 4) as u64;
        assert_eq!(connections(kept + 1024), Ok(1024));
        assert_eq!(connections(kept + 1023), Ok(1023));
        assert_eq!(connections(kept + 8), Ok(8));
        assert!(kept < 512, "{kept} of the usual 1024");
        let error = connections(kept + 7).unwrap_err();
        assert!(error.contains(&format!("needs at least {} and up to {}", kept + 8, kept + 1024)), "{error}");
        assert!(connections(24).unwrap_err().starts_with("the limit of open files is 24, but"));
        let mut config = config();
        assert_eq!(divide(&mut config, None, 4), Ok(Vec::new()));
    }

    #[test]
    fn all_kinds_shrink_by_the_same_factor_and_none_below_the_least() {
        let mut config = config();
        config.syslog.tcp_listen = Some(([127, 0, 0, 1], 514).into());
        config.files.include = vec!["*.log".into()];
        (config.http.connections_max, config.syslog.connections_max, config.files.open_max) = (1_000, 100, 10);
        let kept = descriptors_kept(&config, 4) as u64;
        let reduced = divide(&mut config, Some(kept + 555), 4).unwrap();
        let of = |key, from, to| Reduced { key, from, to };
        let expected = [
            of("http.connections_max", 1_000, 500),
            of("syslog.connections_max", 100, 50),
            of("files.open_max", 10, 8),
        ];
        assert_eq!(reduced, expected);
    }

    #[test]
    fn half_a_core_per_thread_is_enough() {
        let mut config = config();
        (config.http.workers, config.lanes) = (3, Some(1));
        assert_eq!(busy_threads(&config), 4);
        config.role = Role::Gateway;
        assert_eq!(busy_threads(&config), 3);
        assert!(is_short_of_cpu(1.9, 4));
        assert!(!is_short_of_cpu(2.0, 4));
        assert!(!is_short_of_cpu(0.5, 1), "the smallest limit of a process with one thread");
    }
}
