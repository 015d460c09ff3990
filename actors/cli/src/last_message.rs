//! The last message of a process on standard error. The reader may stand still, and the process must end all the same.

use std::io::{self, Write as _};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

/// Time limit for what is left to write.
const LIMIT: Duration = Duration::from_secs(2);

/// Calls `before`, then writes `text`, unless the reader of standard error takes longer than two seconds.
pub(super) fn write(before: impl FnOnce() + Send + 'static, text: String) {
    // Not on this thread, which must not wait for the reader.
    let (done, finished) = sync_channel(1);
    let write = move || {
        before();
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = done.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = finished.recv_timeout(LIMIT);
    }
}
