//! Integration tests of the journal: its guarantees, with damaged files, failing disks and killed processes.
#![allow(missing_docs, clippy::unwrap_used)]

mod kit;
mod basics;
mod damage;
mod reuse;
mod model;
mod golden;
mod identity;
mod bits;
mod dedup_index;
#[cfg(feature = "faults")]
mod child;
#[cfg(feature = "faults")]
mod crash;
#[cfg(feature = "faults")]
mod disk;
#[cfg(feature = "faults")]
mod simulated;
#[cfg(feature = "faults")]
mod unreadable;
#[cfg(feature = "faults")]
mod directory;
#[cfg(feature = "faults")]
mod passing;
