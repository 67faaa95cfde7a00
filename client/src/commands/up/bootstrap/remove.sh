# Undoes what adit has installed. Needs $wanted: its directory, or nothing.
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n\r' '  ')"; }
# is_there FILE: also a link to nothing.
is_there() { [ -e "$1" ] || [ -L "$1" ]; }
dir=$wanted
for at in "$HOME/.local/share/adit" /usr/local/lib/adit; do
    [ -z "$dir" ] && [ -f "$at/installed" ] && [ -w "$at/installed" ] && dir=$at
done
if [ ! -f "$dir/installed" ]; then
    say installed no
    for at in /proc/[0-9]*; do
        name=
        { read -r name <"$at/comm"; } 2>/dev/null
        [ "$name" = aditd ] && say left "the aditd with the process id ${at#/proc/}, which adit did not install"
    done
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
# Without links: what they lead to is removed, too.
real=$state
[ -d "$state" ] && real=$(cd "$state" && pwd -P)
uid=$(id -u)
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$uid}"
export DBUS_SESSION_BUS_ADDRESS="unix:path=$XDG_RUNTIME_DIR/bus"
control() {
    if [ "$service" = user ]; then systemctl --user "$@"; else systemctl "$@"; fi
}
# Units of others, running or not: if one is for the same state, that is theirs, too.
foreign= other_unit=
# others USUAL UNIT...: USUAL says whether the state is that of such units if they name none (yes or no).
others() {
    usual=$1
    shift
    for unit in "$@"; do
        [ -e "$unit" ] && ! grep -q '^# Made by `adit up`' "$unit" || continue
        other_unit=$unit
        [ -z "$foreign" ] || continue
        lines=$(grep -v '^[[:space:]]*[#;]' "$unit" 2>/dev/null)
        same=$usual
        printf '%s\n' "$lines" | grep -Eqx "[[:space:]]*User=($(id -un)|$uid)[[:space:]]*" && same=yes
        case $(printf '%s\n' "$lines" | grep -e ADITD_STATE_DIR -e --state-dir) in
            '') ;;
            *"$state"* | *"$real"*) same=yes ;;
            # What systemd puts there is not known here.
            *[%$\\]*) ;;
            *) same=no ;;
        esac
        [ "$same" = yes ] || continue
        foreign=$unit
        say left "the unit $unit, which adit did not install"
    done
}
of_system=no of_user=yes
[ "$state" = /var/lib/adit ] && of_system=yes of_user=no
[ "$uid" = 0 ] && of_user=$of_system
# Where no systemd runs, as in a container, the unit of a package has started nothing.
[ "$service" = process ] && [ ! -d /run/systemd/system ] && of_system=no
others "$of_system" /etc/systemd/system/aditd.service /usr/local/lib/systemd/system/aditd.service \
    /usr/lib/systemd/system/aditd.service /lib/systemd/system/aditd.service
others "$of_user" "$HOME/.config/systemd/user/aditd.service" "$HOME/.local/share/systemd/user/aditd.service" \
    "$HOME/.config/systemd/user/default.target.wants/aditd.service"
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
    if words=$({ crontab -l | grep -vF "$dir/start" | crontab -; } 2>&1); then
        say removed "the crontab's line \`@reboot $dir/start\`"
    else
        say left "the crontab's line \`@reboot $dir/start\`: $words"
    fi
fi
if [ -e "$dir/linger" ] && { [ -n "$foreign" ] || ! loginctl disable-linger 2>/dev/null; }; then
    say left "linger of $(id -un) (\`loginctl disable-linger\`)"
fi
# While something is left that was to be removed, it stays written what adit has installed: for the next try.
retry=no
if [ -z "$state" ]; then
    say left "the state, which \`$dir/installed\` does not name"
elif [ -n "$foreign" ]; then
    say left "the state $state, which that aditd uses"
elif [ "$found_state" = yes ]; then
    say left "the state $state, which was there before adit installed aditd"
else
    words=$(rm -rf "$real" 2>&1)
    if [ -e "$real/register.sqlite" ]; then
        say left "the state $state: $words"
        retry=yes
    else
        say state removed
        [ -L "$state" ] && rm -f "$state"
        # A file system that is mounted there keeps its directory.
        if [ ! -e "$real" ]; then
            say removed "$state"
        elif [ -z "$(ls -A "$real" 2>&1)" ]; then
            say removed "all files in $real"
            say left "the empty directory $real: $words"
        else
            say left "what cannot be removed in $real: $words"
        fi
    fi
fi
conf=/etc/sysusers.d/aditd.conf
if [ "$service" = system ] && [ -z "$foreign$other_unit" ] && [ "$found_state" != yes ] &&
    ! grep -qs '^# Made by `service install`' "$conf"; then
    if [ -e "$conf" ]; then rm -f "$conf" && say removed "$conf"; fi
    say left "the system user aditd (\`userdel aditd\`)"
fi
# What was removed in the directory, a name in each line.
inside=
for name in bin aditd start aditd.log linger; do
    is_there "$dir/$name" || continue
    words=$(rm -rf "${dir:?}/$name" 2>&1)
    if is_there "$dir/$name"; then
        say left "$dir/$name: $words"
        retry=yes
    else
        inside="$inside$name
"
    fi
done
[ "$retry" = yes ] || rm -f "$dir/installed"
# Directories that have become empty.
for at in "$dir" "$HOME/.config/systemd/user/default.target.wants" "$HOME/.config/systemd/user" \
    "$HOME/.config/systemd" "$HOME/.config" "$HOME/.local/share" "$HOME/.local"; do
    rmdir "$at" 2>/dev/null
done
if [ -e "$dir" ]; then
    for name in $inside; do say removed "$dir/$name"; done
else
    say removed "$dir"
fi
say installed yes
