#!/bin/sh
# The WAL, as it is written, onto the volume of the backups: what is lost with the database is what was under way.
set -eu
: "${PGHOST:?}" "${PGUSER:?}" "${BACKUP_DIR:?}"
[ -z "${PGPASSWORD_FILE:-}" ] || PGPASSWORD=$(cat "$PGPASSWORD_FILE")
export PGPASSWORD
# A folder for each timeline: after a restore the database goes another way than the WAL that was fetched before.
timeline=$(psql "dbname=postgres replication=true" -AtF ' ' -c IDENTIFY_SYSTEM | cut -d ' ' -f 2)
mkdir -p "$BACKUP_DIR/wal/$timeline"
# The slot keeps what was not fetched while this was away (up to max_slot_wal_keep_size).
pg_receivewal --create-slot --if-not-exists --slot backup
exec pg_receivewal --directory "$BACKUP_DIR/wal/$timeline" --slot backup --synchronous --status-interval 5
