//! Tokens of a real provider in place of keys, and in a tunnel.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{
    cli_assert::assert_ok, fake_clock::FakeClock, ollama::Options, provider::Provider, world::SOON,
};

use tokio::io::AsyncReadExt;

use super::{Got, Https, address, endless::Endless};

const ROLES: &str = r#"roles = { admins = "admin", users = "infer" }"#;

/// A provider with alice, who is in the group `users`, and a server that accepts its tokens.
async fn start(more: &str) -> Option<(Provider, Https)> {
    let provider = Provider::start().await?;
    provider.person("alice", &["users"]).await;
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let https = Https::start(options, &config(&provider, more)).await;
    Some((provider, https))
}

fn config(provider: &Provider, more: &str) -> String {
    let issuer = provider.issuer();
    format!("[jwt]\nissuer = \"{issuer}\"\naudience = \"adit\"\nuser_claim = \"email\"\n{more}\n")
}

/// The error of an answer.
fn error(got: &Got) -> String {
    let body: Value = serde_json::from_str(&got.body).unwrap_or_else(|_| panic!("{got:?}"));
    body["error"].as_str().unwrap_or_default().to_owned()
}

const DELETE: [&str; 4] = ["--request", "DELETE", "--data", r#"{"model":"stand-in:latest"}"#];

#[tokio::test]
async fn a_person_with_a_token_has_the_role_of_the_group_and_the_audit_log_names_the_person() {
    let Some((provider, https)) = start(ROLES).await else { return };
    let token = provider.token("alice", "adit").await;
    for header in ["Authorization: Bearer ", "X-Api-Key: "] {
        let got = https.curl("/api/tags", &["--header", &format!("{header}{token}")]).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
    let denied = https.with_key(&token, "/api/delete", &DELETE).await;
    assert_eq!(denied.status, 403, "{denied:?}");
    assert!(error(&denied).contains("`roles` below `[jwt]`"), "{denied:?}");
    // In another group now: the next token says so.
    provider.person("alice", &["others", "admins"]).await;
    let promoted = provider.token("alice", "adit").await;
    assert_eq!(https.with_key(&promoted, "/api/delete", &DELETE).await.status, 404);
    assert_eq!(https.with_key(&token, "/api/delete", &DELETE).await.status, 403);
    provider.person("alice", &["others"]).await;
    let without = provider.token("alice", "adit").await;
    let refused = https.with_key(&without, "/api/tags", &[]).await;
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(error(&refused).contains("names no group"), "{refused:?}");
    let lines = https.world.audit_has(5, |line| line["event"] == "request").await;
    assert_eq!(
        (&lines[0]["user"], &lines[0]["token"], &lines[0]["role"], &lines[0]["carrier"]),
        (&"alice@example.com".into(), &true.into(), &"infer".into(), &"https".into())
    );
    assert_eq!(
        (&lines[3]["role"], &lines[3]["device_id"]),
        (&"admin".into(), &lines[0]["device_id"])
    );
    https.world.audit_has(1, |line| line["event"] == "token_refused").await;
    let text = https.world.audit(&[]).await.iter().map(Value::to_string).collect::<String>();
    assert!(!text.contains(&token) && !https.world.aditd.log().contains(&token));
    let status = https.world.status().await;
    assert_eq!(status["https"]["callers"][0]["user"], "alice@example.com", "{status}");
    assert_eq!(status["jwt"]["issuer"], provider.issuer(), "{status}");
    let mut page = crate::readme::json::Page::read();
    page.has("aditd status", &status);
    page.objects_are_printed(crate::readme::json::By::Tokens);
}

#[tokio::test]
async fn a_token_that_does_not_count_is_told_why_and_forged_ones_are_limited() {
    let Some((provider, https)) = start("").await else { return };
    let token = provider.token("alice", "adit").await;
    let other = provider.token("alice", "other").await;
    let refused = https.with_key(&other, "/api/tags", &[]).await;
    assert_eq!(refused.status, 401, "{refused:?}");
    assert!(refused.headers.contains("error=\"invalid_token\""), "{refused:?}");
    assert!(error(&refused).contains("is not for `adit`"), "{refused:?}");
    // Whoever has an account at the provider guesses nothing.
    for _ in 0..12 {
        assert_eq!(https.with_key(&other, "/api/tags", &[]).await.status, 401);
    }
    assert_eq!(https.with_key(&token, "/api/tags", &[]).await.status, 200);
    let (rest, _) = token.rsplit_once('.').expect("three parts");
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.";
    for forged in [format!("{rest}.{}", "A".repeat(86)), unsigned.to_owned()] {
        let refused = https.with_key(&forged, "/api/tags", &[]).await;
        assert_eq!(refused.status, 401, "{refused:?}");
    }
    let mut last = 0;
    for _ in 0..12 {
        last = https.with_key(unsigned, "/api/tags", &[]).await.status;
    }
    assert_eq!(last, 429, "an address may guess ten times");
    assert_eq!(https.with_key(&token, "/api/tags", &[]).await.status, 200, "alice is known there");
}

#[tokio::test]
async fn keys_that_the_provider_changes_are_followed_and_kept_while_it_is_down() {
    let Some((provider, https)) = start("").await else { return };
    let old = provider.token("alice", "adit").await;
    assert_eq!(https.with_key(&old, "/api/tags", &[]).await.status, 200);
    provider.tell("rotate", json!({})).await;
    let new = provider.token("alice", "adit").await;
    let got = https.with_key(&new, "/api/tags", &[]).await;
    assert_eq!(got.status, 200, "the first request waits for the new keys: {got:?}");
    let withdrawn = https.with_key(&old, "/api/tags", &[]).await;
    assert_eq!(withdrawn.status, 401, "{withdrawn:?}");
    provider.tell("rotate", json!({})).await;
    let newest = provider.token("alice", "adit").await;
    provider.tell("down", json!({ "is": true })).await;
    assert_eq!(https.with_key(&new, "/api/tags", &[]).await.status, 200, "the last keys stay");
    let unknown = https.with_key(&newest, "/api/tags", &[]).await;
    assert_eq!(unknown.status, 503, "{unknown:?}");
    assert!(error(&unknown).contains("cannot be checked now"), "{unknown:?}");
    assert!(https.world.status().await["jwt"]["failing"].is_string());
    provider.tell("down", json!({ "is": false })).await;
    assert_eq!(https.with_key(&newest, "/api/tags", &[]).await.status, 200);
    assert!(https.world.status().await["jwt"]["failing"].is_null());
}

#[tokio::test]
async fn the_end_of_a_token_cuts_what_runs_and_clocks_may_differ_by_a_minute() {
    let Some((provider, mut https)) = start("").await else { return };
    let Some(clock) = FakeClock::new(&https.world.scratch("")) else { return };
    provider.tell("person", json!({ "name": "alice", "ttl": 60 })).await;
    https.world.aditd.stop().await;
    https.world.restart_server_by(&clock).await;
    https.address = address(&https.world).await;
    let token = provider.token("alice", "adit").await;
    clock.set_ahead(90);
    // Within a minute after its end.
    let running = Endless::begun(&https, &token).await;
    clock.set_ahead(300);
    running.was_cut().await;
    let late = https.with_key(&token, "/api/tags", &[]).await;
    assert_eq!(late.status, 401, "{late:?}");
    assert!(error(&late).contains("get a new one"), "{late:?}");
}

#[tokio::test]
async fn settings_that_are_read_again_hold_for_answers_that_run() {
    let Some((provider, https)) = start(ROLES).await else { return };
    let token = provider.token("alice", "adit").await;
    let running = Endless::begun(&https, &token).await;
    let roles = r#"roles = { admins = "admin" }"#;
    std::fs::write(https.world.config(), config(&provider, roles)).expect("written");
    assert_ok(&https.world.aditd(&["reload"]).await);
    running.was_cut().await;
    https
        .world
        .ollama
        .wait_for(|c| c.cancelled == 1 && c.running == 0, SOON)
        .await
        .expect("the service stops");
    assert_eq!(https.with_key(&token, "/api/tags", &[]).await.status, 403);
    std::fs::write(https.world.config(), "").expect("written");
    assert_ok(&https.world.aditd(&["reload"]).await);
    assert_eq!(https.with_key(&token, "/api/tags", &[]).await.status, 401);
    for (wrong, says) in [
        (config(&provider, r#"roles = { users = "boss" }"#), "no role `boss`"),
        ("[jwt]\nissuer = \"http://example.com\"\naudience = \"a\"\n".to_owned(), "https://"),
    ] {
        std::fs::write(https.world.config(), wrong).expect("written");
        let refused = https.world.aditd(&["reload"]).await;
        assert!(refused.code == Some(2) && refused.stderr.contains(says), "{}", refused.stderr);
    }
}

#[tokio::test]
async fn a_revoked_user_is_out_in_the_middle_of_an_answer_until_restored() {
    let Some((provider, https)) = start("").await else { return };
    let token = provider.token("alice", "adit").await;
    let running = Endless::begun(&https, &token).await;
    let revoke = ["user", "revoke", "alice@example.com", "--reason", "left the team"];
    assert_ok(&https.world.aditd(&revoke).await);
    running.was_cut().await;
    let newer = provider.token("alice", "adit").await;
    for token in [&token, &newer] {
        let refused = https.with_key(token, "/api/tags", &[]).await;
        assert_eq!(refused.status, 401, "{refused:?}");
        assert!(error(&refused).contains("left the team"), "{refused:?}");
    }
    assert_ok(&https.world.aditd(&["user", "restore", "alice@example.com"]).await);
    assert_eq!(https.with_key(&token, "/api/tags", &[]).await.status, 200);
    let unknown = https.world.aditd(&["user", "revoke", "not a name"]).await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("no user"), "{}", unknown.stderr);
}

#[tokio::test]
async fn in_a_tunnel_a_token_narrows_what_a_device_may_if_the_owner_wants_it() {
    let Some((provider, https)) = start(&format!("{ROLES}\ntunnel = true")).await else { return };
    let world = &https.world;
    let (device, admin) =
        (world.device_as("laptop", "infer").await, world.device_as("desk", "admin").await);
    let (laptop, desk) = (device.up(&[]).await, admin.up(&[]).await);
    let ask = async |url: String, key: &str, args: &[&str]| -> u16 {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--noproxy", "*", "--max-time", "120", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code}"]).args(args);
        curl.arg("--header").arg(format!("Authorization: Bearer {key}")).arg(url);
        let out = curl.output().await.expect("curl runs");
        String::from_utf8_lossy(&out.stdout).parse().unwrap_or(0)
    };
    let missing = ["--request", "DELETE", "--data", r#"{"model":"missing"}"#];
    let user = provider.token("alice", "adit").await;
    provider.person("alice", &["admins"]).await;
    let boss = provider.token("alice", "adit").await;
    let other = provider.token("alice", "other").await;
    for (up, key, tags, delete) in [
        (&desk, "ollama", 200, 404),
        (&desk, &*boss, 200, 404),
        (&desk, &*user, 200, 403),
        (&desk, &*other, 401, 401),
        (&laptop, "ollama", 200, 403),
        (&laptop, &*boss, 200, 403),
        (&laptop, &*user, 200, 403),
    ] {
        assert_eq!(ask(up.url("/api/tags"), key, &[]).await, tags, "{key}");
        assert_eq!(ask(up.url("/api/delete"), key, &missing).await, delete, "{key}");
    }
    std::fs::write(world.config(), config(&provider, ROLES)).expect("written");
    assert_ok(&world.aditd(&["reload"]).await);
    assert_eq!(ask(desk.url("/api/tags"), &other, &[]).await, 200, "tokens mean nothing there now");
}

#[tokio::test]
async fn a_person_with_a_token_may_use_the_services_that_the_role_names() {
    let service = tests::raw::Upstream::start().await;
    let more = format!(
        "roles = {{ admins = \"admin\", users = \"vllm\" }}\n[roles.vllm]\nallow = [\"GET /*\"]\nservices = [\"vllm\"]\n\
         [services.vllm]\nupstream = \"{}\"",
        service.flag("openai")
    );
    let Some((provider, https)) = start(&more).await else { return };
    let token = provider.token("alice", "adit").await;
    let denied = https.with_key(&token, "/api/tags", &[]).await;
    assert_eq!(denied.status, 403, "{denied:?}");
    assert!(error(&denied).contains("may not use the service `ollama`"), "{denied:?}");
    let answered = async {
        let mut tcp = service.accept().await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.expect("a byte"));
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        tokio::io::AsyncWriteExt::write_all(&mut tcp, answer).await.expect("sent");
        String::from_utf8(head).expect("text")
    };
    let asked = https.with_key(&token, "/services/vllm/v1/models", &[]);
    let (got, head) = tokio::join!(asked, answered);
    assert_eq!((got.status, got.body.as_str()), (200, "{}"), "{got:?}");
    assert!(!head.contains(&token), "{head}");
}
