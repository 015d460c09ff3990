# Data stays in /var/lib/logweir: it may hold acknowledged records that exist nowhere else.
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload >/dev/null 2>&1 || :
if [ "$1" -ge 1 ]; then
  systemctl try-restart logweir.service >/dev/null 2>&1 || :
fi
