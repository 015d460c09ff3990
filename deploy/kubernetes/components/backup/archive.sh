#!/bin/sh
# The WAL, as it is written, onto the volume of the backups: what is lost with the database is what was under way.
set -eu
: "${PGHOST:?}" "${PGUSER:?}" "${BACKUP_DIR:?}"
[ -z "${PGPASSWORD_FILE:-}" ] || PGPASSWORD=$(cat "$PGPASSWORD_FILE")
export PGPASSWORD
ask() { psql "dbname=postgres replication=true" -AtF ' ' -c "$1"; }

fetch() {
  # A folder for each timeline: after a restore the database goes another way than the WAL that was fetched before.
  system=$(ask IDENTIFY_SYSTEM) || return
  timeline=$(echo "$system" | cut -d ' ' -f 2)
  folder="$BACKUP_DIR/wal/$timeline"
  # A slot without a place was cut off: max_slot_wal_keep_size was passed, or a checkpoint fell together with its making.
  # Where its WAL ended nothing can go on: so it begins anew, in a new folder.
  slot=$(ask 'READ_REPLICATION_SLOT backup') || return
  if [ "$slot" = "physical  " ]; then
    echo "the slot has lost its WAL: the archive has a gap, and a base backup is needed at once" >&2
    pg_receivewal --drop-slot --slot backup || return
    [ ! -d "$folder" ] || mv "$folder" "$folder-until-$(date -u +%Y%m%dT%H%M%SZ)"
  fi
  mkdir -p "$folder" || return
  # The slot keeps what was not fetched while this was away (up to max_slot_wal_keep_size).
  pg_receivewal --create-slot --if-not-exists --slot backup || return
  pg_receivewal --directory "$folder" --slot backup --synchronous --status-interval 5 --no-loop &
  receiver=$!
  wait $receiver
}

receiver=""
trap '[ -z "$receiver" ] || { kill $receiver; wait $receiver; } 2>/dev/null; exit 0' TERM INT
while true; do
  fetch || echo "the archiver's connection has ended: again in 5 seconds" >&2
  receiver=""
  sleep 5 & wait $!
done
