//! People sign in at a real provider to enroll a device.

use serde_json::{Value, json};
use tests::{
    credentials,
    fake_clock::FakeClock,
    provider::Provider,
    raw,
    signing_in::{self, SigningIn},
    world::{Device, World},
};

use crate::PROGRAM;

/// A provider with alice, who is in `users`, and bob, who is in `admins`, and a server.
async fn start(flags: &[&str]) -> Option<(Provider, World)> {
    let provider = Provider::start().await?;
    provider.person("alice", &["users"]).await;
    provider.person("bob", &["admins"]).await;
    let world = signing_in::start(PROGRAM, &provider, flags, "").await;
    Some((provider, world))
}

/// The devices, as `aditd device list` prints them.
async fn devices(world: &World) -> Vec<Value> {
    let listed = world.aditd(&["device", "list", "--json"]).await;
    let listed: Value =
        serde_json::from_str(&listed.stdout).unwrap_or_else(|e| panic!("{e}: {listed:?}"));
    listed["devices"].as_array().expect("devices").clone()
}

/// Tries to sign in, in vain: what it says. `act` is what the person does.
async fn refused(mut signing_in: SigningIn, provider: &Provider, act: Value) -> String {
    let code = signing_in.code().await;
    let mut told = json!({ "code": code });
    told.as_object_mut().expect("an object").extend(act.as_object().expect("an object").clone());
    provider.tell("approve", told).await;
    let (status, said) = signing_in.end().await;
    assert!(!status.success(), "{said}");
    said
}

#[tokio::test]
async fn one_code_lets_people_sign_in_and_the_role_is_that_of_the_group() {
    let Some((provider, world)) = start(&[]).await else { return };
    let code = signing_in::code(&world).await;
    let listed = world.aditd(&["invite", "--list", "--json"]).await;
    assert!(
        listed.stdout.contains(r#""sso":true"#) || listed.stdout.contains(r#""sso": true"#),
        "{listed:?}"
    );
    let laptop = signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
    signing_in::enroll(&world, &provider, &code, "desktop", "bob").await;
    laptop.up(&[]).await.works().await;
    let devices = devices(&world).await;
    let told: Vec<_> = devices
        .iter()
        .map(|device| (&device["name"], &device["role"], &device["user"], &device["sso"]))
        .collect();
    let expected =
        [("desktop", "admin", "bob@example.com"), ("laptop", "infer", "alice@example.com")]
            .map(|(name, role, user)| (json!(name), json!(role), json!(user), json!(true)));
    let expected: Vec<_> = expected.iter().map(|(a, b, c, d)| (a, b, c, d)).collect();
    assert_eq!(told, expected);
    let life = devices[0]["certificate_until"].as_i64().expect("a time")
        - devices[0]["enrolled"].as_i64().expect("a time");
    assert_eq!(life, 24 * 3600, "the certificate is short");
    let enrolled = world.audit_has(2, |line| line["event"] == "enroll").await;
    assert!(
        enrolled.iter().all(|line| line["enrolled"] == "sso" && line["by"]["sso"].is_string()),
        "{enrolled:?}"
    );
    world.audit_has(1, |line| line["event"] == "request" && line["enrolled"] == "sso").await;
    let status = world.status().await;
    assert_eq!(status["oidc"]["issuer"], provider.issuer());
    let mut page = crate::readme::json::Page::read();
    page.has("aditd status", &status);
    page.objects_are_printed(crate::readme::json::By::SignIn);
    // As an ordinary code it enrolls nobody.
    let invitation = credentials::parse(&code);
    let answer = credentials::redeem(&invitation, &credentials::new_key()).await;
    assert!(format!("{answer:?}").contains("SignIn"), "{answer:?}");
    // Ended, it opens nothing.
    assert_eq!(world.aditd(&["device", "revoke", "sso"]).await.code, Some(0));
    let device = world.stranger("late");
    let late = device.enroll(&code, &["--sso", "--no-browser", "--device", "late"]).await;
    assert!(late.code != Some(0) && late.stderr.contains("aditd"), "{late:?}");
}

#[tokio::test]
async fn a_browser_of_the_device_signs_in_where_the_provider_has_no_device_grant() {
    let Some((provider, world)) = start(&[]).await else { return };
    provider.tell("settings", json!({ "deviceFlow": false, "conform": true })).await;
    let code = signing_in::code(&world).await;
    let device = world.stranger("laptop");
    let mut signing_in =
        SigningIn::begin(&world, &device, Some(&code), &["--device", "laptop"]).await;
    let page = signing_in.page().await;
    let url: String = page.clone();
    assert!(url.contains("code_challenge_method=S256") && url.contains("nonce="), "{url}");
    // Somebody else on this computer who guesses the port, but not the state.
    let port = url.split("127.0.0.1%3A").nth(1).and_then(|rest| rest.split("%2F").next());
    let port: u16 = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{url}"));
    let forged =
        raw::exchange(([127, 0, 0, 1], port).into(), "GET /?code=x&state=y HTTP/1.0\r\n\r\n").await;
    assert!(forged.starts_with("HTTP/1.1 404"), "{forged}");
    let told = provider.tell("browse", json!({ "url": url, "name": "bob" })).await;
    assert!(told["page"].as_str().is_some_and(|page| page.contains("close this page")), "{told}");
    let (status, said) = signing_in.end().await;
    assert!(status.success(), "{said}");
    // The claims were only at the userinfo endpoint.
    let devices = devices(&world).await;
    assert_eq!(
        (&devices[0]["user"], &devices[0]["role"]),
        (&"bob@example.com".into(), &"admin".into())
    );
    let denied = world.stranger("other");
    let mut signing_in =
        SigningIn::begin(&world, &denied, Some(&code), &["--device", "other"]).await;
    let page = signing_in.page().await;
    provider.tell("browse", json!({ "url": page, "name": "bob", "deny": true })).await;
    let (status, said) = signing_in.end().await;
    assert!(!status.success() && said.contains("refused at the provider"), "{said}");
}

#[tokio::test]
async fn a_sign_in_that_is_denied_late_or_without_a_role_enrolls_nobody() {
    let Some((provider, world)) = start(&[]).await else { return };
    provider.person("carol", &["others"]).await;
    let code = signing_in::code(&world).await;
    let device = world.stranger("laptop");
    let begin = || SigningIn::begin(&world, &device, Some(&code), &["--device", "laptop"]);
    let denied = refused(begin().await, &provider, json!({ "name": "alice", "deny": true })).await;
    assert!(denied.contains("refused at the provider"), "{denied}");
    let carol = refused(begin().await, &provider, json!({ "name": "carol" })).await;
    assert!(carol.contains("`roles`, below `[oidc]`"), "{carol}");
    provider.tell("settings", json!({ "deviceTtl": 6 })).await;
    let mut late = begin().await;
    late.code().await;
    let (status, late) = late.end().await;
    assert!(!status.success() && late.contains("nobody has signed in while"), "{late}");
    assert!(devices(&world).await.is_empty());
    let refused = world.audit_has(3, |line| line["event"] == "enroll_refused").await;
    assert!(refused.iter().all(|line| line["device"] == "laptop"), "{refused:?}");
    provider.tell("settings", json!({ "deviceTtl": 600 })).await;
    signing_in::enroll(&world, &provider, &code, "desktop", "alice").await;
    // A name that is taken is told before anybody signs in.
    let taken = SigningIn::begin(&world, &device, Some(&code), &["--device", "desktop"]).await;
    let (status, taken) = taken.end().await;
    assert!(!status.success() && taken.contains("the name `desktop` is not free"), "{taken}");
    assert!(
        taken.contains("again with `--device NAME`") && !taken.contains("sign in at"),
        "{taken}"
    );
    // Who is revoked here is not let in by the provider.
    assert_eq!(world.aditd(&["user", "revoke", "alice@example.com"]).await.code, Some(0));
    let revoked = {
        let signing_in = begin().await;
        self::refused(signing_in, &provider, json!({ "name": "alice" })).await
    };
    assert!(revoked.contains("alice@example.com"), "{revoked}");
}

#[tokio::test]
async fn ctrl_c_ends_a_sign_in_at_both_ends() {
    let Some((provider, world)) = start(&[]).await else { return };
    let code = signing_in::code(&world).await;
    let device = world.stranger("laptop");
    let mut signing_in =
        SigningIn::begin(&world, &device, Some(&code), &["--device", "laptop"]).await;
    let typed = signing_in.code().await;
    signing_in.adit.signal("INT");
    let (status, said) = signing_in.end().await;
    assert!(!status.success() && said.contains("interrupted"), "{said}");
    world
        .audit_has(1, |line| {
            line["event"] == "enroll_refused"
                && line["why"].as_str().is_some_and(|why| why.contains("has left"))
        })
        .await;
    // The server would notice this one while it asks for the next.
    provider.tell("approve", json!({ "code": typed, "name": "alice" })).await;
    signing_in::enroll(&world, &provider, &code, "other", "alice").await;
    let enrolled = devices(&world).await;
    assert!(enrolled.len() == 1 && enrolled[0]["name"] == "other", "{enrolled:?}");
}

#[tokio::test]
async fn keys_that_the_provider_changes_are_followed_and_a_provider_that_is_down_is_named() {
    let Some((provider, world)) = start(&[]).await else { return };
    let code = signing_in::code(&world).await;
    signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
    provider.tell("rotate", json!({})).await;
    signing_in::enroll(&world, &provider, &code, "desktop", "alice").await;
    provider.tell("down", json!({ "is": true })).await;
    let other = world.stranger("other");
    let refused = other.enroll(&code, &["--sso", "--no-browser", "--device", "other"]).await;
    assert!(
        refused.code == Some(1) && refused.stderr.contains("cannot be asked now"),
        "{refused:?}"
    );
    assert!(world.status().await["oidc"]["failing"].is_string());
    provider.tell("down", json!({ "is": false })).await;
    signing_in::enroll(&world, &provider, &code, "third", "bob").await;
    assert!(world.status().await["oidc"]["failing"].is_null());
}

#[tokio::test]
async fn the_clocks_of_the_provider_and_the_server_may_differ_by_a_minute() {
    let Some((provider, mut world)) = start(&[]).await else { return };
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    world.aditd.stop().await;
    world.restart_server_by(&clock).await;
    let code = signing_in::code(&world).await;
    let begin = |device: Device| {
        let (world, code) = (&world, &code);
        async move { SigningIn::begin(world, &device, Some(code), &["--device", "laptop"]).await }
    };
    // The provider's token is from the future, by this clock.
    clock.set_ahead(-90);
    let early = begin(world.stranger("early")).await;
    let early = refused(early, &provider, json!({ "name": "alice" })).await;
    assert!(early.contains("is from the future") && early.contains("clocks"), "{early}");
    clock.set_ahead(1200);
    let late = begin(world.stranger("late")).await;
    let late = refused(late, &provider, json!({ "name": "alice" })).await;
    assert!(late.contains("the provider's token ended"), "{late}");
    clock.set_ahead(30);
    signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
}

#[tokio::test]
async fn codes_of_both_kinds_are_told_apart() {
    let Some((_provider, world)) = start(&[]).await else { return };
    let ordinary = world.invite("laptop").await;
    let device: Device = world.stranger("laptop");
    let refused = device.enroll(&ordinary, &["--sso"]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("leave out `--sso`"), "{refused:?}");
    let named = device.enroll(&ordinary, &["--device", "x"]).await;
    assert!(named.code == Some(2) && named.stderr.contains("--device"), "{named:?}");
    assert_eq!(device.enroll(&ordinary, &[]).await.code, Some(0));
    // Without a provider there is no such code.
    let without = World::start(PROGRAM).await;
    let refused = without.aditd(&["invite", "--sso"]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("`[oidc]`"), "{refused:?}");
}
