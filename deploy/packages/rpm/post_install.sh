# 1 at the first installation, 2 at an upgrade. Whether a new service is enabled is decided by the distribution's presets.
if [ "$1" -eq 1 ]; then
  systemctl --no-reload preset logweir.service >/dev/null 2>&1 || :
fi
