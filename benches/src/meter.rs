//! Measures a process's CPU and memory from `/proc`, and latencies.

use std::fs;

use hdrhistogram::Histogram;

/// Creates a histogram of microseconds, up to ten minutes, with three significant digits.
///
/// # Panics
/// Never: the bounds are valid.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are valid")
}

/// Returns the CPU seconds of the calling thread, user and system.
#[must_use]
pub fn thread_cpu_seconds() -> f64 {
    // SAFETY: a zeroed rusage is valid, and the kernel fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Returns the CPU seconds of process `pid` and all its descendants, running or not.
#[must_use]
pub fn tree_cpu_seconds(pid: u32) -> f64 {
    let own =
        ticks(pid).map_or(0, |[user, system, user_ended, system_ended]| user + system + user_ended + system_ended);
    let children: f64 = children(pid).into_iter().map(tree_cpu_seconds).sum();
    // SAFETY: returns a constant.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    own as f64 / hertz + children
}

/// Fields 14 to 17 of `/proc/PID/stat`.
fn ticks(pid: u32) -> Option<[u64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses can contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??, fields.next()??])
}

fn children(pid: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns the peak resident memory of `pid` since [`reset_peak`], in bytes.
#[must_use]
pub fn peak_rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Resets the peak.
pub fn reset_peak(pid: u32) {
    // If the kernel does not allow it, the peak is that of the whole run, which is an upper bound.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_measured_from_inside_and_outside() {
        let pid = std::process::id();
        let (thread, tree) = (thread_cpu_seconds(), tree_cpu_seconds(pid));
        let mut sum = 0_u64;
        while thread_cpu_seconds() < thread + 0.2 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        assert!(tree_cpu_seconds(pid) > tree + 0.1);
        assert!(peak_rss_bytes(pid) > 1 << 20);
    }
}
