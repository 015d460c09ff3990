//! What the tests share: real servers, started and ended here.

pub mod postgres;
