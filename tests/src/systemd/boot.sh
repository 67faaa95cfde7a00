# Boots systemd as process 1 of the namespaces in which this is run, on a copy of the root directory
# that is written into memory and gone afterwards. Runs the script in $1 there as a service, and powers
# off. Its output is in $1.out. `adit` and `aditd` of the system in there are the program $2.
set -eu
given=$1 program=$2
kept=$(dirname "$given")
cd "$kept"
mkdir memory
mount -t tmpfs tmpfs memory
mkdir memory/upper memory/work memory/root
mount -t overlay -o "lowerdir=/,upperdir=$kept/memory/upper,workdir=$kept/memory/work" overlay memory/root
root=$kept/memory/root
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
ip link set lo up

# What this machine has of its own is not the test's.
rm -rf "$root/var/lib/adit" "$root/etc/adit" "$root/usr/local/lib/adit"
for name in adit aditd; do
    rm -f "$root/usr/bin/$name"
    touch "$root/usr/local/bin/$name"
    mount --bind "$program" "$root/usr/local/bin/$name"
done
mkdir -p "$root/given"
mount --bind "$kept/files" "$root/given"
touch "$root/script" "$root/out" "$given.out"
mount --bind "$given" "$root/script"
mount --bind "$given.out" "$root/out"

units=$root/etc/systemd/system
mkdir -p "$units/given.target.wants"
cat >"$units/given.target" <<END
[Unit]
Requires=dbus.socket systemd-logind.service systemd-journald.service
After=dbus.socket systemd-logind.service systemd-journald.service
AllowIsolate=yes
END
cat >"$units/given.service" <<END
[Unit]
DefaultDependencies=no
After=given.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=sh -eu /script
StandardOutput=append:/out
StandardError=append:/out
ExecStopPost=/bin/systemctl --force --force poweroff
END
ln -s ../given.service "$units/given.target.wants/"
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" /lib/systemd/systemd --system --unit=given.target --log-target=null
