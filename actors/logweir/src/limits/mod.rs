//! What keeps one part from overloading another: circuit breakers, delays before retries and token buckets.

pub mod backoff;
pub mod breaker;
pub mod rate_limit;
