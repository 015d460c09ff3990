#!/bin/sh
# Streams the WAL to the backup volume as it is written: losing the database loses only WAL in transit.
set -eu
: "${PGHOST:?}" "${PGUSER:?}" "${BACKUP_DIR:?}"
[ -z "${PGPASSWORD_FILE:-}" ] || PGPASSWORD=$(cat "$PGPASSWORD_FILE")
export PGPASSWORD
# A node that is lost closes no connection; without limits, the kernel notices it after about two hours.
limits="connect_timeout=5 keepalives_idle=30 keepalives_interval=10 keepalives_count=3 tcp_user_timeout=60000"
ask() { psql "dbname=postgres replication=true $limits" -AtF ' ' -c "$1"; }

fetch() {
  # One directory per timeline: after a restore, the database diverges from the WAL archived before.
  system=$(ask IDENTIFY_SYSTEM) || return
  timeline=$(echo "$system" | cut -d ' ' -f 2)
  folder="$BACKUP_DIR/wal/$timeline"
  # A slot without a position was invalidated: it exceeded max_slot_wal_keep_size, or a checkpoint coincided with its creation.
  # The archive cannot continue after a gap in the WAL, so it restarts in a new directory.
  slot=$(ask 'READ_REPLICATION_SLOT backup') || return
  if [ "$slot" = "physical  " ]; then
    echo "the replication slot has lost WAL: the archive has a gap, take a base backup now" >&2
    pg_receivewal --dbname "$limits" --drop-slot --slot backup || return
    [ ! -d "$folder" ] || mv "$folder" "$folder-until-$(date -u +%Y%m%dT%H%M%SZ)"
  fi
  mkdir -p "$folder" || return
  # The slot keeps WAL that was not fetched while the archiver was down (up to max_slot_wal_keep_size).
  pg_receivewal --dbname "$limits" --create-slot --if-not-exists --slot backup || return
  pg_receivewal --dbname "$limits" --directory "$folder" --slot backup --synchronous --status-interval 5 --no-loop &
  receiver=$!
  wait $receiver
}

receiver=""
trap '[ -z "$receiver" ] || { kill $receiver; wait $receiver; } 2>/dev/null; exit 0' TERM INT
while true; do
  fetch || echo "the archiver's connection was lost; retrying in 5 seconds" >&2
  receiver=""
  sleep 5 & wait $!
done
