//! Bad input when enrolling or starting: each error is printed once with its cause and its cure,
//! and nothing is lost or left half done.

use std::{fs, net::SocketAddr};

use data_encoding::BASE64;
use proto::{crypto::sha256, invitation::Invitation};
use tests::{
    cli_assert::{FAILED, USAGE, assert_ok, assert_told, up_to_its_end},
    credentials::Authority,
    raw::{self, ROOT},
    state_files::{device_names, identity_file, store, stored, text},
    world::World,
};

use crate::PROGRAM;

/// A UDP port where nobody listens.
fn closed_port() -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}

#[tokio::test]
async fn an_invalid_code_is_refused_before_anything_is_sent_or_stored() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await.trim().to_owned();
    let swapped = if code.ends_with('a') { "b" } else { "a" };
    let mut newer = vec![3];
    newer.extend_from_slice(&[0; 80]);
    let check = sha256(&newer);
    newer.extend_from_slice(&check[..4]);
    let newer = format!("adit{}", data_encoding::BASE32_NOPAD.encode(&newer));
    for (what, code, says) in [
        ("nothing", String::new(), "the code is empty"),
        ("white space", " \n\t\n".to_owned(), "the code is empty"),
        ("another word", "hello".to_owned(), "this is not an invitation code"),
        ("a URL", "https://example.com/adit".to_owned(), "this is not an invitation code"),
        ("an escape sequence", "adit\u{1b}[31mred".to_owned(), "this is not an invitation code"),
        (
            "bytes that a terminal wouldn't show",
            "adit\0\0\0".to_owned(),
            "this is not an invitation code",
        ),
        ("the prefix alone", "adit".to_owned(), "the code is incomplete"),
        ("the first half", code[..code.len() / 2].to_owned(), "the code is incomplete"),
        ("all but the last letter", code[..code.len() - 1].to_owned(), "the code is incomplete"),
        (
            "a wrong letter",
            format!("{}{swapped}", &code[..code.len() - 1]),
            "the code has a typing error",
        ),
        ("twice", format!("{code}{code}"), ""),
        ("a book", "adit".repeat(50_000), "this is not an invitation code"),
        ("a code of a newer server", newer, "a newer version of aditd (format 3)"),
    ] {
        let device = world.stranger("wrong");
        let told = device.enroll(&code, &[]).await;
        assert_told(&told, USAGE, &["error: invalid code\n  Caused by: ", says]);
        assert!(!told.stderr.contains('\u{1b}'), "{what}: {:?}", told.stderr);
        assert!(!device.dir.exists(), "{what} has left something behind");
    }
    let file = world.scratch("code");
    fs::write(&file, [0xff, 0xfe, 0x00]).expect("written");
    let binary = world.stranger("wrong").enroll("", &["--code-file", text(&file)]).await;
    assert_told(
        &binary,
        USAGE,
        &["error: invalid code\n  Caused by: ", "this is not an invitation code"],
    );
    assert_ok(&world.stranger("laptop").enroll(&code, &[]).await);
}

#[tokio::test]
async fn a_code_on_the_command_line_is_refused_and_never_shown() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    let code = world.invite("laptop").await.trim().to_owned();
    let (upper, damaged) = (code.to_uppercase(), code[..code.len() - 1].to_owned());
    let (head, tail) = code.split_at(code.len() / 2);
    for words in [
        &["enroll", &code][..],
        &["enroll", &upper],
        &["enroll", &damaged],
        &["enroll", head, tail],
    ] {
        let told = device.adit(words, "").await;
        assert_told(
            &told,
            USAGE,
            &[
                "error: do not pass the code as an argument",
                "run `adit enroll` alone, and paste the code",
            ],
        );
        let told = told.stderr.to_lowercase();
        assert!(!told.contains(&code[4..40]) && !told.contains(&tail[..tail.len() - 1]), "{told}");
    }
    let as_a_file = device.adit(&["enroll", "--code-file", &code], "").await;
    assert_told(&as_a_file, USAGE, &["error: do not pass the code as an argument"]);
    assert!(!as_a_file.stderr.contains(tail), "{}", as_a_file.stderr);
    // An argument that is neither a code nor a server might be a part of a code.
    let neither = device.adit(&["enroll", "adit", tail], "").await;
    assert_told(&neither, USAGE, &["USER@HOST", "to enroll by code"]);
    assert!(!neither.stderr.contains(tail), "{}", neither.stderr);
    assert!(!device.dir.exists(), "refused before anything is made");
    assert_ok(&device.enroll(&code, &[]).await);
}

#[tokio::test]
async fn flags_for_ssh_are_refused_when_enrolling_by_code() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    let (code, file) = (world.invite("laptop").await, world.scratch("code"));
    fs::write(&file, &code).expect("written");
    for flag in [
        &["--device", "other"][..],
        &["--remote-command", "/opt/aditd"],
        &["--ssh-client", "system"],
    ] {
        let says = format!("`{}` is for enrolling over SSH", flag[0]);
        assert_told(&device.enroll(&code, flag).await, USAGE, &[&says]);
        assert_told(
            &device.enroll("", &[&["--code-file", text(&file)], flag].concat()).await,
            USAGE,
            &[&says],
        );
    }
    assert!(!device.dir.exists(), "refused before anything is made");
    assert_ok(&device.enroll("", &["--code-file", text(&file)]).await);
}

#[tokio::test]
async fn an_unreachable_server_is_reported_and_the_code_stays_valid() {
    let mut world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    world.kill_server().await;
    let device = world.stranger("laptop");
    let address = code.parse::<Invitation>().expect("a code").addresses[0].clone();
    let told = device.enroll(&code, &[]).await;
    assert_told(
        &told,
        FAILED,
        &[
            &format!("error: cannot enroll\n  Caused by: cannot reach {address}: "),
            "start it with `aditd serve`",
        ],
    );
    assert!(!identity_file(&device).exists());
    world.restart_server().await;
    assert_ok(&device.enroll(&code, &[]).await);
}

#[tokio::test]
async fn a_failed_dns_lookup_is_reported_with_the_name() {
    let world = World::start(PROGRAM).await;
    let invited = world.aditd(&["invite", "laptop", "--advertise", "no-such-host.invalid:7"]).await;
    assert_ok(&invited);
    let told = world.stranger("laptop").enroll(&invited.stdout, &[]).await;
    assert_told(
        &told,
        FAILED,
        &[
            "error: cannot enroll\n  Caused by: cannot look up `no-such-host.invalid:7`",
            "check the name",
        ],
    );
    // One unusable address among usable ones is not an error.
    let address = world.address().await.to_string();
    let both = format!("no-such-host.invalid:7,{},{address}", closed_port());
    let invited = world.aditd(&["invite", "laptop", "--advertise", &both]).await;
    assert_ok(&world.stranger("laptop").enroll(&invited.stdout, &[]).await);
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let world = World::start(PROGRAM).await;
    let mut invitation: Invitation = world.invite("laptop").await.parse().expect("a code");
    invitation.ca[0] ^= 1;
    let device = world.stranger("laptop");
    let told = device.enroll(&invitation.code(), &[]).await;
    let says = [
        "error: cannot enroll\n  Caused by: the server at that address did not make this code",
        "get a new code on the server",
    ];
    assert_told(&told, FAILED, &says);
    assert!(!identity_file(&device).exists());
    assert!(device_names(&world).await.is_empty(), "it has been told nothing");

    // An enrolled device refuses that server too, and reports it as long as it tries.
    let device = world.device("desk").await;
    let mut identity = stored(&device);
    let other = Authority::new(&world.scratch("other"));
    identity["ca"] = BASE64.encode(other.ca.certificate()).into();
    store(&device, &identity);
    let mut up = device.start(&["--hold", "0s"]).await;
    up.adit
        .says(
            "is not the one that this device enrolled with: its certificate comes from another CA",
        )
        .await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ")
            && answer.contains("comes from another CA")
            && answer.contains("--replace"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_server_that_was_set_up_anew_does_not_answer_codes_and_devices_of_the_old_one() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let code = world.invite("desk").await;
    world.kill_server().await;
    fs::rename(world.state(), world.scratch("old")).expect("moved");
    world.restart_server().await;
    let told = world.stranger("desk").enroll(&code, &[]).await;
    assert_told(
        &told,
        FAILED,
        &[
            "error: cannot enroll\n  Caused by: no answer from",
            "make a new one with `aditd invite NAME`",
        ],
    );
    // The cure in the error of an enrolled device works.
    assert_ok(&device.enroll(&world.invite("laptop").await, &["--replace"]).await);
    device.up(&[]).await;
}

#[tokio::test]
async fn a_second_process_for_one_state_is_refused_with_the_pid_of_the_first() {
    let world = World::start(PROGRAM).await;
    let told = world.aditd(&["serve", "--listen", "127.0.0.1:0"]).await;
    let pid = format!("is running already (pid {})", world.aditd.pid());
    assert_told(
        &told,
        FAILED,
        &[
            &format!("cannot serve the state in `{}`", world.state().display()),
            &pid,
            "aditd status",
        ],
    );
    let device = world.device("laptop").await;
    let first = device.up(&[]).await;
    let pid = format!("is running already (pid {})", first.adit.pid());
    assert_told(
        &up_to_its_end(&device).await,
        FAILED,
        &["cannot start the tunnel `default`", &pid, "adit status", "`adit down`"],
    );
    assert!(
        raw::exchange(first.address, ROOT).await.ends_with("Ollama is running"),
        "the first goes on"
    );
}

#[tokio::test]
async fn commands_without_a_server_or_an_enrollment_say_how_to_begin() {
    let mut world = World::start(PROGRAM).await;
    let stranger = world.stranger("laptop");
    for told in [
        up_to_its_end(&stranger).await,
        stranger.adit(&["status"], "").await,
        stranger.adit(&["status", "--json"], "").await,
    ] {
        assert_told(
            &told,
            FAILED,
            &["this device is not enrolled", "Caused by: there is no `", "aditd invite NAME"],
        );
    }
    assert!(!stranger.dir.exists());
    let device = world.device("desk").await;
    let elsewhere = device.adit(&["up", "lab"], "").await;
    assert_told(
        &elsewhere,
        FAILED,
        &[
            "not enrolled at a server `lab`: it knows `default`",
            "`adit up default`",
            "`adit enroll --name lab`",
        ],
    );
    assert_ok(&device.enroll(&world.invite("lab").await, &["--name", "lab"]).await);
    assert_told(
        &device.adit(&["status"], "").await,
        FAILED,
        &["adit is not running", "start it with `adit up default`", "`adit up --all`"],
    );
    world.kill_server().await;
    assert_told(
        &world.aditd(&["status"]).await,
        FAILED,
        &["aditd is not running on", "start it with `aditd serve --listen 127.0.0.1:"],
    );
    fs::remove_dir_all(world.state()).expect("removed");
    for command in [
        &["invite", "x"][..],
        &["device", "list"],
        &["device", "revoke", "x"],
        &["audit"],
        &["audit", "--json", "--follow"],
    ] {
        assert_told(
            &world.aditd(command).await,
            FAILED,
            &["there is no server state in", "aditd init"],
        );
    }
    assert!(!world.state().exists());
}
