#!/bin/sh
# Runs once, on a new volume. The role logweir owns the schema and creates the tables; logweir_read is read-only.
set -eu
psql -v ON_ERROR_STOP=1 --username postgres --dbname "$POSTGRES_DB" \
  -v owner="$(cat /run/secrets/owner-password)" -v reader="$(cat /run/secrets/reader-password)" <<'SQL'
CREATE ROLE logweir LOGIN PASSWORD :'owner';
CREATE ROLE logweir_read LOGIN PASSWORD :'reader';
ALTER ROLE logweir_read SET default_transaction_read_only = on;
ALTER DATABASE logs OWNER TO logweir;
ALTER SCHEMA public OWNER TO logweir;
GRANT USAGE ON SCHEMA public TO logweir_read;
ALTER DEFAULT PRIVILEGES FOR ROLE logweir IN SCHEMA public GRANT SELECT ON TABLES TO logweir_read;
SQL
