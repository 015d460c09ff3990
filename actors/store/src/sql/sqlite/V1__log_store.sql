-- The same tables as in PostgreSQL. UUIDs are 16-byte blobs.
-- ts and minute are fixed-width text, YYYY-MM-DDTHH:MM:SS.ffffffZ, which sorts by time.
CREATE TABLE logweir_writer (
    writer_id BLOB PRIMARY KEY,
    epoch     INTEGER NOT NULL,
    run_id    BLOB NOT NULL,
    owner     TEXT NOT NULL,
    taken_at  TEXT NOT NULL
) STRICT;

CREATE TABLE logweir_takeover (
    writer_id  BLOB NOT NULL REFERENCES logweir_writer,
    epoch      INTEGER NOT NULL,
    run_id     BLOB NOT NULL,
    run_before BLOB,
    owner      TEXT NOT NULL,
    taken_at   TEXT NOT NULL,
    lane       INTEGER,
    tail_seq   INTEGER NOT NULL,
    cursor_seq INTEGER NOT NULL
) STRICT;
CREATE INDEX logweir_takeover_writer_idx ON logweir_takeover (writer_id, epoch);

CREATE TABLE logweir_lane (
    lane_id   INTEGER PRIMARY KEY AUTOINCREMENT CHECK (lane_id BETWEEN 1 AND 524287),
    writer_id BLOB NOT NULL REFERENCES logweir_writer,
    lane      INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL DEFAULT 0,
    digest    BLOB NOT NULL DEFAULT x'',
    rows      INTEGER NOT NULL DEFAULT 0,
    dead      INTEGER NOT NULL DEFAULT 0,
    lost      INTEGER NOT NULL DEFAULT 0,
    inherited INTEGER NOT NULL DEFAULT 0,
    UNIQUE (writer_id, lane)
) STRICT;

CREATE TABLE logweir_replayed (
    lane_id INTEGER PRIMARY KEY,
    records INTEGER NOT NULL
) STRICT;

CREATE TABLE logweir_dead_letter (
    id        INTEGER PRIMARY KEY,
    writer_id BLOB NOT NULL,
    lane      INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    row_no    INTEGER NOT NULL,
    sqlstate  TEXT NOT NULL,
    reason    TEXT NOT NULL,
    raw       TEXT NOT NULL,
    at        TEXT NOT NULL
) STRICT;
CREATE INDEX logweir_dead_letter_at_idx ON logweir_dead_letter (at);

CREATE TABLE log_volume (
    minute   TEXT NOT NULL,
    service  TEXT NOT NULL,
    severity INTEGER NOT NULL,
    lane_id  INTEGER NOT NULL,
    records  INTEGER NOT NULL,
    PRIMARY KEY (minute, service, severity, lane_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE logs (
    id         INTEGER PRIMARY KEY,
    ts         TEXT NOT NULL,
    severity   INTEGER NOT NULL,
    service    TEXT NOT NULL,
    host       TEXT NOT NULL,
    message    TEXT NOT NULL,
    attributes TEXT
) STRICT;
CREATE INDEX logs_ts_idx ON logs (ts);
