#!/bin/sh
# Tests the replica's scripts with real servers: it is copied and follows, and is ready only while it does: not while replay is
# late, the primary is away, or its slot is missing. Readers do not stay connected to a replica that is late.
set -eu
kubernetes=$1
# PostgreSQL rejects root, and its user may not have access to this directory.
if [ "$(id -u)" = 0 ]; then
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  cp -R "$0" "$kubernetes/components" "$copy"
  chmod -R a+rX "$copy"
  setpriv --reuid=postgres --regid=postgres --init-groups sh "$copy/$(basename "$0")" "$copy"
  exit
fi
PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1):$PATH
dir=$(mktemp -d)
cd "$dir"
mkdir sock
trap 'for d in replica primary; do pg_ctl -D "$dir/$d" -m immediate stop >/dev/null 2>&1 || true; done; rm -rf "$dir"' EXIT
export PGHOST="$dir/sock" PGPORT=5432 PRIMARY="$dir/sock" PGPASSWORD_FILE="$dir/password" PGPASSFILE="$dir/pgpass"

start() { pg_ctl -D "$1" -o "-p $2 -c unix_socket_directories=$dir/sock -c listen_addresses=" -l "$1.log" --wait start >/dev/null; }
primary() { psql --username postgres --dbname postgres -qAtc "$1"; }
replica() { PGPORT=5433 primary "$1"; }
copy() { PGDATA="$dir/replica" sh "$kubernetes/components/replica/copy.sh" >copy.log 2>&1 || { cat copy.log >&2; exit 1; }; }
ready() { PGPORT=5433 LAG_MAX_S=${1:-60} sh "$kubernetes/components/replica/ready.sh" >/dev/null; }
# `until_ 'what' command…`, for up to a minute.
until_() {
  what=$1
  shift
  end=$(($(date +%s) + 60))
  until "$@"; do
    [ "$(date +%s)" -lt $end ] || { echo "timed out: $what" >&2; tail -n 5 ./*.log >&2; exit 1; }
    sleep 0.2
  done
}
not() { ! "$@"; }
late() { primary 'INSERT INTO t VALUES (2)'; not ready 0; }

initdb -D primary -U postgres --auth=trust >/dev/null
printf '%s\n' 'local replication replicator scram-sha-256' 'local all all trust' > primary/pg_hba.conf
start primary 5432
primary 'CREATE TABLE t (i int); CREATE ROLE reader LOGIN'
# With what is special in a password file, in a connection string and in a setting.
printf '%s' "a:b\\c'd e\"" > password
primary "CREATE ROLE replicator LOGIN REPLICATION PASSWORD E'a:b\\\\c\\'d e\"'"
copy
start replica 5433
until_ "the copy is ready" ready
for setting in connect_timeout keepalives_idle keepalives_interval keepalives_count tcp_user_timeout; do
  replica 'SHOW primary_conninfo' | grep -q "$setting=" || { echo "the receiver has no $setting" >&2; exit 1; }
done
# Nothing is written, or only what has no transaction: it stays ready.
primary 'CHECKPOINT; SELECT pg_switch_wal()' >/dev/null
until_ "the idle replica is ready" ready 0
primary 'INSERT INTO t VALUES (1)'
replayed() { [ -n "$(replica 'SELECT pg_last_xact_replay_timestamp()')" ]; }
until_ "a transaction is replayed" replayed

# A reader that had connected while it was ready.
PGPORT=5433 psql --username reader --dbname postgres -qAtc 'SELECT pg_sleep(600)' 2>reader.log &
reader=$!
connected() { [ "$(replica "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader'")" = 1 ]; }
until_ "the reader is connected" connected
replica 'SELECT pg_wal_replay_pause()' >/dev/null
until_ "a late replica is not ready" late
wait $reader && exit 1
grep -q 'terminating connection due to administrator command' reader.log || { cat reader.log >&2; exit 1; }
ready 600 || { echo "ten minutes are not over" >&2; exit 1; }
replica 'SELECT pg_wal_replay_resume()'
until_ "it has caught up" ready

pg_ctl -D primary -m fast stop >/dev/null
until_ "a replica without a primary is not ready" not ready
start primary 5432
until_ "it follows again" ready

# A restart keeps the copy and takes the new password.
printf new > password
primary "ALTER ROLE replicator PASSWORD 'new'"
pg_ctl -D replica -m fast stop >/dev/null
rows=$(primary 'INSERT INTO t VALUES (3); SELECT count(*) FROM t')
touch replica/kept
copy
[ -e replica/kept ] || { echo "the copy was made again" >&2; exit 1; }
[ "$(grep -c '^primary_conninfo' replica/postgresql.auto.conf)" = 1 ] || exit 1
start replica 5433
until_ "it follows with the new password" ready
same() { [ "$(replica 'SELECT count(*) FROM t')" = "$rows" ]; }
until_ "it has every row" same

# As after the primary was restored to an earlier time.
pg_ctl -D replica -m fast stop >/dev/null
gone() { primary "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots" >/dev/null; }
until_ "the slot is free" gone
start replica 5433
until_ "a replica whose slot is gone is not ready" not ready
echo "ready only while it follows"
