//! The file system as the journal sees it: what it asks of one, the operating system's, and a simulated one for tests.

mod operations;
mod real;
#[cfg(feature = "faults")]
mod simulated;

pub(crate) use self::operations::read_up_to;
pub use self::operations::{Directory, File, FileId, FileSystem, Metadata, OpenMode};
pub use self::real::RealFileSystem;
#[cfg(feature = "faults")]
pub use self::simulated::{Crash, Operation, Random, SimulatedDisk};
