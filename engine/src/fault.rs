//! Faults that tests cause on purpose, by name, in the real binary. Without the feature `faults`
//! each call is an empty inline function: a release holds none of it.
//!
//! - A **kill point** ends the process with SIGKILL when it is armed:
//!   `FAILPOINTS="journal.fsync.before=3*off->return"` kills at the fourth pass.
//! - A **mutation** is a bug that the tests must catch (acknowledge before the fsync, forget the
//!   compare-and-set …): `FAILPOINTS="mutation.ack_before_fsync=return"`.
//! - A **panic point** is the same switch with `=panic`.

/// Dies by SIGKILL here if the point `name` is armed with `return`; panics if armed with `panic`.
#[inline]
pub fn kill_point(name: &str) {
    if armed(name) {
        #[cfg(feature = "faults")]
        // SAFETY: `kill` with our own pid touches no memory.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
        }
    }
}

/// Whether the mutation or fault `name` is switched on at this pass.
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

/// Reads `FAILPOINTS` from the environment; does nothing without the feature `faults`.
///
/// Keep the returned guard for the life of the process.
#[must_use]
pub fn arm_from_environment() -> Armed {
    Armed {
        #[cfg(feature = "faults")]
        _scenario: fail::FailScenario::setup(),
    }
}

/// Keeps the armed faults armed until it is dropped.
pub struct Armed {
    #[cfg(feature = "faults")]
    _scenario: fail::FailScenario<'static>,
}
