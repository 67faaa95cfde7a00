# Checks what was uploaded and puts it where it belongs. Needs $dir, $sha, $len, $part (the upload, or
# nothing) and $series. What follows runs as $program.
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

