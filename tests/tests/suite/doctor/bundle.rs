//! The file for a bug report.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::Value;
use tests::{
    cli_assert::{USAGE, assert_told},
    state_files::identity_file,
    world::World,
};

use crate::PROGRAM;

#[tokio::test]
async fn a_bundle_is_for_its_owner_holds_no_secret_and_overwrites_nothing() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let _up = device.up(&[]).await;
    let file = world.scratch("bundle.json");
    let name = file.to_str().expect("a path");
    let written = device.adit(&["doctor", "--bundle", name], "").await;
    assert!(written.stdout.starts_with("This laptop\n"), "{written:?}");
    assert!(
        written
            .stderr
            .contains(&format!("Wrote `{name}`, for you alone (mode 600). It holds:\n  report ")),
        "{written:?}"
    );
    let mode = fs::metadata(&file).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let text = fs::read_to_string(&file).expect("text");
    let bundle: Value = serde_json::from_str(&text).expect("JSON");
    for part in bundle["contents"].as_object().expect("a list").keys() {
        assert!(bundle[part].is_object() && written.stderr.contains(part), "{part}: {written:?}");
    }
    assert_eq!(bundle["status"]["tunnel"]["state"], "up");
    let identity: Value =
        serde_json::from_slice(&fs::read(identity_file(&device)).expect("read")).expect("JSON");
    let mut secrets = vec!["PRIVATE KEY".to_owned()];
    for key in ["door_key", "certificate", "ca"] {
        secrets.push(identity[key].as_str().expect("text").to_owned());
    }
    for secret in secrets {
        assert!(!text.contains(&secret), "{secret} in {text}");
    }

    let before = fs::read(&file).expect("read");
    let refused = device.adit(&["doctor", "--bundle", name], "").await;
    assert_told(&refused, USAGE, &["there is a file", "--bundle '"]);
    assert_eq!(fs::read(&file).expect("read"), before);
    let of_server = world.scratch("server.json");
    let said =
        world.aditd(&["doctor", "--json", "--bundle", of_server.to_str().expect("a path")]).await;
    let report: Value = serde_json::from_str(&said.stdout).expect("JSON alone");
    let bundle: Value = serde_json::from_slice(&fs::read(&of_server).expect("read")).expect("JSON");
    assert_eq!(bundle["report"], report);
}
