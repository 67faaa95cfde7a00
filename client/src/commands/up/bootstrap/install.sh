# Installs aditd and starts it. Needs $dir, $state, $sha, $len, $part (the upload, or nothing), $series,
# $kind (system, user or process), $linger (yes: enable it), $unit, $unit_file, $sysusers and $start.
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n\r' '  ')"; }
has() { command -v "$1" >/dev/null 2>&1; }
die() {
    say failed "$1"
    say words "$2"
    # Nothing is left of an upload that cannot be used.
    rmdir "$dir/bin" "$dir" 2>/dev/null
    exit 0
}
umask 077
program=$dir/bin/$sha/aditd
digest() {
    if has sha256sum; then sha256sum <"$1"; elif has shasum; then shasum -a 256 <"$1"; else "$1" digest; fi | cut -c 1-64
}

if [ -n "$part" ]; then
    temporary=$dir/bin/$part
    part=$temporary/aditd
    got=$(wc -c <"$part" | tr -d ' ')
    if [ "$got" != "$len" ]; then
        rm -rf "$temporary"
        die check "$got of $len bytes are there"
    fi
    chmod 700 "$part"
    # Before the digest, which the program may have to make itself.
    if ! words=$("$part" --version 2>&1); then
        rm -rf "$temporary"
        die run "${words:-it ends with an error and says nothing}"
    fi
    got=$(digest "$part")
    if [ "$got" != "$sha" ]; then
        rm -rf "$temporary"
        die check "its SHA-256 is there $got, and here $sha"
    fi
    case $words in
        "aditd $series"*) ;;
        *)
            rm -rf "$temporary"
            die version "$words"
            ;;
    esac
    words=$({ mkdir -p "$dir/bin/$sha" && mv -f "$part" "$program"; } 2>&1) || die keep "$words"
    rmdir "$temporary"
fi
# Uploads that were cut off.
find "$dir/bin" -name '*.part' -mmin +60 -exec rm -rf {} + 2>/dev/null

# put FILE TEXT: whole or not at all.
put() {
    { mkdir -p "$(dirname "$1")" && printf '%s' "$2" >"$1.new" && mv -f "$1.new" "$1"; } 2>&1
}
words=$({ rm -f "$dir/aditd.new" && ln -s "$program" "$dir/aditd.new" && mv -f "$dir/aditd.new" "$dir/aditd"; } 2>&1) ||
    die keep "$words"
words=$(put "$dir/start" "$start") || die keep "$words"
chmod 700 "$dir/start"
installed() {
    put "$dir/installed" "service=$1
state=$state
unit_file=$unit_file
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
        words=$(put /etc/sysusers.d/aditd.conf "$sysusers") || return 1
        chmod 644 /etc/sysusers.d/aditd.conf
        words=$(systemd-sysusers /etc/sysusers.d/aditd.conf 2>&1) || return 1
    fi
    words=$(put "$unit_file" "$unit") || return 1
    [ "$kind" = user ] || chmod 644 "$unit_file"
    # Other users run the service: they have to reach the program.
    [ "$kind" = user ] || chmod 755 "$dir" "$dir/bin" "$dir/bin/$sha" "$program"
    words=$({ control daemon-reload && control enable aditd && control restart aditd; } 2>&1)
}
service=process
if [ "$kind" != process ]; then
    installed "$kind" >/dev/null
    if by_unit; then
        service=$kind
    else
        say why "$words"
        control disable aditd >/dev/null 2>&1
        rm -f "$unit_file"
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
