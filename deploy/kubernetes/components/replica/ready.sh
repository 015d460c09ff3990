#!/bin/sh
# The readiness probe: succeeds while the replica receives from the primary, and has replayed all but the last LAG_MAX_S
# seconds. Both times are the primary's: clocks may differ. A replica that follows nothing answers queries just as well.
set -eu
ask() { psql --username postgres --dbname postgres -XAtqc "$1"; }
follows="
  SELECT coalesce(bool_or(status = 'streaming' AND (
    pg_last_wal_replay_lsn() >= latest_end_lsn
    OR pg_last_xact_replay_timestamp() > last_msg_send_time - interval '${LAG_MAX_S:-60} s'
  )), false) FROM pg_stat_wal_receiver"
# After a pause, what has just arrived counts as late until it is replayed: so there are three looks.
for look in 1 2 3; do
  [ "$(ask "$follows")" != t ] || exit 0
  [ "$look" = 3 ] || sleep 1
done
# Connections that are open, such as PgBouncer's, would go on reading what is too old.
ask "SELECT 'behind the primary; readers disconnected: ' || count(pg_terminate_backend(pid)) FROM pg_stat_activity
  WHERE backend_type = 'client backend' AND usename <> 'postgres'"
exit 1
