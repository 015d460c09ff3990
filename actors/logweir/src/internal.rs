//! What only the program, the tests and the benchmarks of this repository need. It is not part of the public API of this
//! crate: any version may change it.

pub use crate::batcher::BatchBuilder;
pub use crate::cache::memory::MemoryCache;
pub use crate::cache::open::open as open_cache;
pub use crate::cache::writer::CacheFeed;
pub use crate::limits::backoff::{Backoff, Delays};
pub use crate::producer::decompress::decompress;
pub use crate::producer::demo::Demo;
pub use crate::producer::framing::{Content, Framing, RecordSplitter};
pub use crate::tail::sse::{Event, Events};
