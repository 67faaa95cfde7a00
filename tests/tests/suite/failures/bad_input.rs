//! What goes wrong on the way in: each is told once, with its cause and its cure, and nothing is
//! lost or half done by it.

use std::{fs, net::SocketAddr, path::Path};

use data_encoding::BASE64;
use proto::{crypto::sha256, invitation::Invitation};
use tests::{
    cli_assert::{FAILED, USAGE, assert_ok, assert_told, assert_usage, up_to_its_end},
    credentials::Authority,
    process::Ended,
    raw::{self, ROOT},
    skip,
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
async fn a_code_that_is_none_is_told_before_anything_is_sent_or_stored() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await.trim().to_owned();
    let swapped = if code.ends_with('a') { "b" } else { "a" };
    let mut newer = vec![2];
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
        ("a code of a newer server", newer, "a newer version of aditd (format 2)"),
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
    // What is neither a code nor a server might be a part of one.
    let neither = device.adit(&["enroll", "adit", tail], "").await;
    assert_told(&neither, USAGE, &["USER@HOST", "to enroll by code"]);
    assert!(!neither.stderr.contains(tail), "{}", neither.stderr);
    assert!(!device.dir.exists(), "refused before anything is made");
    assert_ok(&device.enroll(&code, &[]).await);
}

#[tokio::test]
async fn flags_that_mean_nothing_without_ssh_are_refused_where_a_code_enrolls() {
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
async fn a_server_that_is_not_there_is_told_and_the_code_stays_good() {
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
            "check on the server that aditd runs",
        ],
    );
    assert!(!identity_file(&device).exists());
    world.restart_server().await;
    assert_ok(&device.enroll(&code, &[]).await);
}

#[tokio::test]
async fn an_address_that_cannot_be_looked_up_is_told_by_its_name() {
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
    // One bad address among good ones is no error.
    let address = world.address().await.to_string();
    let both = format!("no-such-host.invalid:7,{},{address}", closed_port());
    let invited = world.aditd(&["invite", "laptop", "--advertise", &both]).await;
    assert_ok(&world.stranger("laptop").enroll(&invited.stdout, &[]).await);
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_believed() {
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

    // An enrolled device does not believe it either, and says so for as long as it tries.
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
async fn a_server_that_was_set_up_anew_is_silent_to_the_codes_and_devices_of_the_old_one() {
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
    // The cure that the error of an enrolled device names works.
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
    let kill = format!("`kill {}`", first.adit.pid());
    assert_told(
        &up_to_its_end(&device).await,
        FAILED,
        &["cannot start the tunnel `default`", &pid, "adit status", &kill],
    );
    assert!(
        raw::exchange(first.address, ROOT).await.ends_with("Ollama is running"),
        "the first goes on"
    );
}

#[tokio::test]
async fn what_is_not_running_or_not_enrolled_is_told_with_how_to_begin() {
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
        &["adit is not running", "start it with `adit up`"],
    );
    world.kill_server().await;
    assert_told(
        &world.aditd(&["status"]).await,
        FAILED,
        &["aditd is not running on", "start it with `aditd serve`"],
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

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_the_place_in_the_file() {
    let world = World::start(PROGRAM).await;
    let file = world.scratch("aditd.toml");
    let state = world.scratch("unmade");
    let serve = async || {
        let args = ["serve", "--config", text(&file), "--state-dir", text(&state)];
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    let missing = serve().await;
    assert_told(
        &missing,
        USAGE,
        &["error: cannot read the configuration `", "Caused by: No such file", "--config"],
    );
    let says_file =
        format!("error: the configuration `{}` is wrong\n  Caused by: ", file.display());
    for (what, says, keys) in [
        (
            "listen_on = '127.0.0.1:1'",
            "unknown field `listen_on`\n",
            "the settings here are `state_dir`, `listen`, `allow_from`, `upstream`, ",
        ),
        (
            "\n[limits]\nrate = 1",
            "unknown field `rate`\n",
            "the settings here are `requests_per_minute`, `burst`, `at_once`, ",
        ),
        (
            "[devices.laptop]\nallow = []",
            "unknown field `allow`\n",
            "the settings here are `models` or `limits`",
        ),
    ] {
        fs::write(&file, what).expect("written");
        assert_told(&serve().await, USAGE, &[&says_file, says, keys]);
    }
    for (what, says) in [
        ("listen = '127.0.0.1:1'", "line 1"),
        ("\n\nlisten = [", "line 3"),
        ("allow_from = ['10.0.0.0/99']", "line 1"),
        ("upstream = 'http://10.0.0.1:11434'", "`10.0.0.1:11434` is not a loopback address"),
        ("upstream = 'ftp://127.0.0.1:1'", "is no upstream"),
        ("upstream = 11434", "line 1"),
        ("authorize = 'http://10.0.0.1/check'", "aditd speaks to services on its own machine only"),
        ("max_in_flight = 0", "expected a whole number above zero"),
        ("max_in_flight = 'many'", "expected a whole number above zero"),
        ("max_queue = -1", "expected a whole number, zero or above"),
        ("\nadvertise = ['nonsense']", "line 2"),
        ("listen = ['nonsense']", "`nonsense` is no address to listen on"),
        ("listen = ['gpu.lan:1']", "`gpu.lan:1` is no address to listen on"),
        ("advertise = ['nowhere']", "`nowhere` can't be advertised"),
        ("device_life = 'a while'", "`a while` is no life for a certificate"),
        ("device_life = '0s'", "is no life for a certificate"),
        ("idle_timeout = '1s'", "`1s` is no idle time-out: choose between 20s and 7days"),
    ] {
        fs::write(&file, what).expect("written");
        let told = serve().await;
        assert_told(&told, USAGE, &[&says_file, says, "hint: correct line "]);
        assert!(!told.stderr.contains("the settings here are"), "{}", told.stderr);
    }
    fs::write(&file, "listen = ['0.0.0.0:0']").expect("written");
    assert_told(&serve().await, USAGE, &["refusing to listen on 0.0.0.0:0"]);
    fs::write(&file, format!("advertise = [{}]", "'a:1',".repeat(9))).expect("written");
    let many = serve().await;
    assert_eq!(many.code, Some(USAGE));
    assert!(many.stderr.contains("9 addresses are advertised, at most 8 fit"), "{}", many.stderr);
    fs::write(&file, [0xff, 0xfe]).expect("written");
    assert_told(&serve().await, USAGE, &["cannot read the configuration"]);
    assert!(!state.exists(), "refused before anything is made");
}

#[tokio::test]
async fn a_server_reads_its_own_file_again_and_says_which_and_no_other() {
    let mut world = World::start(PROGRAM).await;
    let own = world.config();
    let (state, other) = (world.state(), world.scratch("b.toml"));
    let run =
        async |args: &[&str]| world.programs.run("aditd", args, "").await.expect("aditd runs");
    let again = format!("`{}` has been read again and is in force.", own.display());
    // A variable that is set to nothing names no file.
    let mut command = world.programs.command("aditd", &["reload", "--state-dir", text(&state)]);
    let reloaded = command
        .env("ADITD_CONFIG", "")
        .env("ADITD_STATE_DIR", "")
        .output()
        .await
        .expect("aditd runs")
        .into();
    assert_ok(&reloaded);
    for args in [
        &["reload", "--state-dir", text(&state)][..],
        &["reload", "--state-dir", text(&state), "--config", text(&own)],
    ] {
        let reloaded = run(args).await;
        assert_ok(&reloaded);
        assert!(reloaded.stderr.contains(&again), "{}", reloaded.stderr);
    }
    // Another file tells where the state is, and nothing else, however wrong it is.
    for text in ["", "nonsense = 1", "listen = ["] {
        fs::write(&other, format!("state_dir = '{}'\n{text}", state.display())).expect("written");
        let told = run(&["reload", "--config", self::text(&other)]).await;
        let says =
            format!("the server's configuration is `{}`, not `{}`", own.display(), other.display());
        assert_told(&told, USAGE, &["the settings stay as they were", &says]);
    }
    world.aditd.says("the settings stay as they were").await;
}

#[tokio::test]
async fn a_server_without_a_file_has_nothing_to_read_again() {
    if Path::new("/etc/adit/aditd.toml").exists() && skip::skip_test("every server here has a file")
    {
        return;
    }
    let world = World::start(PROGRAM).await;
    let state = world.scratch("bare");
    let mut bare = world
        .programs
        .start("aditd", &["serve", "--listen", "127.0.0.1:0", "--state-dir", text(&state)])
        .expect("aditd");
    bare.ready().await.expect("aditd is ready");
    let told = world
        .programs
        .run("aditd", &["reload", "--state-dir", text(&state)], "")
        .await
        .expect("aditd runs");
    assert_told(
        &told,
        USAGE,
        &[
            "the settings stay as they were",
            "aditd was started without a configuration file",
            "--config FILE",
        ],
    );
    bare.says("the settings stay as they were").await;
}

#[tokio::test]
async fn a_command_line_that_is_wrong_is_refused_with_what_would_be_right() {
    let world = World::start(PROGRAM).await;
    let state = world.scratch("unmade");
    let run = async |program: &str, args: &[&str]| {
        let args = [args, &["--state-dir", text(&state)]].concat();
        world.programs.run(program, &args, "").await.expect("it runs")
    };
    for (args, says) in [
        (&["serve", "--upstream", "http://10.0.0.1:11434"][..], "not a loopback address"),
        (&["serve", "--upstream", "0.0.0.0:11434"], "not a loopback address"),
        (&["serve", "--upstream", "gpu.lan:11434"], "not a loopback address"),
        (&["serve", "--upstream", "https://127.0.0.1"], "is no upstream"),
        (&["serve", "--allow-from", "everybody"], "'everybody' for '--allow-from"),
        (&["serve", "--lisen", "127.0.0.1:0"], "'--lisen'"),
        (&["serve", "now"], "'now'"),
        (&["inivte", "laptop"], "'inivte'"),
        (&["invite"], "<DEVICE>"),
        (&["invite", "../laptop"], "a name has 1 to 63"),
        (&["invite", "lap top"], "a name has 1 to 63"),
        (&["invite", "laptop", "--ttl", "soon"], "'soon' for '--ttl"),
        (&["audit", "--since", "yesterday"], "write a length of time: 30s, 30m, 2h or 1d"),
        (&["serve", "--device-life", "x"], "write a length of time: 30s, 30m, 2h or 1d"),
        (&["serve", "--idle-timeout", "x"], "write a length of time: 30s, 30m, 2h or 1d"),
        (&["device", "delete", "laptop"], "'delete'"),
    ] {
        assert_usage(&run("aditd", args).await, &[says]);
    }
    for (args, says) in [
        (&["up", "--listen", "0.0.0.0:11434"][..], "adit listens on loopback only"),
        (&["up", "--listen", "192.168.1.7:1"], "adit listens on loopback only"),
        (&["up", "--listen", "nonsense"], "write it as localhost:PORT"),
        (&["up", "--hold", "long"], "'long' for '--hold"),
        (&["up", "--drain", "x"], "write a length of time: 30s, 30m, 2h or 1d"),
        (&["up", "../x"], "a name has 1 to 63"),
        (&["enroll", "--name", "a/b"], "a name has 1 to 63"),
        (&["enroll", "--force"], "'--force'"),
        (&["down"], "'down'"),
    ] {
        assert_usage(&run("adit", args).await, &[says]);
    }
    let mut command = world.programs.command("aditd", &["serve", "--listen", "nonsense"]);
    for name in [
        "ADITD_STATE_DIR",
        "ADITD_CONFIG",
        "ADITD_IDLE_TIMEOUT",
        "ADITD_ALLOW_FROM",
        "ADITD_TCP_RELAY",
        "ADITD_UPSTREAM",
    ] {
        command.env(name, "");
    }
    let ended: Ended = command.output().await.expect("aditd runs").into();
    assert_told(&ended, USAGE, &["`nonsense` is no address to listen on"]);
    for ttl in ["0s", "8d"] {
        assert_told(
            &run("aditd", &["invite", "laptop", "--ttl", ttl]).await,
            USAGE,
            &["from one second to seven days", "`--ttl 1h`"],
        );
    }
    for wrong in ["localhost", "127.0.0.1:http", "1.2.3"] {
        let says = format!("`{wrong}` is no address to listen on");
        assert_told(&run("aditd", &["serve", "--listen", wrong]).await, USAGE, &[&says, "IP:PORT"]);
    }
    assert!(!state.exists(), "refused before anything is made");
}
