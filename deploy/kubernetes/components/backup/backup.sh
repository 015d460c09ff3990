#!/bin/sh
# Takes a base backup. Keeps the latest KEEP backups, and the WAL since the oldest of them.
set -eu
: "${PGHOST:?}" "${PGUSER:?}" "${BACKUP_DIR:?}" "${KEEP:?}"
[ -z "${PGPASSWORD_FILE:-}" ] || PGPASSWORD=$(cat "$PGPASSWORD_FILE")
export PGPASSWORD
# See archive.sh.
limits="connect_timeout=5 keepalives_idle=30 keepalives_interval=10 keepalives_count=3 tcp_user_timeout=60000"
mkdir -p "$BACKUP_DIR/base"
rm -rf "$BACKUP_DIR"/base/*.partial # left by interrupted runs
# Includes the WAL that makes it consistent, so that it can be restored without the archive too.
pg_basebackup --dbname "$limits" --pgdata "$BACKUP_DIR/base/next.partial" --wal-method stream --checkpoint fast --label logweir
# Named after its end, since it cannot restore an earlier time; rounded up to the next second.
sleep 1
name=$(date -u +%Y%m%dT%H%M%SZ)
pg_verifybackup --quiet "$BACKUP_DIR/base/next.partial"
sync
mv "$BACKUP_DIR/base/next.partial" "$BACKUP_DIR/base/$name"

ls -d "$BACKUP_DIR"/base/*Z | sort | head -n "-$KEEP" | while read -r old; do rm -rf "$old"; done
oldest=$(ls -d "$BACKUP_DIR"/base/*Z | sort | head -n 1)
# "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)"
first=$(sed -n 's/^START WAL LOCATION:.*(file \(.*\))$/\1/p' "$oldest/backup_label")
# On any timeline; history files and the segment being written stay.
for file in "$BACKUP_DIR"/wal/*/????????????????????????; do
  [ -e "$file" ] || continue
  segment=$(basename "$file")
  # The first eight digits are the timeline, the rest is the position.
  if expr "X${segment#????????}" '<' "X${first#????????}" >/dev/null; then rm -f "$file"; fi
done
echo "created backup $name; existing backups: $(ls "$BACKUP_DIR/base" | tr '\n' ' ')"
