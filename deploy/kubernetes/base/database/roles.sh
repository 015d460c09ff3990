#!/bin/sh
# Runs once, on a new volume: creates three roles with minimal privileges.
# - logweir owns the schema and creates the tables; logweir_read is read-only; replicator replicates (replica, backup).
set -eu
password() { cat "/etc/postgresql-secret/$1"; }
psql -v ON_ERROR_STOP=1 --username postgres --dbname "$POSTGRES_DB" \
  -v owner="$(password owner-password)" -v reader="$(password reader-password)" \
  -v replicator="$(password replicator-password)" <<'SQL'
CREATE ROLE logweir LOGIN PASSWORD :'owner' CONNECTION LIMIT 60;
CREATE ROLE logweir_read LOGIN PASSWORD :'reader' CONNECTION LIMIT 60;
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replicator';
ALTER ROLE logweir_read SET default_transaction_read_only = on;
ALTER DATABASE logs OWNER TO logweir;
REVOKE ALL ON DATABASE logs FROM PUBLIC;
GRANT CONNECT ON DATABASE logs TO logweir_read;
ALTER SCHEMA public OWNER TO logweir;
GRANT USAGE ON SCHEMA public TO logweir_read;
ALTER DEFAULT PRIVILEGES FOR ROLE logweir IN SCHEMA public GRANT SELECT ON TABLES TO logweir_read;
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
SQL
