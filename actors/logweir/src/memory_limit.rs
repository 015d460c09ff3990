//! The memory limit of the control group that the process runs in, as containers and systemd set it.

use std::path::Path;

/// Returns the limit in bytes; `None` without one.
pub(crate) fn of_this_process() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    lowest(&groups, |file| std::fs::read_to_string(file).ok())
}

/// The lowest limit of the group in `/proc/self/cgroup` and the groups above it. In a container the path may be that of
/// the host, which does not exist here; its limit then is the one at the top.
fn lowest(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        // hierarchy:controllers:path; the unified hierarchy (version 2) has no controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let group = Path::new(path.trim_start_matches('/'));
        group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect()
    });
    // Without a limit, version 2 has "max", which is not a number, and version 1 a number near 2^63, above any bound.
    limits.filter_map(|file| read(&file)?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_on_the_way_to_the_top_counts() {
        let files = |file: &Path| {
            let text = match file.to_str()? {
                "/sys/fs/cgroup/kube/pod/memory.max" => "536870912\n",
                "/sys/fs/cgroup/kube/pod/box/memory.max" | "/sys/fs/cgroup/memory.max" => "max\n",
                "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes" => "1048576\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "9223372036854771712\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        for (groups, limit) in [
            ("0::/kube/pod/box\n", Some(536_870_912)),
            ("0::/\n", None),
            ("0::/elsewhere/../x\n", None),
            ("5:cpu,memory:/docker\n0::/\n", Some(1_048_576)),
            ("4:memory:/of/the/host\n", Some(9_223_372_036_854_771_712)),
            ("4:cpu:/docker\n", None),
            ("nonsense\n", None),
            ("", None),
        ] {
            assert_eq!(lowest(groups, files), limit, "{groups:?}");
        }
    }
}
