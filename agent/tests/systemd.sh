#!/bin/sh
# A real systemd on a real bus, beside node_exporter and the agent: `systemd.sh DIR AGENT PORT`, in mount, network,
# process and control group namespaces of its own (tests/systemd.rs). Leaves DIR/theirs and DIR/ours.
# A user's manager has the same interface as the system's, and starts where the system's would not.
set -eu
dir=$1 agent=$2 port=$3
mount --make-rprivate /
mount -t tmpfs none /run
ip link set lo up
# Its own part of the control groups and no other: a manager takes all processes that it finds at the root.
if [ -d /sys/fs/cgroup/systemd ]; then
    mount -t tmpfs none /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/systemd
else
    mount -t cgroup2 none /sys/fs/cgroup
fi
# It asks whether the system was booted by systemd.
mkdir -p /run/systemd/system /run/u /run/config/systemd/user "$dir/root/run/dbus"
units=/run/config/systemd/user
unit() { printf '%b' "$2" > "$units/$1"; }
unit simple.service '[Service]\nType=simple\nExecStart=/bin/sleep 1000\n'
unit fails.service '[Service]\nType=oneshot\nExecStart=/bin/false\n'
unit once.timer '[Timer]\nOnActiveSec=1ms\nUnit=fails.service\n'
unit inlet.socket '[Socket]\nListenStream=/run/inlet\nAccept=yes\n'
unit inlet@.service '[Service]\nExecStart=/bin/sleep 1000\nStandardInput=socket\n'
unit dbus.socket '[Socket]\nListenStream=/run/u/bus\n'
unit dbus.service '[Unit]\nRequires=dbus.socket\n[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --config-file=/run/bus.conf --address=systemd: --nofork --nopidfile\n'
cat > /run/bus.conf <<'EOF'
<busconfig>
  <type>session</type>
  <listen>unix:path=/run/u/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
EOF
export XDG_RUNTIME_DIR=/run/u XDG_CONFIG_HOME=/run/config DBUS_SESSION_BUS_ADDRESS=unix:path=/run/u/bus
SYSTEMD_LOG_TARGET=console /lib/systemd/systemd --user > "$dir/systemd.log" 2>&1 &
soon() { for _ in $(seq 100); do if "$@" > "$dir/soon" 2>&1; then return 0; fi; sleep 0.1; done; echo "not within 10 s: $*" >&2; cat "$dir/soon" "$dir/systemd.log" >&2; exit 1; }
soon systemctl --user start dbus.service
soon busctl --user status org.freedesktop.systemd1
systemctl --user start simple.service once.timer inlet.socket
soon systemctl --user is-failed fails.service
# Two connections, which stay.
python3 -c 'import socket, time
held = [socket.socket(socket.AF_UNIX) for _ in range(2)]
[one.connect("/run/inlet") for one in held]
time.sleep(1000)' &
soon sh -c 'systemctl --user show -P NConnections inlet.socket | grep -qx 2'
# Which units it tells of is upstream's default; Debian's leaves targets out besides.
DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/u/bus prometheus-node-exporter --web.listen-address="127.0.0.1:$port" \
    --collector.disable-defaults --collector.systemd \
    --collector.systemd.unit-exclude='.+\.(automount|device|mount|scope|slice)' > "$dir/node_exporter.log" 2>&1 &
ln -s /run/u/bus "$dir/root/run/dbus/system_bus_socket"
soon curl -sf "http://127.0.0.1:$port/metrics" -o "$dir/theirs"
"$agent" --once --rootfs "$dir/root" --collector.systemd > "$dir/ours"
