-- Owners of journals (writers), the cursors of their lanes, and records that could not be stored.
CREATE TABLE logweir_writer (
    writer_id uuid PRIMARY KEY,
    epoch     bigint NOT NULL,
    run_id    uuid NOT NULL,
    owner     text NOT NULL,
    taken_at  timestamptz NOT NULL
);

-- Every takeover with each lane's journal tail and cursor at that moment, which shows
-- which frames another copy of a journal inherited. A single row with lane NULL if there were no lanes.
CREATE TABLE logweir_takeover (
    writer_id  uuid NOT NULL REFERENCES logweir_writer,
    epoch      bigint NOT NULL,
    run_id     uuid NOT NULL,
    run_before uuid,
    owner      text NOT NULL,
    taken_at   timestamptz NOT NULL,
    lane       integer,
    tail_seq   bigint NOT NULL,
    cursor_seq bigint NOT NULL
);
CREATE INDEX logweir_takeover_writer_idx ON logweir_takeover (writer_id, epoch);

-- The cursors. fillfactor leaves space on the page, so that each flush's update stays a heap-only tuple.
-- lane_id is the upper 19 bits of a record's id.
CREATE TABLE logweir_lane (
    writer_id uuid NOT NULL REFERENCES logweir_writer,
    lane      integer NOT NULL,
    lane_id   integer GENERATED ALWAYS AS IDENTITY UNIQUE CHECK (lane_id BETWEEN 1 AND 524287),
    epoch     bigint NOT NULL,
    last_seq  bigint NOT NULL DEFAULT 0,
    digest    bytea NOT NULL DEFAULT '',
    rows      bigint NOT NULL DEFAULT 0,
    dead      bigint NOT NULL DEFAULT 0,
    lost      bigint NOT NULL DEFAULT 0,
    inherited bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (writer_id, lane)
) WITH (fillfactor = 50);

-- Rows replayed from dead letters. Separate from logweir_lane, so that a replay never waits for a flush.
CREATE TABLE logweir_replayed (
    lane_id  integer PRIMARY KEY,
    records  bigint NOT NULL
);

CREATE TABLE logweir_dead_letter (
    id        bigint PRIMARY KEY,
    writer_id uuid NOT NULL,
    lane      integer NOT NULL,
    seq       bigint NOT NULL,
    row_no    integer NOT NULL,
    sqlstate  text NOT NULL,
    reason    text NOT NULL,
    raw       text NOT NULL,
    at        timestamptz NOT NULL
);
CREATE INDEX logweir_dead_letter_at_idx ON logweir_dead_letter (at);

-- Records per minute, service and severity. lane_id is in the key so that two lanes never wait for each other.
CREATE TABLE log_volume (
    minute   timestamptz NOT NULL,
    service  text NOT NULL,
    severity smallint NOT NULL,
    lane_id  integer NOT NULL,
    records  bigint NOT NULL,
    PRIMARY KEY (minute, service, severity, lane_id)
);

-- The records. A hypertable with TimescaleDB; otherwise one partition per day, and a default partition for records
-- that are too old or too far ahead. No unique index: the cursor in the same transaction makes each record unique.
DO $$
BEGIN
    CREATE TABLE logs_shape (
        id         bigint NOT NULL,
        ts         timestamptz NOT NULL,
        severity   smallint NOT NULL,
        service    text NOT NULL,
        host       text NOT NULL,
        message    text NOT NULL,
        attributes jsonb
    );
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
        CREATE TABLE logs (LIKE logs_shape);
        PERFORM create_hypertable('logs', 'ts', chunk_time_interval => interval '1 day', create_default_indexes => false);
    ELSE
        CREATE TABLE logs (LIKE logs_shape) PARTITION BY RANGE (ts);
        CREATE TABLE logs_default PARTITION OF logs DEFAULT;
    END IF;
    DROP TABLE logs_shape;
END
$$;
CREATE INDEX logs_ts_idx ON logs (ts);
