#!/bin/sh
# Restores PGDATA to TARGET_TIME (UTC; empty for the end of the archive) from a base backup and the WAL.
# The previous content of PGDATA is moved aside, not deleted. Ends with a primary that was shut down cleanly.
set -eu
: "${PGDATA:?}" "${BACKUP_DIR:?}"
TARGET_TIME=${TARGET_TIME:-}
BACKUP=${BACKUP:-}
if [ -z "$BACKUP" ]; then
  # The latest backup that ended before the target; names are times in UTC.
  limit=$([ -z "$TARGET_TIME" ] && echo 99999999T999999Z || echo "$(echo "$TARGET_TIME" | cut -c 1-19 | tr -d ':-' | tr ' ' T)Z")
  for dir in "$BACKUP_DIR"/base/*Z; do
    name=$(basename "$dir")
    if [ "$name" = "$(printf '%s\n%s\n' "$name" "$limit" | sort | head -n 1)" ]; then BACKUP=$name; fi
  done
fi
[ -f "$BACKUP_DIR/base/$BACKUP/PG_VERSION" ] || { echo "no base backup before $TARGET_TIME in $BACKUP_DIR/base" >&2; exit 1; }
if [ -e "$PGDATA/postmaster.pid" ] && pg_ctl status --pgdata "$PGDATA" >/dev/null 2>&1; then
  echo "a server is running on $PGDATA: scale database to 0 first" >&2
  exit 1
fi
[ ! -e "$PGDATA" ] || mv "$PGDATA" "$PGDATA.before-$(date -u +%Y%m%dT%H%M%SZ)"
echo "restoring $BACKUP to ${TARGET_TIME:-the end of the archive}"
cp -R "$BACKUP_DIR/base/$BACKUP" "$PGDATA"
chmod 700 "$PGDATA"
touch "$PGDATA/recovery.signal"
# Each timeline has a directory; the last, incomplete segment is named .partial.
restore="for f in $BACKUP_DIR/wal/*/%f $BACKUP_DIR/wal/*/%f.partial; do [ -e \"\$f\" ] && exec cp \"\$f\" \"%p\"; done; exit 1"
set -- -c "restore_command=$restore" -c recovery_target_action=promote -c hot_standby=on \
  -c listen_addresses= -c "unix_socket_directories=${SOCKET_DIR:-/tmp}" -c logging_collector=off ${POSTGRES_OPTIONS:-}
[ -z "$TARGET_TIME" ] || set -- "$@" -c "recovery_target_time=$TARGET_TIME+00"
postgres -D "$PGDATA" "$@" &
server=$!
trap 'kill -INT $server; wait $server; exit 1' TERM INT
export PGHOST="${SOCKET_DIR:-/tmp}"
until [ "$(psql --username "${PGSUPERUSER:-postgres}" --dbname postgres -Atc 'SELECT pg_is_in_recovery()' 2>/dev/null)" = f ]; do
  kill -0 $server 2>/dev/null || { echo "recovery failed: see above" >&2; exit 1; }
  sleep 1
done
psql --username "${PGSUPERUSER:-postgres}" --dbname postgres -c CHECKPOINT
pg_ctl stop --pgdata "$PGDATA" --mode fast --wait
wait $server || true
rm -f "$PGDATA/recovery.signal"
echo "restored: start the database, then the processors"
