//! Bounds the total bytes of all bodies that are being read, regardless of the number of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shared by all requests; clones share the same budget.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    used: AtomicUsize,
    bytes_max: usize,
}

/// A share of the budget, released when dropped.
pub struct Share {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Inner { used: AtomicUsize::new(0), bytes_max }))
    }

    /// An empty share.
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Grows the share to `bytes`, if the budget has that much left. Never shrinks it.
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let Inner { used, bytes_max } = &*self.budget.0;
        let grown = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(more).filter(|sum| sum <= bytes_max)
        });
        self.bytes += if grown.is_ok() { more } else { 0 };
        grown.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_budget_and_are_released() {
        let budget = Budget::new(100);
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.grow_to(60) && one.grow_to(60) && one.grow_to(10));
        assert!(!two.grow_to(41) && two.grow_to(40));
        assert_eq!(budget.used(), 100);
        assert!(!two.grow_to(usize::MAX));
        drop(one);
        assert_eq!(budget.used(), 40);
        assert!(two.grow_to(100));
        drop(two);
        assert_eq!(budget.used(), 0);
    }
}
