#!/usr/bin/env bash
# curl through the tunnel, beside curl without it: the same status, headers (apart from Date) and body.
#
# ADIT_URL leads to the stand-in through the tunnel, ADIT_DIRECT leads straight to it.
set -euo pipefail

tunnel=${ADIT_URL%/}
direct=${ADIT_DIRECT%/}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

ok() {
    echo "ok  $1"
}

fetch() {
    curl --silent --show-error --no-buffer --noproxy '*' --max-time 60 "$@"
}

# ask URL FILES CURL-ARGUMENTS...: in these, BASE at the start stands for the URL. What curl has to say goes into a
# file: an early answer makes it complain about the upload, which is no failure.
ask() {
    local base=$1 files=$2 code=0
    shift 2
    fetch --dump-header "$files.headers" --output "$files.body" --write-out '%{http_code} %{num_connects}\n' \
        "${@/#BASE/$base}" >"$files.status" 2>"$files.error" || code=$?
    echo "exit $code" >>"$files.status"
    # Date differs by nature. With --head, curl gives the headers as the body too.
    sed -i '/^[Dd]ate:/d' "$files.headers"
    if cmp -s <(sed '/^[Dd]ate:/d' "$files.body") "$files.headers"; then cp "$files.headers" "$files.body"; fi
}

# same WHAT STATUS CURL-ARGUMENTS...
same() {
    local what=$1 status=$2
    shift 2
    ask "$direct" "$work/direct" "$@"
    ask "$tunnel" "$work/tunnel" "$@"
    grep -q "^$status " "$work/tunnel.status" \
        || fail "$what: wanted status $status, got:" "$(cat "$work/tunnel.status" "$work/tunnel.error")"
    for part in status headers body; do
        cmp -s "$work/direct.$part" "$work/tunnel.$part" \
            || fail "$what: the $part differs (< direct, > tunnel):" \
                "$(diff -a "$work/direct.$part" "$work/tunnel.$part" | head -n 20)"
    done
    ok "$what"
}

has_header() {
    grep -qi "^$2" "$work/tunnel.headers" || fail "$1: no header like '$2' in:" "$(cat "$work/tunnel.headers")"
}

counter() {
    fetch "$direct/test/counters" | sed -E "s/.*\"$1\":([0-9]+).*/\1/"
}

model=$(fetch "$direct/api/tags" | sed -E 's/.*"model":"([^"]+)".*/\1/')
ask_for() {
    printf '{"model":"%s","prompt":"Why is the sky blue?","options":{"seed":7,"num_predict":%s}}' "$model" "$1"
}

same 'GET /' 200 BASE/
same 'HEAD /' 200 --head BASE/
same 'HEAD /api/tags' 200 --head BASE/api/tags
same 'GET /api/version' 200 BASE/api/version
same 'an unknown path' 404 BASE/no/such/path
same 'a wrong method' 405 --request DELETE BASE/api/tags
has_header 'a wrong method' 'Allow:'
same 'an unknown model' 404 --data '{"model":"none","prompt":"x"}' BASE/api/generate
same 'no JSON' 400 --data '{' BASE/api/chat

same 'a stream' 200 --data "$(ask_for 16)" BASE/api/generate
has_header 'a stream' 'Transfer-Encoding: chunked'
[ "$(wc -l <"$work/tunnel.body")" -eq 17 ] || fail 'a stream: wanted 17 lines:' "$(cat "$work/tunnel.body")"

# From the first byte to the last, in milliseconds.
spread() {
    fetch --output /dev/null --write-out '%{time_starttransfer} %{time_total}\n' --data "$(ask_for 16)" \
        "$1/api/generate" | awk '{ printf "%d\n", ($2 - $1) * 1000 }'
}
want=$(spread "$direct")
got=$(spread "$tunnel")
[ "$got" -ge $((want / 2)) ] || fail "a stream arrives in a lump: over $got ms, directly over $want ms"
ok "a stream arrives as it is made: over $got ms, directly over $want ms"

same 'a stream under HTTP/1.0' 200 --http1.0 --data "$(ask_for 4)" BASE/api/generate
! grep -qi '^Transfer-Encoding' "$work/tunnel.headers" || fail 'a stream under HTTP/1.0: it is chunked'
same 'GET / under HTTP/1.0' 200 --http1.0 BASE/
same 'an SSE stream' 200 --data "{\"model\":\"$model\",\"messages\":[],\"seed\":7,\"stream\":true}" BASE/v1/chat/completions
grep -q '^data: \[DONE\]$' "$work/tunnel.body" || fail 'an SSE stream: it does not end with [DONE]'

big=$work/big
fetch --output "$big" "$direct/test/bytes?n=20000003&seed=7"
digest=$(sha256sum "$big" | cut -d ' ' -f 1)
same 'a big download' 200 'BASE/test/bytes?n=20000003&seed=7'
cmp -s "$big" "$work/tunnel.body" || fail 'a big download: other bytes'
for expect in '100-continue' ''; do
    for coding in '' 'chunked'; do
        what="a big upload, Expect: ${expect:-nothing}, ${coding:-with its length}"
        # curl leaves out a header that is given without a value.
        same "$what" 200 --header "Expect: $expect" --header "Transfer-Encoding: $coding" --data-binary "@$big" \
            --header 'Content-Type: application/octet-stream' BASE/test/sha256
        grep -q "\"$digest\"" "$work/tunnel.body" || fail "$what: wanted $digest, got:" "$(cat "$work/tunnel.body")"
        [ -z "$expect" ] || has_header "$what" 'HTTP/1.1 100'
    done
done

ask "$tunnel" "$work/tunnel" --data-binary "@$big" "BASE/api/blobs/sha256:$digest"
grep -qE '^20[01] ' "$work/tunnel.status" || fail 'a new blob:' "$(cat "$work/tunnel.status" "$work/tunnel.error")"
same 'a blob that is there' 200 --head "BASE/api/blobs/sha256:$digest"
same 'a blob that is not' 404 --head "BASE/api/blobs/sha256:${digest//[0-9]/0}"
# curl stops to send when the early answer comes; whether it also calls that an error is a race it has with itself.
for name in "sha256:$digest 200" 'sha256:x 400'; do
    what="an upload nobody needs (${name##* })"
    for expect in '100-continue' ''; do
        ask "$tunnel" "$work/tunnel" --header "Expect: $expect" --data-binary "@$big" "BASE/api/blobs/${name% *}"
        grep -q "^${name##* } " "$work/tunnel.status" \
            || fail "$what:" "$(cat "$work/tunnel.status" "$work/tunnel.error")"
        has_header "$what" 'Connection: close'
        ok "$what, Expect: ${expect:-nothing}"
    done
done

connects=$(fetch --output /dev/null --output /dev/null --write-out '%{num_connects} ' \
    --data "$(ask_for 2)" "$tunnel/api/generate" "$tunnel/api/generate")
[ "$connects" = '1 0 ' ] || fail "a connection is kept after a stream: wanted one connect, got '$connects'"
ok 'a connection is kept after a stream'

started=$(counter started)
cancelled=$(counter cancelled)
# head ends after three lines, and the next write ends curl.
fetch --data "$(ask_for -1)" "$tunnel/api/generate" 2>/dev/null | head -n 3 >/dev/null || true
deadline=$((SECONDS + 5))
until [ "$(counter cancelled)" -gt "$cancelled" ]; do
    [ "$SECONDS" -le "$deadline" ] || fail "a killed curl: no generation was cancelled: $(fetch "$direct/test/counters")"
    sleep 0.02
done
[ "$(counter started)" -eq $((started + 1)) ] || fail 'a killed curl: started more than one generation'
ok 'a killed curl cancels its generation'
