//! Applications reach the tunnel at a Unix socket.

use std::{
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
    process::Command,
};

use tests::{
    raw, skip,
    world::{SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::PROGRAM;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

async fn asked(path: &Path, request: &str) -> String {
    let asked = async {
        let mut app = UnixStream::connect(path).await.expect("connected");
        app.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        app.read_to_string(&mut answer).await.expect("text");
        answer
    };
    tokio::time::timeout(SOON, asked).await.expect("in time")
}

#[tokio::test]
async fn the_answers_at_a_socket_are_those_at_a_port_and_its_file_goes_with_adit() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = world.scratch("ollama.sock");
    let socket = format!("unix:{}", path.display());
    let mut up = device.up(&["--listen", &socket]).await;
    assert!(std::fs::metadata(&path).expect("there").file_type().is_socket());
    assert_eq!(mode(&path), 0o600);
    assert_eq!(device.status().await["sockets"], serde_json::json!([socket]));
    let request = raw::generate(20, 7);
    let direct = raw::exchange(world.ollama.addr(), &request).await;
    assert_eq!(raw::without_date(&asked(&path, &request).await), raw::without_date(&direct));
    // An application that goes away stops Ollama.
    let mut app = UnixStream::connect(&path).await.expect("connected");
    app.write_all(raw::generate(-1, 7).as_bytes()).await.expect("sent");
    app.read_exact(&mut [0; 300]).await.expect("begun");
    drop(app);
    world.ollama.wait_for(|now| now.cancelled == 1, SOON).await.expect("the GPU is free");
    up.adit.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn curl_speaks_to_the_socket() {
    if Command::new("curl").arg("--version").output().is_err() {
        skip::skip_test("there is no curl");
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = world.scratch("ollama.sock");
    let _up = device.up(&["--listen", &format!("unix:{}", path.display())]).await;
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["--silent", "--max-time", "30", "--unix-socket"]).arg(&path);
    let out = curl.arg("http://localhost/api/tags").output().await.expect("it runs");
    let body: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(body["models"].is_array(), "{body}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_nothing_else() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = world.scratch("ollama.sock");
    let socket = format!("unix:{}", path.display());
    let args = ["up", "--listen", &socket];
    std::fs::write(&path, "mine").expect("written");
    let refused = device.adit(&args, "").await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("no socket"), "{}", refused.stderr);
    assert_eq!(std::fs::read_to_string(&path).expect("it is still there"), "mine");
    std::fs::remove_file(&path).expect("removed");
    let other = UnixListener::bind(&path).expect("bound");
    let refused = device.adit(&args, "").await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("another process listens there"), "{}", refused.stderr);
    let refused = device.adit(&["up", "--listen", "unix:/nowhere/at.all"], "").await;
    assert!(refused.stderr.contains("make its directory first"), "{}", refused.stderr);
    drop(other);
    let _up = device.up(&["--listen", &socket]).await;
    assert!(asked(&path, "GET /api/tags HTTP/1.0\r\n\r\n").await.contains("models"));
}

#[tokio::test]
async fn a_group_or_everybody_can_be_let_in() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = world.scratch("ollama.sock");
    let gid = nix::unistd::getegid();
    let group = nix::unistd::Group::from_gid(gid).expect("asked").expect("a group").name;
    let up = device.up(&["--listen", &format!("unix:{}:{group}", path.display())]).await;
    assert_eq!(
        (mode(&path), std::fs::metadata(&path).expect("there").gid()),
        (0o660, gid.as_raw())
    );
    up.end().await;
    let _up = device.up(&["--any-user", "--listen", &format!("unix:{}", path.display())]).await;
    assert_eq!(mode(&path), 0o666);
}

#[tokio::test]
async fn a_socket_alone_is_enough() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = world.scratch("ollama.sock");
    let mut adit = tests::process::Process::spawn(
        device.command(&["up", "--listen", &format!("unix:{}", path.display())]),
        "adit",
    )
    .expect("it starts");
    adit.ready().await.expect("ready");
    assert_eq!(device.status().await["listening"], serde_json::json!([]));
    assert!(asked(&path, "GET /api/tags HTTP/1.0\r\n\r\n").await.contains("models"));
}
