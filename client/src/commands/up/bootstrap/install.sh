# After receive.sh: installs aditd and starts it. Needs $state, $kind (system, user or process), $linger
# (yes: enable it), $unit, $unit_file, $sysusers and $start.
# put FILE TEXT: whole or not at all.
put() {
    { mkdir -p "$(dirname "$1")" && printf '%s' "$2" >"$1.new" && mv -f "$1.new" "$1"; } 2>&1
}
words=$({ rm -f "$dir/aditd.new" && ln -s "$program" "$dir/aditd.new" && mv -f "$dir/aditd.new" "$dir/aditd"; } 2>&1) ||
    die keep "$words"
words=$(put "$dir/start" "$start") || die keep "$words"
chmod 700 "$dir/start"
# Whether the state was there before adit: then it is not adit's to remove.
found_state=no
if [ -f "$dir/installed" ]; then
    grep -qx 'found_state=yes' "$dir/installed" && found_state=yes
elif [ -e "$state/register.sqlite" ]; then
    found_state=yes
fi
installed() {
    put "$dir/installed" "service=$1
state=$state
unit_file=$unit_file
found_state=$found_state
"
}
words=$(installed none) || die keep "$words"

uid=$(id -u)
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$uid}"
export DBUS_SESSION_BUS_ADDRESS="unix:path=$XDG_RUNTIME_DIR/bus"
control() {
    if [ "$kind" = user ]; then systemctl --user "$@"; else systemctl "$@"; fi
}
by_unit() {
    if [ "$linger" = yes ]; then
        words=$(loginctl enable-linger 2>&1) || return 1
        : >"$dir/linger"
    fi
    tries=0
    until control show-environment >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 50 ]; then
            words=$(control show-environment 2>&1)
            return 1
        fi
        sleep 0.1 2>/dev/null || sleep 1
    done
    if [ -n "$sysusers" ]; then
        # That of `aditd service install` is the same, and stays its own.
        if ! grep -qs '^# Made by `service install`' /etc/sysusers.d/aditd.conf; then
            made_users=yes
            words=$(put /etc/sysusers.d/aditd.conf "$sysusers") || return 1
            chmod 644 /etc/sysusers.d/aditd.conf
        fi
        words=$(systemd-sysusers /etc/sysusers.d/aditd.conf 2>&1) || return 1
    fi
    words=$(put "$unit_file" "$unit") || return 1
    [ "$kind" = user ] || chmod 644 "$unit_file"
    # Other users run the service: they have to reach the program.
    [ "$kind" = user ] || chmod 755 "$dir" "$dir/bin" "$dir/bin/$sha" "$program"
    words=$({ control daemon-reload && control enable aditd && control restart aditd; } 2>&1)
}
service=process
made_users=no
if [ "$kind" != process ]; then
    installed "$kind" >/dev/null
    if by_unit; then
        service=$kind
    else
        say why "$words"
        control disable aditd >/dev/null 2>&1
        rm -f "$unit_file"
        [ "$made_users" = yes ] && rm -f /etc/sysusers.d/aditd.conf
        control daemon-reload >/dev/null 2>&1
    fi
fi
pid=
if [ "$service" = process ]; then
    pid=$("$dir/start") || die start "it cannot be started"
fi
words=$(installed "$service") || die keep "$words"

export ADITD_STATE_DIR="$state"
tries=0
until status=$("$dir/aditd" status --json 2>&1); do
    tries=$((tries + 1))
    if [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then die start "$(tail -n 8 "$dir/aditd.log")"; fi
    [ "$tries" -gt 200 ] && die start "$status"
    sleep 0.1 2>/dev/null || sleep 1
done
say service "$service"
