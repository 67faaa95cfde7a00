//! A package for Debian as its scripts make it: installed, started, upgraded, removed and purged.

use std::process::Command;

use tests::{skip, systemd};

use super::units::{SERVER, SYSUSERS};
use crate::PROGRAM;

const POSTINST: &str = include_str!("../../../../server/packaging/debian/postinst");
const PRERM: &str = include_str!("../../../../server/packaging/debian/prerm");
const POSTRM: &str = include_str!("../../../../server/packaging/debian/postrm");
const MANIFEST: &str = include_str!("../../../../server/Cargo.toml");

/// What cargo-deb makes of the manifest, with the program of the tests.
const SCRIPT: &str = r#"
build() {
    dir=/tmp/package-$1
    mkdir -p "$dir/usr/bin" "$dir/DEBIAN"
    strip -o "$dir/usr/bin/aditd" /usr/local/bin/aditd
    chmod 755 "$dir/usr/bin/aditd"
    install -D -m 644 /given/aditd.service "$dir/usr/lib/systemd/system/aditd.service"
    install -D -m 644 /given/sysusers.conf "$dir/usr/lib/sysusers.d/aditd.conf"
    install -m 755 /given/postinst /given/prerm /given/postrm "$dir/DEBIAN"
    printf 'Package: aditd\nVersion: %s\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n' \
        "$1" >"$dir/DEBIAN/control"
    dpkg-deb -Znone --root-owner-group --build "$dir" "/tmp/$1.deb" >/dev/null
    rm -r "$dir"
}
of_unit() {
    systemctl show --property="$1" --value aditd
}
build 1.0-1
build 1.0-2
# The package's program is the only one.
umount /usr/local/bin/aditd
rm /usr/local/bin/aditd

dpkg --install /tmp/1.0-1.deb >/dev/null
echo "installed: $(systemctl is-active aditd) $(systemctl is-enabled aditd)"
first=$(of_unit MainPID) since=$(of_unit ActiveEnterTimestampMonotonic)
echo "user $(stat --format=%U /proc/$first)"
aditd invite laptop >/dev/null && echo "invited"

dpkg --install /tmp/1.0-2.deb >/dev/null
tries=0
until [ "$(of_unit MainPID)" != "$first" ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
[ "$(of_unit ActiveEnterTimestampMonotonic)" = "$since" ] && echo "upgraded: replaced, not restarted"
echo "upgraded: $(systemctl is-active aditd), restarts $(of_unit NRestarts)"
aditd status >/dev/null && echo "upgraded: it answers"

dpkg --remove aditd >/dev/null 2>&1
echo "removed: $(systemctl is-active aditd)"
[ -e /var/lib/adit/ca.key ] && echo "removed: the keys are there"
dpkg --purge aditd >/dev/null
[ -e /var/lib/adit ] || echo "purged: nothing is there"
[ -e /usr/bin/aditd ] || echo "purged: nor the program"
"#;

#[test]
fn a_package_starts_the_server_and_an_upgrade_replaces_it_and_a_purge_leaves_nothing() {
    // The script puts the files where the manifest does.
    for asset in [
        r#"["target/release/aditd", "usr/bin/", "755"]"#,
        r#"["packaging/aditd.service", "usr/lib/systemd/system/", "644"]"#,
        r#"["packaging/sysusers.conf", "usr/lib/sysusers.d/aditd.conf", "644"]"#,
    ] {
        assert!(MANIFEST.contains(asset), "{asset}");
    }
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !has("dpkg-deb") || !has("strip") {
        skip::skip_test("there is no dpkg, or no strip");
        return;
    }
    let files = [
        ("aditd.service", SERVER),
        ("sysusers.conf", SYSUSERS),
        ("postinst", POSTINST),
        ("prerm", PRERM),
        ("postrm", POSTRM),
    ];
    let Some((said, ended)) = systemd::run(PROGRAM, &files, SCRIPT) else { return };
    assert!(ended, "{said}");
    for line in [
        "installed: active enabled",
        "user aditd",
        "invited",
        "upgraded: replaced, not restarted",
        "upgraded: active, restarts 0",
        "upgraded: it answers",
        "removed: inactive",
        "removed: the keys are there",
        "purged: nothing is there",
        "purged: nor the program",
    ] {
        assert!(said.lines().any(|said| said == line), "`{line}` is missing:\n{said}");
    }
}
