//! Containers reach the tunnel of their laptop: a bridge as Docker makes it, and a namespace on it.

use tests::systemd;

use crate::PROGRAM;

#[test]
fn containers_of_the_named_network_reach_the_tunnel_and_nobody_else() {
    let script = r#"
# A bridge, and two containers: one in its network, one that came from elsewhere.
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip address add 10.9.0.1/16 dev docker0
ip link set docker0 up
container() {
    ip netns add "$1"
    ip link add "v$1" type veth peer name eth0 netns "$1"
    ip link set "v$1" master docker0 up
    ip -n "$1" address add "$2" dev eth0
    ip -n "$1" link set eth0 up
    ip -n "$1" link set lo up
    ip -n "$1" route add default via "$3"
}
container inside 172.17.0.2/16 172.17.0.1
container outside 10.9.0.2/16 10.9.0.1

# Nothing listens where Ollama would: what the server says of that has come through the tunnel.
mkdir -p /etc/adit
echo 'upstream = "http://127.0.0.1:11500"' >/etc/adit/aditd.toml
aditd serve 2>/tmp/aditd &
until aditd status >/dev/null 2>&1; do sleep 0.1; done
aditd invite laptop 2>/dev/null | grep ^adit | adit enroll 2>/dev/null
adit up --listen docker 2>&1 | grep -o 'adit up --listen .*/16' || true
adit up --listen docker --allow-from 172.17.0.0/16 2>/tmp/adit &
until adit status --json 2>/dev/null | grep -q '"state": *"up"'; do sleep 0.1; done

ask() { curl --silent --max-time 20 --write-out '%{http_code}' --output /tmp/answer "$@"; }
at=http://172.17.0.1:11434/api/tags
echo "inside $(ip netns exec inside curl --silent --max-time 20 "$at" | grep -o 'Ollama is not running on the server')"
echo "named $(ip netns exec inside curl --silent --max-time 20 --header 'Host: host.docker.internal:11434' "$at" | grep -o 'Ollama is not running on the server')"
echo "rebound $(ip netns exec inside curl --silent --max-time 20 --output /dev/null --write-out '%{http_code}' --header 'Host: evil.example' "$at")"
echo "outside $(ip netns exec outside curl --silent --max-time 20 --output /dev/null --write-out '%{http_code}' "$at" || true)"
echo "told $(grep -c 'refused a connection from 10.9.0.2' /tmp/adit)"
echo "cure $(grep -o -e '--allow-from 172.17.0.0/16,10.9.0.0/16' /tmp/adit)"
echo "root $(ask "$at")"
echo "another user $(cd /tmp && setpriv --reuid=nobody --regid=nogroup --clear-groups curl --silent --max-time 20 --output /dev/null --write-out '%{http_code}' "$at")"
adit down --now
"#;
    let Some((said, ended)) = systemd::run(PROGRAM, &[], script) else { return };
    assert!(ended, "{said}");
    for line in [
        "adit up --listen docker --allow-from 172.17.0.0/16",
        "inside Ollama is not running on the server",
        "named Ollama is not running on the server",
        "rebound 403",
        "outside 000",
        "told 1",
        "cure --allow-from 172.17.0.0/16,10.9.0.0/16",
        "root 502",
        "another user 403",
    ] {
        assert!(said.lines().any(|said| said == line), "`{line}` is missing:\n{said}");
    }
}
