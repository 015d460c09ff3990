//! The primitives of the semaphore, by names that its model check replaces.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
pub(crate) use std::sync::{Mutex, MutexGuard};

pub(crate) use tokio::sync::oneshot;
