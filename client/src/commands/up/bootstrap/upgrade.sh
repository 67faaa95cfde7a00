# After receive.sh: the aditd that runs starts the new one, which replaces it. Needs $state and $kind.
before=$(readlink "$dir/aditd")
link() {
    { rm -f "$dir/aditd.new" && ln -s "$1" "$dir/aditd.new" && mv -f "$dir/aditd.new" "$dir/aditd"; } 2>&1
}
# Other users run the service: they have to reach the program.
[ "$kind" = system ] && chmod 755 "$dir/bin/$sha" "$program"
words=$(link "$program") || die keep "$words"
export ADITD_STATE_DIR="$state"
if ! words=$("$dir/aditd" replace 2>&1); then
    [ -n "$before" ] && link "$before" >/dev/null
    [ -n "$part" ] && rm -rf "$dir/bin/$sha"
    die replace "$words"
fi
# The old one runs on without its file.
for other in "$dir"/bin/*; do
    case $other in
        "$dir/bin/$sha" | *.part) ;;
        *) rm -rf "$other" ;;
    esac
done
say replaced "$words"
