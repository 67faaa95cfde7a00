//! A device's key in a PKCS#11 token: it is made there and stays there, its PIN is tried once, and what
//! can go wrong with a token is said with its cure.

use serde_json::Value;
use tests::{
    cli_assert::{assert_ok, assert_told, up_to_its_end},
    laptop::Laptop,
    ollama::Options,
    soft_token::{PIN, SoftTokens},
    sshd::Sshd,
    state_files::{chmod, devices, identity_file, store, stored},
    terminal::Terminal,
    world::{Device, SOON, World},
};

use crate::PROGRAM;

/// A world, tokens with one called `work`, and a device that has them.
async fn with_token(flags: &[&str]) -> Option<(World, SoftTokens, Device)> {
    let world = World::start_with(PROGRAM, Options::default(), flags).await;
    let tokens = SoftTokens::start(world.scratch("tokens"), "work")?;
    let device = tokens.plugged_into(world.stranger("laptop"));
    Some((world, tokens, device))
}

async fn enrolled(world: &World, device: &Device, uri: &str) {
    let code = world.invite("laptop").await;
    assert_ok(&device.enroll(&code, &["--key", uri]).await);
}

#[tokio::test]
async fn a_key_is_made_in_the_token_and_the_tunnel_and_renewals_work_with_it() {
    let Some((mut world, tokens, device)) = with_token(&["--device-life", "6s"]).await else {
        return;
    };
    let code = world.invite("laptop").await;
    let enrolled = device.enroll(&code, &["--key", &tokens.uri("work")]).await;
    assert_ok(&enrolled);
    let says = "This device's key is in the token `work`, as `adit-default`.";
    assert!(enrolled.stderr.contains(says), "{}", enrolled.stderr);
    let text = std::fs::read_to_string(identity_file(&device)).expect("a profile");
    assert!(!text.contains("PRIVATE KEY") && !text.contains(PIN), "{text}");
    assert_eq!(stored(&device)["schema"], 3, "older versions say that they are too old");
    let keys = tokens.tool("work", &["--list-objects", "--type", "privkey"]);
    assert!(keys.contains("adit-default") && keys.contains("never extractable"), "{keys}");

    let mut up = device.up(&[]).await;
    up.adit.says("certificate renewed").await;
    let status = device.status().await;
    assert_eq!(status["key_storage"], "pkcs11");
    assert_eq!(status["key"], "in the token `work`, as `adit-default`");
    // Another handshake with the same session at the token.
    world.kill_server().await;
    world.restart_server().await;
    tests::raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    up.works().await;

    // Root of the machine could not copy it either: the same profile without the token is useless.
    let Some(other) = SoftTokens::start(world.scratch("other"), "other") else { return };
    let without = other.plugged_into(world.stranger("copy"));
    std::fs::create_dir_all(&without.dir).expect("a directory");
    let mut copy = std::process::Command::new("cp");
    let copied = copy.arg("-a").arg(device.dir.join("servers")).arg(&without.dir).status();
    assert!(copied.expect("cp runs").success());
    chmod(&without.dir, 0o700);
    let copy = without.start(&[]).await;
    let state = status_without_token(&world, "copy").await;
    assert!(state["tunnel"]["why"].as_str().expect("why").contains("the token `work`"), "{state}");
    copy.end().await;
}

/// The status of a device, once it has no tunnel because of its token.
async fn status_without_token(world: &World, name: &str) -> Value {
    let device = world.stranger(name);
    let wait = async {
        loop {
            let status = device.status().await;
            let why = status["tunnel"]["why"].as_str().unwrap_or_default();
            if why.contains("token") {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("it says why")
}

#[tokio::test]
async fn a_wrong_pin_in_a_file_is_tried_once_whatever_runs() {
    let Some((world, tokens, device)) = with_token(&[]).await else { return };
    let (uri, device) = tokens.spied("work", device);
    let code = world.invite("laptop").await;
    tokens.write_pin("11112222");
    let wrong = device.enroll(&code, &["--key", &uri]).await;
    let file = tokens.pin_file().display().to_string();
    assert_told(&wrong, 1, &["the PIN in", &file, "is wrong", "write the right PIN into"]);
    assert_eq!(tokens.calls("C_Login"), 1);
    let again = device.enroll(&code, &["--key", &uri]).await;
    assert_told(&again, 1, &["has refused the PIN in", "is not tried again", "touch"]);
    assert_eq!(tokens.calls("C_Login"), 1, "not even by another process");

    tokens.write_pin(PIN);
    assert_ok(&device.enroll(&code, &["--key", &uri]).await);
    device.up(&[]).await.works().await;

    // The PIN of the token was changed: the tunnel ends, and a service manager that starts it again and
    // again locks nothing.
    tokens.write_pin("11112222");
    let before = tokens.calls("C_Login");
    for _ in 0..3 {
        let ended = up_to_its_end(&device).await;
        assert_told(&ended, 1, &["PIN"]);
    }
    let doctor = device.adit(&["doctor"], "").await;
    assert!(doctor.stdout.contains("has refused the PIN in"), "{}", doctor.stdout);
    assert_eq!(tokens.calls("C_Login"), before + 1);
    tokens.write_pin(PIN);
    device.up(&[]).await.works().await;
    assert!(!device.dir.join("refused-pins.json").exists(), "nothing is left of it");
}

#[tokio::test]
async fn a_library_that_hangs_is_told_and_stops_nothing() {
    let Some((world, tokens, device)) = with_token(&[]).await else { return };
    let (uri, device) = tokens.spied("work", device);
    enrolled(&world, &device, &uri).await;
    tokens.hang_spied();

    let (_, other) = tokens.spied("work", tokens.plugged_into(world.stranger("other")));
    let code = world.invite("other").await;
    let says = ["the token `work` gave no answer within", "take the token out", "pkcs11-tool"];
    let tunnel = async {
        let mut up = device.start(&[]).await;
        assert_eq!(device.status().await["tunnel"]["state"], "down", "it answers meanwhile");
        up.adit.says(says[0]).await;
        let status = device.status().await;
        let hint = status["tunnel"]["hint"].as_str().expect("a hint");
        assert!(hint.contains(says[1]) && hint.contains(says[2]), "{status}");
        assert_ok(&device.adit(&["down"], "").await);
        up.adit.ended().await.expect("it ends");
    };
    let doctor = async {
        let doctor = other.adit(&["doctor"], "").await;
        assert!(!doctor.stdout.contains(says[0]), "it has no key yet: {}", doctor.stdout);
        let doctor = device.adit(&["doctor"], "").await;
        assert!(doctor.stdout.contains(says[0]), "{}", doctor.stdout);
    };
    let enrolling = async {
        assert_told(&other.enroll(&code, &["--key", &uri]).await, 1, &says);
    };
    tokio::join!(tunnel, enrolling, doctor);

    let mut up = device.start(&[]).await;
    tokens.go_on_spied();
    up.adit.ready().await.expect("it comes up by itself");
    up.works().await;
}

#[tokio::test]
async fn a_tunnel_waits_for_a_token_that_is_not_plugged_in() {
    let Some((mut world, tokens, device)) = with_token(&[]).await else { return };
    enrolled(&world, &device, &tokens.uri("work")).await;
    tokens.plug(false);
    let mut up = device.start(&[]).await;
    up.adit.says("the token `work` is not there").await;
    let status = device.status().await;
    assert_eq!(status["tunnel"]["state"], "down");
    assert!(status["tunnel"]["hint"].as_str().expect("a hint").contains("plug it in"), "{status}");
    let doctor = device.adit(&["doctor"], "").await;
    assert!(doctor.stdout.contains("the token `work` is not there"), "{}", doctor.stdout);
    tokens.plug(true);
    up.adit.ready().await.expect("it comes up by itself");

    // Taken out while the tunnel is up, which needs it only for the next connection.
    tokens.plug(false);
    tests::raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    world.kill_server().await;
    world.restart_server().await;
    let state = status_without_token(&world, "laptop").await;
    assert_eq!(state["tunnel"]["why"], "the token `work` is not there");
    tokens.plug(true);
    tests::raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    up.works().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_said_with_a_cure() {
    let Some((world, tokens, device)) = with_token(&[]).await else { return };
    tokens.add("other");
    let copyable = ["--keypairgen", "--key-type", "EC:prime256v1", "--label", "soft"];
    tokens.tool("work", &[&copyable[..], &["--extractable"]].concat());
    let rsa = ["--keypairgen", "--key-type", "RSA:2048", "--label", "rsa"];
    tokens.tool("work", &rsa);
    let p384 = ["--keypairgen", "--key-type", "EC:secp384r1", "--label", "big"];
    tokens.tool("work", &p384);
    let code = world.invite("laptop").await;
    let uri =
        |token: &str, object: &str| tokens.uri(token).replace('?', &format!(";object={object}?"));
    for (key, code_of_exit, says) in [
        (
            tokens.uri("lost"),
            1,
            &["the token `lost` is not there", "plug it in", "`work`", "`other`"][..],
        ),
        (
            tokens.uri("work").replace("token=work", ""),
            1,
            &["several tokens are meant", "token=LABEL"],
        ),
        (uri("work", "soft"), 1, &["can be copied out of it", "object=LABEL"]),
        (uri("work", "big"), 1, &["no public key of P-256", "object=LABEL"]),
        (
            "pkcs11:token=work?module-path=/nowhere/x.so".to_owned(),
            1,
            &["cannot load the library `/nowhere/x.so`", "ls /nowhere/x.so"],
        ),
        (
            "pkcs11:token=work?module-path=/etc/passwd".to_owned(),
            1,
            &["cannot load the library `/etc/passwd`"],
        ),
        (tokens.uri_without_pin("work"), 1, &["needs its PIN", "pin-source=file:/PATH"]),
    ] {
        let refused = device.enroll(&code, &["--key", &key]).await;
        assert_told(&refused, code_of_exit, says);
    }
    for (key, says) in [
        (format!("pkcs11:token=work?pin-value={PIN}"), "other users can see it"),
        (format!("pkcs11:token=work;pin-value={PIN}"), "other users can see it"),
        (PIN.to_owned(), "neither `file`, nor `tpm`"),
        ("pkcs11:tokn=x".to_owned(), "`tokn` is not an attribute"),
    ] {
        let refused = device.enroll(&code, &["--key", &key]).await;
        assert_told(&refused, 2, &[says]);
        assert!(!refused.stderr.contains(PIN), "{}", refused.stderr);
    }
    chmod(&tokens.pin_file(), 0o644);
    let refused = device.enroll(&code, &["--key", &tokens.uri("work")]).await;
    assert_told(&refused, 1, &["can be read by other users", "chmod 600"]);
    chmod(&tokens.pin_file(), 0o600);

    // The code is still good, and after the key is deleted from the token, that is said.
    assert_ok(&device.enroll(&code, &["--key", &tokens.uri("work")]).await);
    for kind in ["privkey", "pubkey"] {
        tokens.tool("work", &["--delete-object", "--type", kind, "--label", "adit-default"]);
    }
    let ended = up_to_its_end(&device).await;
    assert_told(&ended, 1, &["it has no key `adit-default`", "adit enroll --replace"]);
    // Another key with that label is not this device.
    let other = ["--keypairgen", "--key-type", "EC:prime256v1", "--label", "adit-default"];
    tokens.tool("work", &other);
    let ended = up_to_its_end(&device).await;
    assert_told(&ended, 1, &["is not the one with which this device enrolled"]);
}

#[tokio::test]
async fn a_new_enrollment_keeps_the_key_where_it_is_and_forgetting_says_what_stays() {
    let Some((world, tokens, device)) = with_token(&[]).await else { return };
    enrolled(&world, &device, &tokens.uri("work")).await;
    let first = stored(&device)["hardware_key"].clone();
    let code = world.invite("second").await;
    assert_ok(&device.enroll(&code, &["--replace"]).await);
    assert_eq!(stored(&device)["hardware_key"], first, "also without `--key`");
    device.up(&[]).await.works().await;
    let code = world.invite("third").await;
    assert_ok(&device.enroll(&code, &["--replace", "--key", "file"]).await);
    assert!(stored(&device)["private_key"].is_string() && stored(&device)["schema"] == 2);
    device.up(&[]).await.works().await;
    let code = world.invite("fourth").await;
    assert_ok(&device.enroll(&code, &["--replace", "--key", &tokens.uri("work")]).await);
    assert_eq!(stored(&device)["hardware_key"], first);
    device.up(&[]).await.works().await;
    assert_eq!(devices(&world).await.len(), 4);

    let forgot = device.adit(&["forget", "default", "--yes"], "").await;
    assert_ok(&forgot);
    let says = "The key `adit-default` stays in the token `work`";
    assert!(forgot.stderr.contains(says), "{}", forgot.stderr);
    let keys = tokens.tool("work", &["--list-objects", "--type", "privkey"]);
    assert!(keys.contains("adit-default"), "{keys}");
}

#[tokio::test]
async fn a_pin_that_no_file_has_is_asked_for_at_the_terminal() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, tokens, device)) = with_token(&[]).await else { return };
    let code = world.invite("laptop").await;
    let file = world.scratch("code");
    std::fs::write(&file, code).expect("written");
    let (file, uri) = (file.to_str().expect("a path"), tokens.uri_without_pin("work"));
    let enroll = device.command(&["enroll", "--code-file", file, "--key", &uri]);

    let mut terminal = Terminal::run(&enroll);
    terminal.shows("PIN of the token `work`: ").await;
    terminal.types("11112222").await;
    assert_eq!(terminal.ended().await, Some(1));
    assert!(terminal.screen().contains("the PIN is wrong"), "{}", terminal.screen());
    // Somebody is there, and types nothing.
    let mut terminal = Terminal::run(&enroll);
    terminal.shows("PIN of the token `work`: ").await;
    terminal.types("").await;
    assert_eq!(terminal.ended().await, Some(1));
    let screen = terminal.screen();
    assert!(screen.contains("no PIN was typed for the token `work`"), "{screen}");
    assert!(!screen.contains("nobody is there"), "{screen}");

    let mut terminal = Terminal::run(&enroll);
    terminal.shows("PIN of the token `work`: ").await;
    terminal.types(PIN).await;
    assert_eq!(terminal.ended().await, Some(0), "{}", terminal.screen());
    let screen = terminal.screen();
    assert!(screen.contains("Enrolled as laptop") && !screen.contains(PIN), "{screen}");
    assert_eq!(screen.matches("PIN of the token").count(), 1, "{screen}");

    let mut terminal = Terminal::run(&device.command(&["up", "--listen", "127.0.0.1:0"]));
    terminal.shows("PIN of the token `work`: ").await;
    terminal.types(PIN).await;
    terminal.shows("ready: Ollama on").await;
    // Without a terminal nobody is asked, and it is said what to do.
    assert_ok(&device.adit(&["down"], "").await);
    assert_eq!(terminal.ended().await, Some(0), "{}", terminal.screen());
    let alone = up_to_its_end(&device).await;
    assert_told(&alone, 1, &["needs its PIN", "pin-source=file:/PATH"]);
}

#[tokio::test]
async fn an_interrupt_at_the_question_for_a_pin_restores_the_terminal() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, tokens, device)) = with_token(&[]).await else { return };
    let file = world.scratch("code");
    std::fs::write(&file, world.invite("laptop").await).expect("written");
    let (file, uri) = (file.to_str().expect("a path"), tokens.uri_without_pin("work"));
    let by_code = ["enroll", "--code-file", file, "--key", &uri];
    let by_ssh = ["enroll", "ssh://nobody@127.0.0.1:1", "--device", "laptop", "--key", &uri];
    for enroll in [&by_code[..], &by_ssh] {
        let mut terminal = Terminal::run_and_show_settings(&device.command(enroll));
        terminal.shows("PIN of the token `work`: ").await;
        terminal.interrupts().await;
        terminal.ended().await;
        let screen = terminal.screen();
        assert!(screen.contains("interrupted") && screen.contains(" echo "), "{screen}");
    }
}

#[tokio::test]
async fn a_device_that_is_let_in_again_asks_for_the_pin_and_not_for_another_enrollment() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, tokens, device)) = with_token(&[]).await else { return };
    enrolled(&world, &device, &tokens.uri("work")).await;
    let mut up = device.up(&[]).await;
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    up.adit.says("no tunnel:").await;
    up.end().await;
    assert_ok(&world.aditd(&["device", "restore", "laptop"]).await);
    let mut profile = stored(&device);
    assert_eq!(profile["revoked"], true);
    let uri = profile["hardware_key"]["uri"].as_str().expect("a URI").to_owned();
    let without_pin = uri.split("&pin-source").next().expect("the rest").to_owned();
    assert_ne!(uri, without_pin);
    profile["hardware_key"]["uri"] = without_pin.into();
    store(&device, &profile);

    let mut terminal = Terminal::run(&device.command(&["up", "--listen", "127.0.0.1:0"]));
    terminal.shows("PIN of the token `work`: ").await;
    terminal.types(PIN).await;
    terminal.shows("ready: Ollama on").await;
}

/// Waits for the line in the log of `adit up` that says why its certificate is not renewed.
async fn says_no_renewal(device: &Device) {
    let mut up = device.start(&[]).await;
    up.adit.says("its role wants a key in hardware").await;
    up.end().await;
}

#[tokio::test]
async fn a_role_that_wants_hardware_enrolls_and_renews_no_key_in_a_file() {
    let config = "[roles.models]\nhardware_key = true\n";
    let flags = ["--device-life", "6s"];
    let world = World::start_configured(PROGRAM, Options::default(), &flags, config).await;
    let Some(tokens) = SoftTokens::start(world.scratch("tokens"), "work") else { return };
    let device = tokens.plugged_into(world.stranger("laptop"));
    let code = world.invite_as("laptop", "models").await;
    let refused = device.enroll(&code, &[]).await;
    let says = ["the role `models` must keep their key in hardware", "--key 'pkcs11:token=LABEL'"];
    assert_told(&refused, 4, &says);
    assert!(devices(&world).await.is_empty(), "nothing is left of it");
    assert_ok(&device.enroll(&code, &["--key", &tokens.uri("work")]).await);
    let shown = world.aditd(&["device", "show", "laptop"]).await;
    assert!(shown.stdout.contains("in a PKCS#11 token, as the device says"), "{}", shown.stdout);
    assert_eq!(devices(&world).await[0]["key_storage"], "pkcs11");
    let mut up = device.up(&[]).await;
    up.adit.says("certificate renewed").await;
    up.works().await;

    // A device that enrolled before the role wanted it, or had another role then.
    let before = world.device_as("before", "infer").await;
    assert_ok(&world.aditd(&["device", "role", "before", "models"]).await);
    says_no_renewal(&before).await;
    let list = world.aditd(&["device", "list"]).await.stdout;
    assert!(list.contains("file") && list.contains("pkcs11"), "{list}");
    assert_ok(&world.aditd(&["device", "role", "before", "infer"]).await);
    let mut up = before.up(&[]).await;
    up.adit.says("certificate renewed").await;
    up.works().await;
}

#[tokio::test]
async fn a_role_that_wants_hardware_says_so_over_ssh_too() {
    if Sshd::is_missing() {
        return;
    }
    let config = "[roles.infer]\nhardware_key = true\n";
    let world = World::start_configured(PROGRAM, Options::default(), &[], config).await;
    let Some(tokens) = SoftTokens::start(world.scratch("tokens"), "work") else { return };
    let mut laptop = Laptop::new(&world).await;
    laptop.environment.push(tokens.variable());
    let says = ["the role `infer` must keep their key in hardware", "--key 'pkcs11:token=LABEL'"];
    assert_told(&laptop.enroll(&world, &[]).await, 4, &says);
    let up = laptop.adit(&world, &["up", &laptop.sshd.url, "--device", "other"]).await;
    assert_told(&up, 4, &[says[0], "adit enroll --key tpm --device other"]);
    assert!(devices(&world).await.is_empty(), "nothing is left of it");

    laptop.enrolled(&world, &["--key", &tokens.uri("work")]).await;
    let first = stored(&laptop.device)["hardware_key"].clone();
    assert!(first["uri"].as_str().expect("a URI").starts_with("pkcs11:"), "{first}");
    assert_eq!(devices(&world).await[0]["key_storage"], "pkcs11");
    laptop.enrolled(&world, &[]).await;
    assert_eq!(stored(&laptop.device)["hardware_key"], first, "it stays there");
}
