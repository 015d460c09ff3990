#!/bin/sh
# Runs before each start of the replica: copies the primary if the volume is new, and writes how to follow it.
set -eu
: "${PGDATA:?}" "${PRIMARY:?}" "${PGPASSWORD_FILE:?}" "${PGPASSFILE:?}"
umask 077
# Written each time, so that a new password needs only a restart.
printf '*:*:*:replicator:%s\n' "$(sed 's/[\\:]/\\&/g' "$PGPASSWORD_FILE")" > "$PGPASSFILE"
# A node that is lost closes no connection. Without these limits the kernel's apply, about two hours, and wal_receiver_timeout
# begins only when the primary streams. The receiver of PostgreSQL 15 ignores connect_timeout; pg_basebackup does not.
primary="host=$PRIMARY user=replicator passfile=$PGPASSFILE connect_timeout=5"
primary="$primary keepalives_idle=30 keepalives_interval=10 keepalives_count=3 tcp_user_timeout=60000"
slot="replica_$(hostname | tr -c 'a-z0-9\n' _)"

copy() {
  rm -rf "$PGDATA.new" # an interrupted copy
  pg_basebackup --dbname "$primary" --pgdata "$PGDATA.new" --wal-method stream --write-recovery-conf --checkpoint fast \
    --slot "$slot" "$@" && mv "$PGDATA.new" "$PGDATA"
}
# With a slot, so that the primary keeps its WAL. It may be there from an earlier copy.
[ -s "$PGDATA/PG_VERSION" ] || copy --create-slot || copy

settings="$PGDATA/postgresql.auto.conf"
sed '/^primary_conninfo *=/d; /^primary_slot_name *=/d' "$settings" > "$settings.new"
printf "primary_conninfo = '%s'\nprimary_slot_name = '%s'\n" "$primary" "$slot" >> "$settings.new"
mv "$settings.new" "$settings"
