//! Inputs and helpers shared by the benches.
