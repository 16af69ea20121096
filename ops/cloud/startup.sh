#!/usr/bin/env bash
# Run by the machine at each boot, as root: Docker, and the limits of the kernel. Does nothing that
# was done before. Its output: journalctl -u google-startup-scripts
set -euo pipefail

# compose as a plugin of docker, and the builder: Debian 13 has both.
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

# The file that instances.sh has given the machine, if any: ops/sysctl has the reasons. Now and not
# at an earlier moment of the boot, as one line is for a module that Docker loads.
if name=$(metadata sysctl-name); then
  metadata sysctl >"/etc/sysctl.d/$name"
  sysctl --quiet --load "/etc/sysctl.d/$name"
fi

# Open files: the compose files ask for WS_NOFILE, and dockerd gives what its own limit allows.
systemctl show --property=LimitNOFILE docker
