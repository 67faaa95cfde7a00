//! Each renewal of a device that has signed in asks the provider.

use serde_json::{Value, json};
use tests::{
    provider::{self, Provider},
    raw,
    signing_in::{self, SigningIn},
    world::{SOON, Up, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

async fn start(life: &str) -> Option<(Provider, World, String)> {
    let provider = Provider::start().await?;
    provider.person("alice", &["users"]).await;
    let world = signing_in::start(PROGRAM, &provider, &["--device-life", life], "").await;
    let code = signing_in::code(&world).await;
    Some((provider, world, code))
}

async fn device(world: &World) -> Value {
    let listed = world.aditd(&["device", "list", "--json"]).await;
    let listed: Value =
        serde_json::from_str(&listed.stdout).unwrap_or_else(|e| panic!("{e}: {listed:?}"));
    listed["devices"][0].clone()
}

/// What an application gets.
async fn asked(up: &Up) -> String {
    raw::exchange(up.address, "GET /api/version HTTP/1.0\r\n\r\n").await
}

/// Asserts that the refresh token is in the register, and in no log and no backup.
async fn only_the_register_has_the_refresh_token(world: &World) {
    let register =
        rusqlite::Connection::open(world.state().join("register.sqlite")).expect("opened");
    let token = |db: &rusqlite::Connection| {
        let query = "SELECT refresh_token FROM sign_in";
        db.query_row(query, [], |row| row.get::<_, Option<String>>(0)).expect("a sign-in")
    };
    let kept = token(&register).expect("a refresh token");
    let backup = world.scratch("backup.json");
    let made = world.aditd(&["backup", backup.to_str().expect("a path")]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let made = std::fs::read(&backup).expect("read");
    let made: Value = serde_json::from_slice(&made).expect("JSON");
    let copy = made["register"].as_str().expect("the register");
    let copy = data_encoding::BASE64.decode(copy.as_bytes()).expect("base64");
    assert!(!copy.windows(kept.len()).any(|part| part == kept.as_bytes()));
    let file = world.scratch("copy.sqlite");
    std::fs::write(&file, copy).expect("written");
    assert_eq!(token(&rusqlite::Connection::open(&file).expect("opened")), None);
    let audit = world.audit(&[]).await.iter().map(Value::to_string).collect::<String>();
    assert!(!audit.contains(&kept) && !world.aditd.log().contains(&kept));
}

/// Waits until it is so.
async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let look = async {
        while !is_so().await {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(2 * SOON, look).await.expect("in time");
}

#[tokio::test]
async fn a_changed_group_changes_the_role_and_a_disabled_user_is_out_until_the_next_sign_in() {
    let Some((provider, world, code)) = start("6s").await else { return };
    let laptop = signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
    let up = laptop.up(&[]).await;
    assert_eq!(device(&world).await["role"], "infer");
    provider.person("alice", &["admins"]).await;
    until(|| async { device(&world).await["role"] == "admin" }).await;
    let changed = world.audit_has(1, |line| line["event"] == "signed_in_as").await;
    assert_eq!(
        (&changed[0]["role_before"], &changed[0]["role"]),
        (&"infer".into(), &"admin".into())
    );
    // What runs is cut when the provider says no.
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 200).await;
    provider.tell("person", json!({ "name": "alice", "disabled": true })).await;
    world.audit_has(1, |line| line["event"] == "signed_out" && line["enrolled"] == "sso").await;
    raw::read_to_end(&mut app).await;
    until(|| async { asked(&up).await.contains("adit enroll --sso") }).await;
    let answer = asked(&up).await;
    assert!(answer.starts_with("HTTP/1.1 503") || answer.starts_with("HTTP/1.0 503"), "{answer}");
    assert!(device(&world).await["signed_out"].is_i64());
    // Enabled again, the person signs in with the same key.
    provider.tell("person", json!({ "name": "alice", "disabled": false })).await;
    let before = device(&world).await;
    let mut again = SigningIn::begin(&world, &laptop, None, &[]).await;
    again.approve(&provider, "alice").await;
    let (status, said) = again.end().await;
    assert!(status.success(), "{said}");
    until(|| async { asked(&up).await.contains("200 OK") }).await;
    let after = device(&world).await;
    assert_eq!((&after["id"], &after["signed_out"]), (&before["id"], &Value::Null));
}

#[tokio::test]
async fn while_the_provider_is_down_what_runs_goes_on_until_the_certificate_ends() {
    let Some((provider, world, code)) = start("12s").await else { return };
    let laptop = signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
    only_the_register_has_the_refresh_token(&world).await;
    let up = laptop.up(&[]).await;
    provider.tell("down", json!({ "is": true })).await;
    until(|| async { world.status().await["oidc"]["failing"].is_string() }).await;
    let until_then = device(&world).await["certificate_until"].clone();
    assert!(asked(&up).await.contains("200 OK"), "the certificate is still valid");
    assert_eq!(device(&world).await["signed_out"], Value::Null);
    until(|| async { asked(&up).await.contains(" 503 ") }).await;
    assert_eq!(device(&world).await["certificate_until"], until_then, "it was not renewed");
    provider.tell("down", json!({ "is": false })).await;
    until(|| async { asked(&up).await.contains("200 OK") }).await;
    assert_ne!(device(&world).await["certificate_until"], until_then);
}

#[tokio::test]
async fn when_the_refresh_token_has_ended_every_tool_is_told_to_sign_in_again() {
    let Some((provider, world, code)) = start("6s").await else { return };
    provider.tell("settings", json!({ "refreshTtl": 1 })).await;
    let laptop = signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
    let up = laptop.up(&[]).await;
    world.audit_has(1, |line| line["event"] == "signed_out").await;
    until(|| async { asked(&up).await.contains("adit enroll --sso") }).await;
    up.end().await;
    // A new `adit up` says the same, and ends.
    let refused = laptop.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.stderr.contains("sign in again: `adit enroll --sso"), "{refused:?}");
    let log = world.aditd.log();
    assert!(!log.contains(provider::CLIENT_SECRET), "the client's secret is in the log: {log}");
}

#[tokio::test]
async fn a_mistake_of_the_owner_in_the_settings_ends_no_sign_in() {
    let Some((provider, world, code)) = start("6s").await else { return };
    let laptop = signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
    let config = std::fs::read_to_string(world.config()).expect("read");
    let other = config.replace("client_id = \"adit\"", "client_id = \"other\"");
    std::fs::write(world.config(), other).expect("written");
    assert_eq!(world.aditd(&["reload"]).await.code, Some(0));
    let up = laptop.up(&[]).await;
    until(|| async { world.status().await["oidc"]["failing"].is_string() }).await;
    assert!(asked(&up).await.contains("200 OK"), "the owner's mistake ends no sign-in");
    assert_eq!(device(&world).await["signed_out"], Value::Null);
}
