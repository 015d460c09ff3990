//! The limits of the control group that the process runs in, as containers and systemd set them.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// What the group of this process, and the groups above it, allow. `None` without a limit, or without control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: Option<u64>,
    /// CPU time per time: 0.5 is half a core.
    pub(crate) cpus: Option<f64>,
}

impl Limits {
    pub(crate) fn of_this_process() -> Self {
        Self::read(Path::new("/"))
    }

    /// Reads `proc/self/cgroup` in `root`, and what it leads to in `sys/fs/cgroup`. The lowest limit on the way to the top
    /// counts. In a container the path may be that of the host, which does not exist here; the limit then is the one at
    /// the top.
    fn read(root: &Path) -> Self {
        let groups = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mut limits = Self::default();
        for line in groups.lines() {
            // hierarchy:controllers:path; the unified hierarchy (version 2) has no controllers.
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let dirs = |hierarchy: &str| -> Vec<PathBuf> {
                let top = root.join("sys/fs/cgroup").join(hierarchy);
                Path::new(path.trim_start_matches('/')).ancestors().map(|group| top.join(group)).collect()
            };
            if controllers.is_empty() {
                limits.lower(&dirs(""), "memory.max", |dir| two_numbers(&read(&dir.join("cpu.max"))?));
            }
            for controller in controllers.split(',') {
                match controller {
                    "memory" => limits.lower(&dirs("memory"), "memory.limit_in_bytes", |_| None),
                    "cpu" => limits.lower(&dirs("cpu"), "", |dir| {
                        let number = |file| read(&dir.join(file))?.parse().ok();
                        Some((number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?))
                    }),
                    _ => {}
                }
            }
        }
        limits
    }

    fn lower(&mut self, dirs: &[PathBuf], memory: &str, quota_and_period: impl Fn(&Path) -> Option<(i64, i64)>) {
        // Without a limit, version 2 has "max", which is not a number, and version 1 a memory near 2^63, above any bound,
        // and a quota of -1.
        let bytes = dirs.iter().filter_map(|dir| read(&dir.join(memory))?.parse().ok());
        let cpus =
            dirs.iter().filter_map(|dir| quota_and_period(dir)).filter(|(quota, period)| *quota > 0 && *period > 0);
        let cpus = cpus.map(|(quota, period)| quota as f64 / period as f64);
        self.memory_bytes = bytes.chain(self.memory_bytes).min();
        self.cpus = cpus.chain(self.cpus).min_by(f64::total_cmp);
    }
}

fn read(file: &Path) -> Option<String> {
    Some(read_to_string(file).ok()?.trim().to_owned())
}

fn two_numbers(text: &str) -> Option<(i64, i64)> {
    let (one, two) = text.split_once(' ')?;
    Some((one.parse().ok()?, two.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_on_the_way_to_the_top_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        for (file, text) in [
            ("memory.max", "max\n"),
            ("kube/cpu.max", "400000 100000\n"),
            ("kube/pod/memory.max", "536870912\n"),
            ("kube/pod/cpu.max", "50000 100000\n"),
            ("kube/pod/box/memory.max", "max\n"),
            ("kube/pod/box/cpu.max", "max 100000\n"),
            ("memory/docker/memory.limit_in_bytes", "1048576\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cpu/docker/cpu.cfs_quota_us", "150000\n"),
            ("cpu/docker/cpu.cfs_period_us", "100000\n"),
            ("cpu/cpu.cfs_quota_us", "-1\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
        ] {
            write(&format!("sys/fs/cgroup/{file}"), text);
        }
        const UNLIMITED: Option<u64> = Some(9_223_372_036_854_771_712);
        for (groups, memory_bytes, cpus) in [
            ("0::/kube/pod/box\n", Some(536_870_912), Some(0.5)),
            ("0::/kube\n", None, Some(4.0)),
            ("0::/\n", None, None),
            ("0::/elsewhere/../x\n", None, None),
            ("5:cpu,memory:/docker\n0::/\n", Some(1_048_576), Some(1.5)),
            ("4:memory:/of/the/host\n", UNLIMITED, None),
            ("7:memory:/\n6:cpu,cpuacct:/docker\n0::/kube/pod\n", Some(536_870_912), Some(0.5)),
            ("4:cpu:/\n", None, None),
            ("4:cpuset:/docker\n", None, None),
            ("nonsense\n", None, None),
            ("", None, None),
        ] {
            write("proc/self/cgroup", groups);
            assert_eq!(Limits::read(root.path()), Limits { memory_bytes, cpus }, "{groups:?}");
        }
    }

    #[test]
    fn without_control_groups_nothing_is_claimed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Limits::read(root.path()), Limits::default());
        // Named, but not mounted here.
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        std::fs::write(root.path().join("proc/self/cgroup"), "1:cpu:/\n2:memory:/\n0::/\n").unwrap();
        assert_eq!(Limits::read(root.path()), Limits::default());
    }
}
