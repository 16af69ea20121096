#!/usr/bin/env bash
# Boots systemd as PID 1 in namespaces and a cgroup of its own, with the units of DIR/units and
# nothing else: boot_systemd.sh DIR. DIR/opt becomes its /opt, DIR/etc is laid over its /etc.
# Ends with it. The machine's own mounts, network, processes and kernel settings stay as they are.
set -euo pipefail
dir=$1
controllers=(cpu cpuacct memory pids devices systemd)

if [[ ${2-} != inside ]]; then
  # A group of our own in each hierarchy: as root of a cgroup namespace it is all that it sees.
  for controller in "${controllers[@]}"; do
    own=$(awk -F: -v c="$controller" '$2 == c || $2 == "name=" c {print $3}' /proc/self/cgroup)
    group=/sys/fs/cgroup/$controller/$own/${dir##*/}
    mkdir -p "$group"
    echo $$ >"$group/cgroup.procs"
  done
  exec unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child \
    bash "$0" "$dir" inside
fi

mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
ip link set lo up
umount --recursive /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for controller in "${controllers[@]}"; do
  option=$controller
  [[ $controller != systemd ]] || option=none,name=systemd
  mkdir "/sys/fs/cgroup/$controller"
  mount -t cgroup -o "$option" cgroup "/sys/fs/cgroup/$controller"
done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /lib/systemd/system-generators
mount -t tmpfs tmpfs /lib/systemd/system
mkdir -p "$dir/work" /opt
mount -t overlay -o "lowerdir=/etc,upperdir=$dir/etc,workdir=$dir/work" overlay /etc
mount --bind "$dir/units" /etc/systemd/system
mount --bind "$dir/opt" /opt
export container=other
exec /lib/systemd/systemd --system --unit=booted.target --log-target=console
