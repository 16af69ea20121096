#!/usr/bin/env bash
# The machine runs this at each boot, as root. It installs Docker and sets the limits of the kernel,
# and skips what is already done. Its output: journalctl -u google-startup-scripts
set -euo pipefail

# Docker's compose plugin and the builder; Debian 13 has both.
if ! docker compose version >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -q -y --no-install-recommends docker.io docker-cli docker-compose docker-buildx
  systemctl enable --now docker
fi

metadata() {
  curl --silent --fail --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# The file that instances.sh gave the machine, if any; ops/sysctl has the reasons. It is loaded now and
# not earlier in the boot, because one line needs a module that Docker loads.
if name=$(metadata sysctl-name); then
  metadata sysctl >"/etc/sysctl.d/$name"
  sysctl --quiet --load "/etc/sysctl.d/$name"
fi

# Open files: the compose files ask for WS_NOFILE, and dockerd grants at most its own limit.
systemctl show --property=LimitNOFILE docker
