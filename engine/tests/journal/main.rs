//! The journal from outside: what it promises, and what is done to its files, its disk and its process.
#![allow(missing_docs, clippy::unwrap_used)]

mod kit;
mod basics;
mod damage;
mod reuse;
mod model;
mod golden;
mod dedup_index;
#[cfg(feature = "faults")]
mod child;
#[cfg(feature = "faults")]
mod crash;
#[cfg(feature = "faults")]
mod disk;
