//! What keeps one part from overloading another: circuit breakers and token buckets.

pub mod breaker;
pub mod rate_limit;
