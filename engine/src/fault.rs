//! Fault injection for tests, by name, in the real binary. Without the feature `faults` each call is an empty inline
//! function: a release contains none of it.
//!
//! - A **kill point** ends the process with SIGKILL when it is armed: `FAILPOINTS="journal.fsync.before=3*off->return"`
//!   kills at the fourth pass.
//! - A **mutation** is a bug that the tests must catch (acknowledge before the fsync, skip the compare-and-set …):
//!   `FAILPOINTS="mutation.ack_before_fsync=return"`.
//! - A **panic point** is the same switch with `=panic`.

/// Kills the process with SIGKILL if the point `name` is armed with `return`; panics if it is armed with `panic`.
#[inline]
pub fn kill_point(name: &str) {
    if armed(name) {
        #[cfg(feature = "faults")]
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .expect("a process may kill itself");
    }
}

/// Whether the mutation or fault `name` is active at this pass.
#[inline]
#[must_use]
pub fn armed(name: &str) -> bool {
    #[cfg(feature = "faults")]
    {
        fail::fail_point!(name, |_| true);
    }
    let _ = name;
    false
}

/// Arms the faults listed in the environment variable `FAILPOINTS`; does nothing without the feature `faults`.
///
/// Keep the returned guard for the lifetime of the process.
#[must_use]
pub fn arm_from_environment() -> Armed {
    Armed {
        #[cfg(feature = "faults")]
        _scenario: fail::FailScenario::setup(),
    }
}

/// Keeps the faults armed until it is dropped.
pub struct Armed {
    #[cfg(feature = "faults")]
    _scenario: fail::FailScenario<'static>,
}
