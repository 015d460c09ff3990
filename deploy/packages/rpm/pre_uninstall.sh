# 0 if this is not an upgrade.
if [ "$1" -eq 0 ]; then
  systemctl --no-reload disable --now logweir.service >/dev/null 2>&1 || :
fi
