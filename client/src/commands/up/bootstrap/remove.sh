# Undoes what adit has installed. Needs $wanted: its directory, or nothing.
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n\r' '  ')"; }
dir=$wanted
for at in "$HOME/.local/share/adit" /usr/local/lib/adit; do
    [ -z "$dir" ] && [ -f "$at/installed" ] && [ -w "$at/installed" ] && dir=$at
done
if [ ! -f "$dir/installed" ]; then
    say installed no
    exit 0
fi
service= state= unit_file= found_state=
while IFS='=' read -r key value; do
    case $key in
        service) service=$value ;;
        state) state=$value ;;
        unit_file) unit_file=$value ;;
        found_state) found_state=$value ;;
    esac
done <"$dir/installed"
uid=$(id -u)
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$uid}"
export DBUS_SESSION_BUS_ADDRESS="unix:path=$XDG_RUNTIME_DIR/bus"
control() {
    if [ "$service" = user ]; then systemctl --user "$@"; else systemctl "$@"; fi
}
# Units of others, running or not, that are for the same state: the state is theirs, too.
foreign=
others() {
    for unit in "$@"; do
        [ -e "$unit" ] && ! grep -q '^# Made by `adit up`' "$unit" || continue
        # It names another state.
        grep -qe ADITD_STATE_DIR -e --state-dir "$unit" && ! grep -qF "$state" "$unit" && continue
        foreign=$unit
        say left "the unit $unit, which adit did not install"
        return
    done
}
wants=$HOME/.config/systemd/user/default.target.wants/aditd.service
case $state in
    /var/lib/adit)
        others /etc/systemd/system/aditd.service /usr/local/lib/systemd/system/aditd.service \
            /usr/lib/systemd/system/aditd.service /lib/systemd/system/aditd.service
        ;;
    *) others "$HOME/.config/systemd/user/aditd.service" "$HOME/.local/share/systemd/user/aditd.service" "$wants" ;;
esac
case $service in
    user | system)
        # Only the unit that adit has made is its to stop.
        if [ -e "$unit_file" ] && grep -q '^# Made by `adit up`' "$unit_file"; then
            words=$(control disable --now aditd 2>&1) || say left "the unit aditd: $words"
            rm -f "$unit_file" && say removed "$unit_file"
            control daemon-reload >/dev/null 2>&1
        fi
        ;;
esac
# The process that serves the state, however it was started.
pid=$(cat "$state/lock" 2>/dev/null)
runs() {
    name=
    { read -r name <"/proc/$pid/comm"; } 2>/dev/null
    [ "$name" = aditd ]
}
# A program from elsewhere serves the state: somebody else has put it there, and the state is theirs.
if [ -n "$pid" ] && runs; then
    own=$(cd "$dir" && pwd -P) || own=$dir
    # Only root may see which program a server of others is; its command line names it, too.
    exe=$(readlink "/proc/$pid/exe" 2>/dev/null) ||
        exe=$(tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | head -n 1)
    case $exe in
        '' | "$own"/* | "$dir"/*) ;;
        *)
            say left "the aditd with the process id $pid, which adit did not install"
            foreign=$exe pid=
            ;;
    esac
fi
tries=0
while [ -n "$pid" ] && runs; do
    # The first order lets answers end, the second cuts them.
    case $tries in
        0 | 30) kill "$pid" 2>/dev/null ;;
        80) kill -9 "$pid" 2>/dev/null ;;
        120) break ;;
    esac
    tries=$((tries + 1))
    sleep 0.1 2>/dev/null || sleep 1
done
[ -n "$pid" ] && runs && say left "the process $pid, which does not end"
if crontab -l 2>/dev/null | grep -qF "$dir/start"; then
    crontab -l 2>/dev/null | grep -vF "$dir/start" | crontab -
fi
if [ -e "$dir/linger" ] && { [ -n "$foreign" ] || ! loginctl disable-linger 2>/dev/null; }; then
    say left "linger of $(id -un) (\`loginctl disable-linger\`)"
fi
if [ -z "$state" ]; then
    say left "the state, which \`$dir/installed\` does not name"
elif [ -n "$foreign" ]; then
    say left "the state $state, which that aditd uses"
elif [ "$found_state" = yes ]; then
    say left "the state $state, which was there before adit installed aditd"
elif words=$(rm -rf "$state" 2>&1); then
    say removed "$state"
    say state removed
else
    say left "$words"
fi
words=$({ rm -rf "$dir/bin" "$dir/aditd" "$dir/start" "$dir/aditd.log" "$dir/linger"; } 2>&1) || say left "$words"
say removed "$dir"
if [ "$service" = system ] && [ -z "$foreign" ] && [ "$found_state" != yes ]; then
    rm -f /etc/sysusers.d/aditd.conf
    say left "the system user aditd (\`userdel aditd\`)"
fi
rm -f "$dir/installed"
# Directories that have become empty.
for at in "$dir" "$HOME/.config/systemd/user/default.target.wants" "$HOME/.config/systemd/user" \
    "$HOME/.config/systemd" "$HOME/.config" "$HOME/.local/share" "$HOME/.local"; do
    rmdir "$at" 2>/dev/null
done
say installed yes
