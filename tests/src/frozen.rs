//! A single thread that is not run, as by a system that does not schedule it. SIGSTOP can only stop a whole process, so
//! the thread is traced.

use std::io;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use crate::client::PATIENCE;

/// The thread is not run until this is dropped. Linux accepts requests only from the thread that has stopped it.
pub struct FrozenThread {
    tid: libc::pid_t,
    _not_send: PhantomData<*const ()>,
}

impl FrozenThread {
    /// Stops the thread `name` of a child process.
    ///
    /// # Errors
    /// The system does not let this process trace another one.
    ///
    /// # Panics
    /// If the process has no thread of that name, or the thread does not stop.
    pub fn new(pid: u32, name: &str) -> io::Result<Self> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
        let is_it = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let task = tasks.flatten().find(is_it).unwrap_or_else(|| panic!("{pid} has no thread {name}"));
        let tid = task.file_name().to_str().and_then(|tid| tid.parse().ok()).expect("a number");
        request(libc::PTRACE_SEIZE, tid)?;
        let mut frozen = Self { tid, _not_send: PhantomData };
        request(libc::PTRACE_INTERRUPT, tid)?;
        let deadline = Instant::now() + PATIENCE;
        while !frozen.has_changed() {
            assert!(Instant::now() < deadline, "the thread {name} does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(frozen)
    }

    /// Takes note of the thread's end: until then, the end of its process is not seen.
    pub fn has_changed(&mut self) -> bool {
        let mut status = 0;
        // SAFETY: `waitpid` writes the status.
        unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) == self.tid }
    }
}

impl Drop for FrozenThread {
    fn drop(&mut self) {
        // Fails if the thread has ended.
        let _ = request(libc::PTRACE_DETACH, self.tid);
    }
}

fn request(request: libc::c_uint, tid: libc::pid_t) -> io::Result<()> {
    // SAFETY: these requests use neither address nor data.
    match unsafe { libc::ptrace(request, tid, null_mut::<libc::c_void>(), null_mut::<libc::c_void>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
