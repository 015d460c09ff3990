//! JSON as text: its members and elements one after the other, without a tree.

pub mod write;
pub mod check;
pub mod members;
pub mod walk;
