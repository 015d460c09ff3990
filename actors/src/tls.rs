//! TLS client settings for PostgreSQL and Redis.
