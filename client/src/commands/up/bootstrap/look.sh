# Looks at a box and changes nothing. Needs $wanted (a directory, or nothing) and $sha.
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n\r' '  ')"; }
has() { command -v "$1" >/dev/null 2>&1; }
umask 077
uid=$(id -u)
user=$(id -un)
say system "$(uname -s)"
say machine "$(uname -m)"
say uid "$uid"
say user "$user"
say home "$HOME"
systemd=no
[ -d /run/systemd/system ] && has systemctl && systemd=yes
say systemd "$systemd"
state=${XDG_DATA_HOME:-$HOME/.local/share}/aditd
dir=$HOME/.local/share/adit
if [ "$uid" = 0 ]; then
    state=/var/lib/adit
    # The unit's service sees no home directory.
    [ "$systemd" = yes ] && dir=/usr/local/lib/adit
fi
[ -n "$wanted" ] && dir=$wanted
say dir "$dir"
say state "$state"

# Whether a file can be written and run there: in the nearest directory that exists.
near=$dir
while [ ! -d "$near" ] && [ "$near" != / ]; do near=$(dirname "$near"); done
probe=$near/.adit-look.$$
if words=$({ printf '#!/bin/sh\nexit 0\n' >"$probe"; } 2>&1); then
    say writable yes
    chmod 700 "$probe"
    if words=$("$probe" 2>&1); then say runs yes; else say runs "${words:-it ends with an error}"; fi
    rm -f "$probe"
else
    say writable "$words"
fi
# shellcheck disable=SC2046
set -- $(df -Pk "$near" 2>/dev/null | tail -n 1)
say free_kib "$4"

digest() {
    if has sha256sum; then sha256sum <"$1"; elif has shasum; then shasum -a 256 <"$1"; else "$1" digest; fi | cut -c 1-64
}
program=$dir/bin/$sha/aditd
if [ -n "$sha" ] && [ -f "$program" ] && [ "$(digest "$program" 2>/dev/null)" = "$sha" ]; then
    say present yes
fi

# What adit has installed there.
if [ -f "$dir/installed" ]; then
    say installed "$(sed -n 's/^service=//p' "$dir/installed")"
    [ "$(readlink "$dir/aditd" 2>/dev/null)" = "$program" ] && say linked yes
fi

# What keeps services running.
runtime=${XDG_RUNTIME_DIR:-/run/user/$uid}
if has systemctl && XDG_RUNTIME_DIR=$runtime DBUS_SESSION_BUS_ADDRESS=unix:path=$runtime/bus \
    systemctl --user show-environment >/dev/null 2>&1; then
    say user_manager yes
fi
[ -e "/var/lib/systemd/linger/$user" ] && say linger yes
set -- "$HOME/.config/systemd/user"
if [ "$uid" = 0 ]; then
    set --
    # Where no systemd runs, as in a container, the unit of a package starts nothing.
    [ "$systemd" = yes ] &&
        set -- /etc/systemd/system /usr/local/lib/systemd/system /usr/lib/systemd/system /lib/systemd/system
fi
for at in "$@"; do
    unit=$at/aditd.service
    if [ -e "$unit" ] && ! grep -q '^# Made by `adit up`' "$unit"; then
        say foreign_unit "$unit"
        break
    fi
done

# An aditd that runs: the one that adit has installed, if it has, and no other one; else the one with which
# this login's commands speak by the configuration of the box; else that of the usual state, which has to be
# named to them.
mine=
order='no yes'
[ -f "$dir/installed" ] && order=yes
usual=$ADITD_STATE_DIR
for named in $order; do
    export ADITD_STATE_DIR="$state"
    if [ "$named" = no ]; then
        unset ADITD_STATE_DIR
        [ -n "$usual" ] && export ADITD_STATE_DIR="$usual"
    fi
    for a in "$dir/aditd" aditd "$HOME/.local/bin/aditd" "$HOME/.cargo/bin/aditd" /usr/local/bin/aditd; do
        if has "$a" && status=$("$a" status --json 2>/dev/null); then
            say program "$a"
            say status "$status"
            [ "$named" = yes ] && say named_state yes
            mine=$(printf %s "$status" | tr ',{' '\n\n' | sed -n 's/^ *"pid": *\([0-9]*\).*/\1/p' | head -n 1)
            break 2
        fi
    done
done
if [ ! -f "$dir/installed" ] && [ -S /run/adit/enroll.sock ] && [ -w /run/adit/enroll.sock ]; then
    for a in aditd "$HOME/.local/bin/aditd" "$HOME/.cargo/bin/aditd" /usr/local/bin/aditd; do
        has "$a" && say enroll_group yes
    done
fi

# Processes, and where Ollama listens.
for at in /proc/[0-9]*; do
    name=
    { read -r name <"$at/comm"; } 2>/dev/null
    case $name in
        aditd) [ "${at#/proc/}" != "$mine" ] && say other "${at#/proc/}" ;;
        ollama) say ollama "$(tr '\0' '\n' <"$at/environ" 2>/dev/null | sed -n 's/^OLLAMA_HOST=//p')" ;;
    esac
done
if [ "$systemd" = yes ]; then
    say ollama "$(systemctl show ollama -p Environment --value 2>/dev/null | tr ' ' '\n' | sed -n 's/^OLLAMA_HOST=//p')"
fi
say ollama "$OLLAMA_HOST"

# The sockets of the machine, in the kernel's own notation.
sockets() {
    while read -r _ at _ state _; do
        case $1$state in udp* | tcp0A) printf ' %s' "$at" ;; esac
    done
}
if [ -r /proc/net/udp ] && [ -r /proc/net/tcp ]; then
    say udp "-$(cat /proc/net/udp /proc/net/udp6 2>/dev/null | sockets udp)"
    say tcp "-$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | sockets tcp)"
fi
