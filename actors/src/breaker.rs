//! Circuit breaker and retry delays: pure, with the time as an argument.
