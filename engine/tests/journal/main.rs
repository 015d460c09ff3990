//! The journal from outside: what it promises, and what is done to its files.
#![allow(missing_docs)]

mod kit;
mod basics;
