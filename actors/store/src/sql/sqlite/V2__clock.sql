-- The time by which records expire, in microseconds since 1970; see clock.rs.
CREATE TABLE logweir_clock (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    trusted_us INTEGER NOT NULL,
    doubted_us INTEGER NOT NULL
) STRICT;
