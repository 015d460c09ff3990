# Before the files are unpacked, because the configuration belongs to the group. The same line as in logweir.sysusers.
getent passwd logweir >/dev/null || systemd-sysusers - <<'USERS'
u logweir - "logweir" /var/lib/logweir
USERS
