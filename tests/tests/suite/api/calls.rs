//! Each call of the API.

use std::collections::BTreeSet;

use tests::{
    provider::Provider,
    raw, signing_in,
    world::{SOON, World},
};
use tokio::io::AsyncWriteExt;

use super::{call, done};
use crate::PROGRAM;

const PAGE: &str = include_str!("../../../../docs/api.md");

#[tokio::test]
async fn the_page_of_the_api_has_each_call_and_no_other() {
    let world = World::start(PROGRAM).await;
    let index = done(&world, "GET", "/v1", "").await;
    let calls = index["calls"].as_array().expect("a list").iter().map(|call| {
        format!(
            "{} {}",
            call["method"].as_str().expect("text"),
            call["path"].as_str().expect("text")
        )
    });
    let calls: BTreeSet<String> = calls.collect();
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let methods = ["GET ", "POST ", "DELETE "];
    let rows = rows.filter(|row| methods.iter().any(|method| row.starts_with(method)));
    let rows: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert_eq!(calls, rows);
}

#[tokio::test]
async fn a_code_that_opens_sign_ins_is_made_listed_and_withdrawn() {
    let Some(provider) = Provider::start().await else { return };
    provider.person("alice", &["users"]).await;
    let world = signing_in::start(PROGRAM, &provider, &[], "").await;
    let (path, day) = ("/v1/invitations", r#"{"sso":true,"ttl_seconds":86400}"#);
    let made = done(&world, "POST", path, day).await;
    assert_eq!((&made["device"], &made["sso"]), (&"sso".into(), &true.into()), "{made}");
    assert!(made["role"].is_null(), "the provider says that: {made}");
    let code = made["code"].as_str().expect("a code");
    let laptop = signing_in::enroll(&world, &provider, code, "laptop", "alice").await;
    laptop.up(&[]).await.works().await;
    let open = done(&world, "GET", path, "").await;
    assert_eq!(open["invitations"][0]["sso"], true, "it is for many devices: {open}");
    let years = r#"{"sso":true,"ttl_seconds":63072000}"#;
    assert_eq!(call(&world, "POST", path, years).await.0, 400);
    world.audit_has(1, |line| line["event"] == "invite" && line["sso"] == true).await;
    assert_eq!(done(&world, "DELETE", "/v1/invitations/sso", "").await["withdrawn"], "sso");
    let open = done(&world, "GET", path, "").await;
    assert_eq!(open["invitations"], serde_json::json!([]));
}

#[tokio::test]
async fn a_device_is_invited_shown_changed_revoked_and_restored() {
    let world = World::start(PROGRAM).await;
    let invited = done(
        &world,
        "POST",
        "/v1/invitations",
        r#"{"device":"laptop","role":"infer","ttl_seconds":600}"#,
    )
    .await;
    let open = done(&world, "GET", "/v1/invitations", "").await;
    assert_eq!(open["invitations"][0]["name"], "laptop");
    let device = world.stranger("laptop");
    let code = invited["code"].as_str().expect("a code");
    let enrolled = device.enroll(code, &[]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    let up = device.up(&[]).await;
    let listed = done(&world, "GET", "/v1/devices", "").await;
    assert_eq!(listed["devices"][0]["name"], "laptop");
    let shown = done(&world, "GET", "/v1/devices/laptop", "").await;
    assert!(shown["device"]["session"]["remote"].is_string(), "{shown}");
    let by_id = format!("/v1/devices/{}", shown["device"]["id"].as_str().expect("an id"));
    assert_eq!(done(&world, "GET", &by_id, "").await["device"]["name"], "laptop");

    let changed = done(&world, "POST", "/v1/devices/laptop/role", r#"{"role":"models"}"#).await;
    assert_eq!(changed["device"]["role"], "models");
    let changed =
        done(&world, "POST", "/v1/devices/laptop/models", r#"{"models":["stand-in"]}"#).await;
    assert_eq!(changed["device"]["models"][0], "stand-in");
    let changed = done(&world, "POST", "/v1/devices/laptop/models", r#"{"models":null}"#).await;
    assert!(changed["device"]["models"].is_null(), "{changed}");

    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 500).await;
    let running = done(&world, "GET", "/v1/requests", "").await;
    let running = &running["requests"][0];
    assert_eq!((&running["device"], &running["path"]), (&"laptop".into(), &"/api/generate".into()));
    let revoked =
        done(&world, "POST", "/v1/devices/laptop/revoke", r#"{"reason":"left the team"}"#).await;
    assert_eq!(
        (&revoked["cut"], &revoked["device"]["reason"]),
        (&1.into(), &"left the team".into())
    );
    raw::read_to_end(&mut app).await;
    world.ollama.wait_for(|now| now.running == 0, SOON).await.expect("it stops");
    let none = async {
        while done(&world, "GET", "/v1/requests", "").await["requests"] != serde_json::json!([]) {}
    };
    tokio::time::timeout(SOON, none).await.expect("nothing runs");
    assert_eq!(call(&world, "POST", "/v1/devices/laptop/revoke", "").await.0, 409);

    done(&world, "POST", "/v1/devices/laptop/restore", "").await;
    let renamed = done(&world, "POST", "/v1/devices/laptop/rename", r#"{"name":"desk"}"#).await;
    assert_eq!(renamed["device"]["name"], "desk");
    assert_eq!(call(&world, "POST", "/v1/devices/desk/confirm", "").await.0, 409);
    assert_eq!(call(&world, "DELETE", "/v1/devices/desk", "").await.0, 409);
    done(&world, "POST", "/v1/devices/desk/revoke", "").await;
    let forgotten = done(&world, "DELETE", "/v1/devices/desk", "").await;
    assert_eq!(
        (&forgotten["forgotten"], &forgotten["name_is_free"]),
        (&"desk".into(), &false.into())
    );
    let freed = done(&world, "DELETE", "/v1/devices/desk", r#"{"free_name":true}"#).await;
    assert_eq!((&freed["forgotten"], &freed["name_is_free"]), (&"desk".into(), &true.into()));
    assert_eq!(call(&world, "GET", "/v1/devices/desk", "").await.0, 404);

    done(&world, "POST", "/v1/invitations", r#"{"device":"other"}"#).await;
    done(&world, "DELETE", "/v1/invitations/other", "").await;
    assert_eq!(call(&world, "DELETE", "/v1/invitations/other", "").await.0, 404);
    let uid = nix::unistd::getuid().as_raw();
    let lines = async || {
        let audit = done(&world, "GET", "/v1/audit?last=1000&device=desk", "").await;
        audit["lines"].as_array().expect("lines").clone()
    };
    let written = async {
        while !lines().await.iter().any(|line| line["event"] == "forget" && line["uid"] == uid) {}
    };
    tokio::time::timeout(SOON, written).await.expect("the audit log says who it was");
}

#[tokio::test]
async fn a_key_is_made_changed_rotated_and_revoked() {
    let world = World::start(PROGRAM).await;
    let made = done(
        &world,
        "POST",
        "/v1/keys",
        r#"{"name":"ci","role":"infer","models":["stand-in"],"user":"ada","expires_seconds":3600}"#,
    )
    .await;
    let secret = made["secret"].as_str().expect("a secret").to_owned();
    assert!(
        made["key"]["secrets"][0]["prefix"].is_string() && made["key"]["user"] == "ada",
        "{made}"
    );
    let listed = done(&world, "GET", "/v1/keys", "").await;
    assert_eq!(listed["keys"][0]["name"], "ci");
    assert!(!listed.to_string().contains(&secret), "a secret is shown once");
    let role = done(&world, "POST", "/v1/keys/ci/role", r#"{"role":"models"}"#).await;
    assert_eq!(role["key"]["role"], "models");
    let models = done(&world, "POST", "/v1/keys/ci/models", r#"{"models":null}"#).await;
    assert!(models["key"]["models"].is_null(), "{models}");
    let rotated = done(&world, "POST", "/v1/keys/ci/rotate", r#"{"overlap_seconds":60}"#).await;
    assert_ne!(rotated["secret"], secret.as_str());
    assert_eq!(rotated["key"]["secrets"].as_array().map(Vec::len), Some(2), "{rotated}");
    done(&world, "GET", "/v1/keys/ci", "").await;
    let revoked = done(&world, "POST", "/v1/keys/ci/revoke", "").await;
    assert!(revoked["key"]["revoked"].is_number(), "{revoked}");
    assert_eq!(call(&world, "POST", "/v1/keys/ci/revoke", "").await.0, 409);
}

#[tokio::test]
async fn a_user_is_shown_and_revoked_with_what_belongs_to_it() {
    let world = World::start(PROGRAM).await;
    done(&world, "POST", "/v1/keys", r#"{"name":"ci","user":"ada"}"#).await;
    done(&world, "POST", "/v1/invitations", r#"{"device":"laptop","user":"ada"}"#).await;
    let users = done(&world, "GET", "/v1/users", "").await;
    assert_eq!(users["users"][0]["name"], "ada", "{users}");
    let role = done(&world, "POST", "/v1/users/ada/role", r#"{"role":"models"}"#).await;
    assert_eq!(role["user"]["keys"][0]["role"], "models", "{role}");
    let revoked = done(&world, "POST", "/v1/users/ada/revoke", r#"{"reason":"left"}"#).await;
    assert_eq!(
        (&revoked["user"]["reason"], &revoked["user"]["invitations"]),
        (&"left".into(), &serde_json::json!([]))
    );
    assert_eq!(call(&world, "POST", "/v1/users/ada/revoke", "").await.0, 409);
    done(&world, "POST", "/v1/users/ada/restore", "").await;
    assert!(done(&world, "GET", "/v1/users/ada", "").await["user"]["revoked"].is_null());
    assert_eq!(call(&world, "GET", "/v1/users/nobody", "").await.0, 404);
}

#[tokio::test]
async fn the_server_is_shown_and_reads_its_configuration_again() {
    let world =
        World::start_configured(PROGRAM, tests::ollama::Options::default(), &[], "max_queue = 7")
            .await;
    let status = done(&world, "GET", "/v1/status", "").await;
    assert!(status["pid"].is_number() && status["queue"]["max_queue"] == 7, "{status}");
    let config = "[roles.tags]\nallow = ['GET /api/tags']";
    std::fs::write(world.config(), config).expect("written");
    done(&world, "POST", "/v1/reload", "").await;
    let roles = done(&world, "GET", "/v1/roles", "").await;
    assert!(roles["roles"].as_array().expect("a list").contains(&"tags".into()), "{roles}");
    std::fs::write(world.config(), "[roles.tags]\nallow = 7").expect("written");
    let (status, error) = call(&world, "POST", "/v1/reload", "").await;
    assert_eq!(status, 400, "{error}");
}

#[tokio::test]
async fn bad_input_gets_an_error_that_says_what_is_wrong() {
    let world = World::start(PROGRAM).await;
    let long = format!(r#"{{"device":"{}"}}"#, "x".repeat(100_000));
    for (method, path, body, expected) in [
        ("GET", "/", "", 404),
        ("GET", "/v2/devices", "", 404),
        ("PUT", "/v1/devices", "", 405),
        ("GET", "/v1/devices/nobody", "", 404),
        ("POST", "/v1/devices/nobody/revoke", "", 404),
        ("POST", "/v1/invitations", "", 400),
        ("POST", "/v1/invitations", "{", 400),
        ("POST", "/v1/invitations", r#"{"device":"a b"}"#, 400),
        ("POST", "/v1/invitations", r#"{"device":"x","rolle":"infer"}"#, 400),
        ("POST", "/v1/invitations", r#"{"device":"x","role":"nobody"}"#, 400),
        ("POST", "/v1/invitations", r#"{"device":"x","ttl_seconds":0}"#, 400),
        ("POST", "/v1/invitations", r#"{"sso":true}"#, 409),
        ("POST", "/v1/invitations", r#"{"sso":true,"role":"infer"}"#, 400),
        ("POST", "/v1/invitations", &long, 413),
        ("POST", "/v1/keys", r#"{"name":"x","expires_seconds":0}"#, 400),
        ("POST", "/v1/keys/nobody/rotate", "", 404),
        ("GET", "/v1/audit?last=x", "", 400),
    ] {
        let (status, answer) = call(&world, method, path, body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert!(answer["error"]["what"].as_str().is_some_and(|what| !what.is_empty()), "{answer}");
    }
    done(&world, "GET", "/v1/status", "").await;
}

#[tokio::test]
async fn a_certificate_authority_is_rotated_and_ended() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let (status, none) = call(&world, "POST", "/v1/ca/retire", "").await;
    assert_eq!(status, 409, "{none}");
    let first = done(&world, "GET", "/v1/ca", "").await;
    assert_eq!((&first["cas"][0]["state"], &first["up_to_date"]), (&"current".into(), &1.into()));
    let rotated = done(&world, "POST", "/v1/ca/rotate", "").await;
    assert_eq!(rotated["ca"], 2);
    let status = done(&world, "GET", "/v1/ca", "").await;
    assert_eq!(status["cas"][1]["sha256"], rotated["sha256"]);
    assert_eq!(status["behind"][0]["name"], "laptop");
    let (code, refused) = call(&world, "POST", "/v1/ca/retire", "{}").await;
    assert_eq!(code, 409, "{refused}");
    let ended = done(&world, "POST", "/v1/ca/retire", r#"{"force":true}"#).await;
    assert_eq!(ended["retired"], serde_json::json!([1]));
    assert_eq!(ended["behind"][0]["name"], "laptop");
    device.up(&[]).await.works().await;
}
