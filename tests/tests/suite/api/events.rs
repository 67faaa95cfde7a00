//! Events, as they happen.

use serde_json::Value;
use tests::{
    raw,
    world::{SOON, World},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::UnixStream,
};

use super::{done, socket};
use crate::PROGRAM;

struct Reader {
    /// Killed when this is dropped.
    _curl: tokio::process::Child,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Reader {
    /// curl, which reads events.
    async fn start(world: &World) -> Self {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["-sSN", "http://localhost/v1/events", "--unix-socket"]).arg(socket(world).await);
        let mut curl =
            curl.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().expect("curl");
        let lines = BufReader::new(curl.stdout.take().expect("its output")).lines();
        let mut reader = Self { _curl: curl, lines };
        reader.until("begun").await;
        reader
    }

    /// The next event of this name.
    async fn until(&mut self, name: &str) -> Value {
        let found = async {
            loop {
                let line = self.lines.next_line().await.expect("read").expect("it goes on");
                let event: Value = serde_json::from_str(&line).expect("JSON");
                if event["event"] == name {
                    return event;
                }
            }
        };
        tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("no event `{name}`"))
    }
}

#[tokio::test]
async fn a_reader_of_events_sees_a_device_from_its_enrollment_to_its_revocation() {
    let world = World::start(PROGRAM).await;
    let mut events = Reader::start(&world).await;
    let up = world.up("laptop").await;
    let enrolled = events.until("enroll").await;
    assert_eq!(enrolled["device"], "laptop");
    let id = enrolled["device_id"].clone();
    assert_eq!(events.until("connect").await["device_id"], id);
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    let began = events.until("request_began").await;
    assert_eq!((&began["device_id"], &began["path"]), (&id, &"/api/generate".into()));
    raw::read_exactly(&mut app, 500).await;
    // By a command: whoever changes the register, its readers see it.
    let revoked = world.aditd(&["device", "revoke", "laptop", "--reason", "left"]).await;
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    let revoked = events.until("revoke").await;
    assert_eq!((&revoked["device_id"], &revoked["reason"]), (&id, &"left".into()));
    // A cut request and the end of its session come in either order.
    let mut again = Reader::start(&world).await;
    let made = done(&world, "POST", "/v1/keys", r#"{"name":"ci"}"#).await;
    assert_eq!(again.until("key_create").await["device_id"], made["key"]["id"]);
    let ended = events.until("request").await;
    assert_eq!((&ended["request"], &ended["end"]), (&began["request"], &"cut".into()));
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_off_and_the_server_goes_on() {
    let world = World::start(PROGRAM).await;
    let mut slow = UnixStream::connect(socket(&world).await).await.expect("connected");
    slow.write_all(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("asked");
    let mut first = [0; 12];
    slow.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    let mut fast = Reader::start(&world).await;
    let up = world.up("laptop").await;
    fast.until("connect").await;
    let request = "GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut app = raw::connect(up.address).await;
    let answers = async {
        let mut sent = 0;
        let mut answers = vec![0; 64 << 10];
        while sent < 6000 {
            let many = request.repeat(50);
            app.write_all(many.as_bytes()).await.expect("sent");
            sent += 50;
            while let Ok(n) = app.try_read(&mut answers) {
                assert!(n > 0, "the connection goes on");
            }
            for _ in 0..50 {
                fast.until("request").await;
            }
        }
    };
    tokio::time::timeout(4 * SOON, answers).await.expect("the requests are answered");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, slow.read_to_end(&mut rest)).await.expect("it is cut");
    let lines =
        String::from_utf8_lossy(&rest).lines().filter(|line| line.contains("\"request\"")).count();
    assert!(ended.is_err() || !rest.ends_with(b"0\r\n\r\n"), "a cut never looks like an end");
    assert!(lines < 6000, "it was cut before all of them: {lines}");
    done(&world, "GET", "/v1/status", "").await;
}
