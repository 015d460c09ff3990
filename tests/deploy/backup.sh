#!/bin/sh
# Tests the manifests' backup and restore scripts with a real PostgreSQL: a base backup and WAL during writes, a restore to a
# point in time, writes on the new timeline, a restore to the end of it, and an archive whose slot has lost WAL.
set -eu
kubernetes=$1
# PostgreSQL rejects root, and its user may not have access to this directory.
if [ "$(id -u)" = 0 ]; then
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  cp -R "$0" "$kubernetes/components" "$kubernetes/jobs" "$copy"
  chmod -R a+rX "$copy"
  setpriv --reuid=postgres --regid=postgres --init-groups sh "$copy/$(basename "$0")" "$copy"
  exit
fi
PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1):$PATH
dir=$(mktemp -d)
cd "$dir"
mkdir sock
archiver=""
# An interrupted restore must not leave a server running.
trap '[ -z "$archiver" ] || { kill $archiver; wait $archiver; } || true; pg_ctl -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT
export PGHOST="$dir/sock" PGPORT=5432 PGUSER=postgres BACKUP_DIR="$dir/backup" PGDATA="$dir/data" SOCKET_DIR="$dir/sock"

start() { pg_ctl -o "-c unix_socket_directories=$dir/sock -c listen_addresses=" -l log --wait start >/dev/null; }
query() { psql --dbname postgres -qAtc "$1"; }
switch_wal() { for _ in 1 2 3; do write 1000; query 'SELECT pg_switch_wal()' >/dev/null; done; }
write() { query "INSERT INTO t SELECT generate_series(1, $1)"; }
# `until_ 'what' 'condition'`, for up to a minute.
until_() {
  for _ in $(seq 600); do
    [ "$(query "SELECT coalesce(bool_or($2), false) FROM pg_replication_slots LEFT JOIN pg_stat_replication ON active_pid = pid")" != t ] || return 0
    ${3:-true}
    sleep 0.1
  done
  echo "timed out: $1" >&2
  exit 1
}
# Waits until the archiver has the WAL up to here: a checkpoint (such as a base backup's) during the creation of a slot can remove
# the WAL that the slot was created for (the archiver recovers from that, but with a gap).
archive() {
  sh "$kubernetes/components/backup/archive.sh" &
  archiver=$!
  until_ "the archiver connects" "state = 'streaming'"
}
# At the end of a segment nothing is sent until something is written.
touch_wal() { query "SELECT pg_logical_emit_message(true, 'test', '')" >/dev/null; }
archived() { until_ "the archiver follows" "flush_lsn >= '$(query 'SELECT pg_current_wal_flush_lsn()')'" touch_wal; }
stop_archive() { kill $archiver; wait $archiver || true; archiver=""; }
restore() { TARGET_TIME=$1 sh "$kubernetes/jobs/restore/restore.sh" >restore.log 2>&1 || { cat restore.log >&2; exit 1; }; start; }
expect() { [ "$(query 'SELECT count(*) FROM t')" = "$1" ] || { echo "$(query 'SELECT count(*) FROM t') rows instead of $1 $2" >&2; exit 1; }; }

initdb -U postgres --auth=trust --data-checksums >/dev/null
start
query 'CREATE TABLE t (i int)'
archive
write 1000
KEEP=2 sh "$kubernetes/components/backup/backup.sh"
write 1000
moment=$(query "SELECT clock_timestamp() AT TIME ZONE 'UTC'")
# The archive gets ahead of the point where the restored database continues.
switch_wal
archived
stop_archive
pg_ctl -m immediate stop >/dev/null
rm -rf data

restore "$moment"
expect 2000 "at the moment"
archive
write 500
KEEP=1 sh "$kubernetes/components/backup/backup.sh"
[ "$(ls backup/base | wc -l)" = 1 ] || { echo "the older base backup was not removed" >&2; exit 1; }
write 250
archived
stop_archive
pg_ctl -m immediate stop >/dev/null

restore ""
expect 2750 "at the end of the second timeline"
[ -n "$(ls -d data.before-*)" ] || { echo "the previous data directory was not kept" >&2; exit 1; }
# The slot loses its WAL while the archiver is down: the archiver restarts in a new directory and keeps the old one.
archive
archived
stop_archive
query "ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'"
query 'SELECT pg_reload_conf()' >/dev/null
switch_wal
query CHECKPOINT
until_ "the slot is lost" "wal_status = 'lost'"
archive
archived
stop_archive
[ "$(ls -d backup/wal/3 backup/wal/3-until-* | wc -l)" = 2 ] || { echo "the archive did not restart in a new directory" >&2; exit 1; }
echo "restored to a point in time, and to the end of the archive"
