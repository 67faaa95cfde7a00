//! Invalid configurations and command lines: they are refused before anything is created, with the
//! correct form.

use std::{fs, path::Path};

use tests::{
    cli_assert::{USAGE, assert_ok, assert_told, assert_usage},
    process::Ended,
    skip,
    state_files::text,
    world::World,
};

use crate::PROGRAM;

#[tokio::test]
async fn an_invalid_configuration_is_refused_with_the_line_in_the_file() {
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
        ("\n\nlisten = [", "line 3"),
        ("allow_from = ['10.0.0.0/99']", "line 1"),
        ("upstream = 'http://10.0.0.1:11434'", "`10.0.0.1:11434` is not a loopback address"),
        ("upstream = 'ftp://127.0.0.1:1'", "is not an upstream"),
        ("upstream = 11434", "line 1"),
        ("authorize = 'http://10.0.0.1/check'", "aditd speaks to services on its own machine only"),
        ("authorize = 'https://auth.lan:8443/check'", "authorize_allow = [\"auth.lan:8443\"]"),
        (
            "authorize = 'https://a.lan/x'\nauthorize_allow = ['b.lan:443']",
            "authorize_allow = [\"a.lan:443\"]",
        ),
        ("authorize_headers = ['Cookie']", "`authorize_headers` is set, but `authorize` is not"),
        ("authorize = 'unix:/x'\nauthorize_headers = ['Host']", "`Host` is not a header field"),
        ("authorize = 'unix:/x'\nauthorize_recheck = '0s'", "from 1s to 1d"),
        ("max_in_flight = 0", "expected a whole number above zero"),
        ("max_in_flight = 'many'", "expected a whole number above zero"),
        ("max_queue = -1", "expected a whole number, zero or above"),
        ("\nadvertise = ['nonsense']", "line 2"),
        ("listen = ['nonsense']", "`nonsense` is not an address to listen on"),
        ("listen = ['gpu.lan:1']", "`gpu.lan:1` is not an address to listen on"),
        ("advertise = ['nowhere']", "`nowhere` can't be advertised"),
        ("device_life = 'a while'", "`a while` is not a valid certificate lifetime"),
        ("device_life = '0s'", "is not a valid certificate lifetime"),
        ("idle_timeout = '1s'", "`1s` is not a valid idle time-out: choose between 20s and 7d"),
    ] {
        fs::write(&file, what).expect("written");
        let told = serve().await;
        assert_told(&told, USAGE, &[&says_file, says, "hint: correct line "]);
        assert!(!told.stderr.contains("the settings here are"), "{}", told.stderr);
    }
    fs::write(&file, "listen = '127.0.0.1:1'").expect("written");
    let in_brackets = "hint: write line 1 as `listen = ['127.0.0.1:1']`";
    assert_told(&serve().await, USAGE, &[&says_file, "expected a list in brackets", in_brackets]);
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
async fn reload_reads_the_servers_own_file_and_names_it() {
    let mut world = World::start(PROGRAM).await;
    let own = world.config();
    let (state, other) = (world.state(), world.scratch("b.toml"));
    let run =
        async |args: &[&str]| world.programs.run("aditd", args, "").await.expect("aditd runs");
    let again = format!("`{}` has been read again and is in force.", own.display());
    // An empty variable names no file.
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
    // From another file only the state directory is used, even if the rest of it is wrong.
    for text in ["", "nonsense = 1", "listen = ["] {
        fs::write(&other, format!("state_dir = '{}'\n{text}", state.display())).expect("written");
        let told = run(&["reload", "--config", self::text(&other)]).await;
        let says =
            format!("the server's configuration is `{}`, not `{}`", own.display(), other.display());
        assert_told(&told, USAGE, &["the settings have not changed", &says]);
    }
    world.aditd.says("the settings have not changed").await;
}

#[tokio::test]
async fn reload_is_refused_by_a_server_without_a_file() {
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
            "the settings have not changed",
            "aditd was started without a configuration file",
            "--config FILE",
        ],
    );
    bare.says("the settings have not changed").await;
}

#[tokio::test]
async fn an_invalid_command_line_is_refused_with_the_correct_form() {
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
        (&["serve", "--upstream", "https://127.0.0.1"], "is not an upstream"),
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
        (&["up", "--listen", "nonsense"][..], "write it as localhost:PORT"),
        (&["up", "--hold", "long"], "'long' for '--hold"),
        (&["up", "--drain", "x"], "write a length of time: 30s, 30m, 2h or 1d"),
        (&["up", "../x"], "a name has 1 to 63"),
        (&["enroll", "--name", "a/b"], "a name has 1 to 63"),
        (&["enroll", "--force"], "'--force'"),
        (&["dwon"], "'dwon'"),
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
    assert_told(&ended, USAGE, &["`nonsense` is not an address to listen on"]);
    for ttl in ["0s", "8d"] {
        assert_told(
            &run("aditd", &["invite", "laptop", "--ttl", ttl]).await,
            USAGE,
            &["from one second to seven days", "`--ttl 1h`"],
        );
    }
    for wrong in ["localhost", "127.0.0.1:http", "1.2.3"] {
        let says = format!("`{wrong}` is not an address to listen on");
        assert_told(&run("aditd", &["serve", "--listen", wrong]).await, USAGE, &[&says, "IP:PORT"]);
    }
    assert!(!state.exists(), "refused before anything is made");
}
