//! Members of `enroll_group` whose own `aditd` does not know where the server has its socket, because
//! the server has another configuration.

use std::path::{Path, PathBuf};

use common::machine::report::Exit;
use tests::{
    credentials::new_key,
    ollama::Options,
    over_ssh::{OverSsh, request},
    process::Process,
    skip,
    state_files::{chmod, text},
    unprivileged::Ordinary,
    world::World,
};

use crate::PROGRAM;

/// A member of the group of `nobody`, and nobody else.
const MEMBER: u32 = 54_322;

/// A directory that everybody may enter, with a configuration in it; and where that puts the socket.
fn configuration(home: &Path) -> (PathBuf, PathBuf) {
    chmod(home, 0o711);
    let (config, socket) = (home.join("own.toml"), home.join("enroll.sock"));
    let text = format!("enroll_socket = '{}'\nlisten = ['127.0.0.1:0']", socket.display());
    std::fs::write(&config, text).expect("written");
    (config, socket)
}

/// Adds a secret that only its owner may read.
fn with_a_secret(config: &Path) {
    let secret = config.with_file_name("secret");
    std::fs::write(&secret, "of the box").expect("written");
    chmod(&secret, 0o600);
    let text = std::fs::read_to_string(config).expect("read");
    let oidc = "[oidc]\nissuer = 'http://127.0.0.1:9'\nclient_id = 'adit'\nclient_secret_file =";
    std::fs::write(config, format!("{text}\n{oidc} '{}'\n", secret.display())).expect("written");
}

/// What `aditd enroll-device` says to the member.
async fn asked(ordinary: &Ordinary, device: &str, config: &Path, socket: Option<&Path>) -> OverSsh {
    let own = ordinary.command("aditd", &["enroll-device", device]);
    let mut command = tokio::process::Command::new("setpriv");
    command
        .args([format!("--reuid={MEMBER}"), format!("--regid={}", Ordinary::NOBODY)])
        .args(["--clear-groups", "--"])
        .args(own.get_args().skip_while(|arg| *arg != "--").skip(1))
        .env("ADITD_CONFIG", config)
        .envs([("ADITD_STATE_DIR", "/nowhere"), ("NO_COLOR", "1")]);
    if let Some(socket) = socket {
        command.env("ADITD_ENROLL_SOCKET", socket);
    }
    OverSsh::run(command, &request(&new_key()).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_root_is_found_and_that_of_another_user_is_named() {
    let Some(ordinary) = Ordinary::new(PROGRAM) else { return };
    if !ordinary.as_root && skip::skip_test("only root can be other users") {
        return;
    }
    let home = ordinary.home("server");
    let (config, socket) = configuration(&home);
    ordinary.give(&config);
    let group = ordinary.group();
    let state = home.join("state");
    let serve = ["--config", text(&config), "--state-dir", text(&state), "--enroll-group", &group];
    let mut command = ordinary.command("aditd", &["serve"]);
    command.args(serve);
    let mut server = Process::spawn(command.into(), "aditd").expect("it starts");
    server.ready().await.expect("it listens");
    // What the member's aditd knows leads nowhere, whatever runs on this machine.
    let members = ordinary.home("member").join("members.toml");
    chmod(members.parent().expect("a directory"), 0o711);
    let nowhere = "listen = ['127.0.0.1:9']\nenroll_socket = '/nowhere/enroll.sock'\n";
    std::fs::write(&members, nowhere).expect("written");
    let refused = asked(&ordinary, "laptop", &members, None).await;
    let what = "there is no server state in `/nowhere`";
    let choose = format!("env ADITD_ENROLL_SOCKET={} ", socket.display());
    refused.assert_failed(what, &choose, Exit::Failed);
    refused.assert_failed(what, "another user, `nobody`", Exit::Failed);
    let enrolled = asked(&ordinary, "laptop", &members, Some(&socket)).await.enrolled().await;
    assert_eq!(enrolled.device.as_str(), "laptop");
    server.kill().await;

    let of_root = tempfile::tempdir().expect("a directory");
    let (config, _) = configuration(of_root.path());
    with_a_secret(&config);
    let flags = ["--enroll-group", &group, "--config", text(&config)];
    let _world = World::start_with(PROGRAM, Options::default(), &flags).await;
    // Neither a member without this configuration needs it, nor one with it its secret.
    for (device, config) in [("desk", &members), ("shelf", &config)] {
        let enrolled = asked(&ordinary, device, config, None).await.enrolled().await;
        assert_eq!(enrolled.device.as_str(), device);
    }
}
