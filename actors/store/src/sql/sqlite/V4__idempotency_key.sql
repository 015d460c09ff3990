-- What is stored of each request that may be repeated, and the number of records that are stored as another frame's.
CREATE TABLE logweir_idempotency_key (
    key     BLOB PRIMARY KEY,
    lane_id INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    records INTEGER NOT NULL,
    stored  INTEGER NOT NULL,
    at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX logweir_idempotency_key_at_idx ON logweir_idempotency_key (at);
ALTER TABLE logweir_lane ADD COLUMN repeated INTEGER NOT NULL DEFAULT 0;
