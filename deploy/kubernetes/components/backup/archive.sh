#!/bin/sh
# The WAL, as it is written, onto the volume of the backups: what is lost with the database is what was under way.
set -eu
: "${PGHOST:?}" "${PGUSER:?}" "${BACKUP_DIR:?}"
[ -z "${PGPASSWORD_FILE:-}" ] || PGPASSWORD=$(cat "$PGPASSWORD_FILE")
export PGPASSWORD
mkdir -p "$BACKUP_DIR/wal"
# The slot keeps what was not fetched while this was away (up to max_slot_wal_keep_size).
pg_receivewal --create-slot --if-not-exists --slot backup
exec pg_receivewal --directory "$BACKUP_DIR/wal" --slot backup --synchronous --status-interval 5
