//! `authorize`: a service of the owner's is asked, and its answer decides.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
};

use serde_json::Value;
use tests::{
    credentials::new_key,
    ollama::Options,
    over_ssh::{OverSsh, keep},
    raw::{self, Upstream},
    world::{SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
    sync::watch,
    task::JoinSet,
};

use crate::PROGRAM;

/// Keeps each question, and answers by the path at which it was asked.
pub(super) struct Checker {
    asked: watch::Receiver<Vec<(String, Value)>>,
    /// The status of its answers at `/say`.
    pub(super) say: Arc<AtomicU16>,
    _tasks: JoinSet<()>,
}

impl Checker {
    fn of(upstream: Arc<Upstream>) -> Self {
        let (keep, asked) = watch::channel(Vec::new());
        let mut tasks = JoinSet::new();
        let say = Arc::new(AtomicU16::new(200));
        let told = say.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok(tcp) = upstream.try_accept().await {
                connections.spawn(answer(tcp, keep.clone(), told.clone()));
            }
        });
        Self { asked, say, _tasks: tasks }
    }

    /// Waits until it was asked so often.
    pub(super) async fn wait_for(&mut self, count: usize) {
        let asked = self.asked.wait_for(|asked| asked.len() >= count);
        tokio::time::timeout(SOON, asked).await.expect("it is asked").expect("it runs");
    }

    /// The head of the last question.
    pub(super) fn last_head(&self) -> String {
        self.asked.borrow().last().expect("a question").0.clone()
    }

    /// Waits until so many questions have been asked.
    pub(super) async fn asked(&self, count: usize) {
        let mut asked = self.asked.clone();
        let enough = asked.wait_for(|asked| asked.len() >= count);
        tokio::time::timeout(SOON, enough).await.expect("asked in time").expect("it answers");
    }

    pub(super) fn count(&self) -> usize {
        self.asked.borrow().len()
    }

    pub(super) fn last(&self) -> Value {
        self.asked.borrow().last().expect("a question").1.clone()
    }
}

async fn answer(
    mut tcp: impl AsyncReadExt + AsyncWriteExt + Unpin,
    keep: watch::Sender<Vec<(String, Value)>>,
    say: Arc<AtomicU16>,
) {
    let mut bytes = Vec::new();
    let (path, head, question) = loop {
        if tcp.read_buf(&mut bytes).await.is_ok_and(|n| n > 0)
            && let Some((head, body)) = String::from_utf8_lossy(&bytes).split_once("\r\n\r\n")
            && let Ok(question) = serde_json::from_str::<Value>(body)
        {
            let path = head.split(' ').nth(1).expect("a path").to_owned();
            break (path, head.to_owned(), question);
        }
        assert!(bytes.len() < 10_000, "no question");
    };
    let model = question["model"].as_str().unwrap_or_default().to_owned();
    keep.send_modify(|all| all.push((head, question)));
    let (status, field) = match path.as_str() {
        "/yes" => ("204 No Content", ""),
        "/cached" => ("200 OK", "Cache-Control: private, max-age=600\r\n"),
        "/no" => ("403 Forbidden", ""),
        "/model" if model == "stand-in" => ("200 OK", ""),
        "/model" => ("401 Unauthorized", ""),
        "/silent" => return std::future::pending().await,
        "/say" => match say.load(Relaxed) {
            200 => ("200 OK", ""),
            403 => ("403 Forbidden", ""),
            _ => ("500 Internal Server Error", ""),
        },
        "/grants" => ("200 OK", "Content-Type: application/json\r\n"),
        "/unknown-role" => ("200 OK", "X-Adit-Role: nobody-made-it\r\n"),
        "/one-at-once" => ("200 OK", "X-Adit-User: ada\r\nX-Adit-Limits: at_once=1\r\n"),
        "/few-tokens" => ("200 OK", "Content-Type: application/json\r\n"),
        "/small-body" => ("200 OK", "X-Adit-Limits: body=10\r\n"),
        "/bad-limits" => ("200 OK", "X-Adit-Limits: at_once=none\r\n"),
        "/models" => ("200 OK", "X-Adit-Models: other*\r\n"),
        "/page" => (
            "401 Unauthorized",
            "Content-Type: text/html\r\nWWW-Authenticate: Bearer realm=\"team\"\r\n",
        ),
        "/long" => ("403 Forbidden", "Content-Type: text/html\r\n"),
        _ => ("500 Internal Server Error", ""),
    };
    let body = match path.as_str() {
        "/grants" => r#"{"role":"models","user":"ada","other":1}"#.to_owned(),
        "/few-tokens" => r#"{"user":"bob","limits":{"tokens_per_day":60}}"#.to_owned(),
        "/page" => "<p>Ask Ada.".to_owned(),
        "/long" => "x".repeat(40_000),
        _ => String::new(),
    };
    let length = match status {
        "204 No Content" => String::new(),
        _ => format!("Content-Length: {}\r\n", body.len()),
    };
    let _ =
        tcp.write_all(format!("HTTP/1.1 {status}\r\n{field}{length}\r\n{body}").as_bytes()).await;
}

pub(super) struct Guarded {
    pub(super) world: World,
    pub(super) checker: Checker,
    address: String,
    config: PathBuf,
}

impl Guarded {
    pub(super) async fn start(path: &str, at: &str) -> Self {
        let upstream = Arc::new(Upstream::start().await);
        let address = upstream.flag("http");
        let config = format!("authorize = '{address}/{path}'\nauthorize_at = {at}");
        let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
        Self { checker: Checker::of(upstream), address, config: world.config(), world }
    }

    pub(super) async fn ask_at(&self, path: &str) {
        self.ask_with(path, "").await;
    }

    /// With more lines of the configuration.
    pub(super) async fn ask_with(&self, path: &str, more: &str) {
        std::fs::write(&self.config, format!("authorize = '{}/{path}'\n{more}", self.address))
            .expect("written");
        let reload = self.world.aditd(&["reload"]).await;
        assert_eq!(reload.code, Some(0), "{}", reload.stderr);
    }
}

pub(super) const TAGS: &str =
    "GET /api/tags?secret=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

pub(super) async fn status(up: &tests::world::Up, request: &str) -> u16 {
    let answer = raw::exchange(up.address, request).await;
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn each_request_is_asked_about_and_the_answer_counts() {
    let guarded = Guarded::start("yes", "['request']").await;
    let up = guarded.world.up("laptop").await;
    assert_eq!(guarded.checker.count(), 0, "enrolling is not asked about");
    assert_eq!(status(&up, TAGS).await, 200);
    let question = guarded.checker.last();
    assert_eq!(
        (&question["at"], &question["device"], &question["role"]),
        (&"request".into(), &"laptop".into(), &"admin".into())
    );
    assert_eq!((&question["method"], &question["path"]), (&"GET".into(), &"/api/tags".into()));
    assert_eq!((&question["model"], &question["service"]), (&Value::Null, &"ollama".into()));
    assert_eq!(status(&up, TAGS).await, 200);
    assert_eq!(guarded.checker.count(), 2, "nothing said that it may be remembered");

    guarded.ask_at("model").await;
    let generate = r#"{"model":"stand-in","prompt":"x","options":{"num_predict":1}}"#;
    assert_eq!(status(&up, &raw::post("/api/generate", generate)).await, 200);
    assert_eq!(guarded.checker.last()["model"], "stand-in");
    assert_eq!(status(&up, &raw::post("/api/chat", r#"{"model":"secret"}"#)).await, 401);
    assert_eq!(
        status(&up, &raw::post("/api/chat", r#"{"model":"stand-in","Model":"secret"}"#)).await,
        400,
        "model name is ambiguous"
    );

    guarded.ask_at("no").await;
    let answer = raw::exchange(up.address, TAGS).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("`authorize`"), "{answer}");
    guarded.ask_at("broken").await;
    assert_eq!(status(&up, TAGS).await, 503);
    guarded.ask_at("silent").await;
    assert_eq!(status(&up, TAGS).await, 503);

    guarded.ask_at("cached").await;
    let before = guarded.checker.count();
    for _ in 0..5 {
        assert_eq!(status(&up, TAGS).await, 200);
    }
    assert_eq!(guarded.checker.count(), before + 1);
    assert_eq!(status(&up, "GET / HTTP/1.0\r\n\r\n").await, 200);
    assert_eq!(guarded.checker.count(), before + 2, "another question");

    // Nobody listens there. A server in its sandbox refuses settings with a port that is new to it.
    let nobody = guarded.address.replace("127.0.0.1", "127.0.0.2");
    std::fs::write(&guarded.config, format!("authorize = '{nobody}/nobody'")).expect("written");
    assert_eq!(guarded.world.aditd(&["reload"]).await.code, Some(0));
    assert_eq!(status(&up, TAGS).await, 503, "who can't be asked says no");
    assert_eq!(
        guarded.world.ollama.counters().started,
        1,
        "what was refused has not reached Ollama"
    );
}

#[tokio::test]
async fn running_requests_are_asked_about_again_when_authorize_changes() {
    let guarded = Guarded::start("model", "['request']").await;
    let up = guarded.world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    let endless = raw::post(
        "/api/generate",
        r#"{"model":"stand-in","prompt":"x","options":{"num_predict":-1}}"#,
    );
    app.write_all(endless.as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 500).await;
    assert_eq!(guarded.checker.count(), 1);
    // An unchanged service is not asked the same question again.
    guarded.ask_at("model").await;
    raw::read_exactly(&mut app, 1000).await;
    assert_eq!(guarded.checker.count(), 1);
    guarded.ask_at("yes").await;
    guarded.checker.asked(2).await;
    raw::read_exactly(&mut app, 1000).await;
    let again = guarded.checker.last();
    assert_eq!((&again["path"], &again["model"]), (&"/api/generate".into(), &"stand-in".into()));
    assert_eq!(guarded.checker.count(), 2);
    guarded.ask_at("no").await;
    let (_, ending) = raw::read_to_end(&mut app).await;
    assert_eq!(ending, raw::Ending::Reset, "a cut never looks like an end");
    guarded.world.ollama.wait_for(|now| now.running == 0, SOON).await.expect("it stops");
}

#[tokio::test]
async fn a_request_above_the_rate_limit_is_not_asked_about() {
    let guarded = Guarded::start("no", "['request']").await;
    let up = guarded.world.up("laptop").await;
    let limited =
        format!("authorize = '{}/no'\n[limits]\nrequests_per_minute = 2", guarded.address);
    std::fs::write(&guarded.config, limited).expect("written");
    assert_eq!(guarded.world.aditd(&["reload"]).await.code, Some(0));
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(status(&up, TAGS).await);
    }
    // One more may pass on a machine so slow that half a minute goes by.
    assert_eq!((&told[..2], told[4]), (&[403, 403][..], 429), "{told:?}");
    assert_eq!(guarded.checker.count(), told.iter().filter(|status| **status == 403).count());
}

#[tokio::test]
async fn a_device_that_authorize_refuses_is_not_enrolled_and_may_try_again() {
    let guarded = Guarded::start("no", "['enroll']").await;
    let device = guarded.world.stranger("laptop");
    let code = guarded.world.invite_as("laptop", "infer").await;
    let refused = device.enroll(&code, &[]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    assert!(refused.stderr.contains("own rules"), "{}", refused.stderr);
    let question = guarded.checker.last();
    assert_eq!(
        (&question["at"], &question["device"], &question["role"]),
        (&"enroll".into(), &"laptop".into(), &"infer".into())
    );
    assert!(guarded.world.aditd(&["device", "list"]).await.stdout.is_empty());

    std::fs::write(
        &guarded.config,
        format!("authorize = '{}/yes'\nauthorize_at = ['enroll']", guarded.address),
    )
    .expect("written");
    assert_eq!(guarded.world.aditd(&["reload"]).await.code, Some(0));
    let enrolled = device.enroll(&code, &[]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    let up = device.up(&[]).await;
    let before = guarded.checker.count();
    assert_eq!(status(&up, TAGS).await, 200);
    assert_eq!(guarded.checker.count(), before, "requests are not asked about");
}

async fn question_in(asked: &mut tokio::net::UnixStream) -> String {
    let mut question = Vec::new();
    while !question.ends_with(b"}") {
        assert!(asked.read_buf(&mut question).await.expect("read") > 0, "no question");
    }
    String::from_utf8_lossy(&question).into_owned()
}

#[tokio::test]
async fn authorize_may_be_a_unix_socket_and_a_request_cancelled_while_it_is_asked_never_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("bound");
    let config = format!("authorize = 'unix:{}:/check'", socket.display());
    let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
    let up = world.up("laptop").await;
    let accept = async || {
        tokio::time::timeout(SOON, listener.accept()).await.expect("asked").expect("accepted").0
    };

    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    let mut asked = accept().await;
    let question = question_in(&mut asked).await;
    assert!(question.contains("\"model\":\"stand-in:latest\""), "{question}");
    drop::<TcpStream>(app);
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, asked.read_to_end(&mut rest))
        .await
        .expect("it is given up")
        .expect("read");

    let mut app = raw::connect(up.address).await;
    app.write_all(TAGS.as_bytes()).await.expect("sent");
    let mut asked = accept().await;
    question_in(&mut asked).await;
    asked.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("answered");
    let (answer, _) = raw::read_to_end(&mut app).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(world.ollama.counters().started, 0);
}

#[tokio::test]
async fn the_user_who_enrolled_a_device_over_ssh_is_in_every_question_and_audit_line() {
    let guarded = Guarded::start("yes", "['enroll', 'request']").await;
    let (world, key) = (&guarded.world, new_key());
    let mut command = world.programs.command("aditd", &["enroll-device", "laptop"]);
    command.env("ADITD_STATE_DIR", world.state()).env("ADITD_CONFIG", &guarded.config);
    let enrolled = OverSsh::enroll(command, &key).await.enrolled().await;
    let uid = nix::unistd::getuid().as_raw();
    let question = guarded.checker.last();
    assert_eq!((&question["at"], &question["device_uid"]), (&"enroll".into(), &uid.into()));
    let device = world.stranger("laptop");
    keep(&device, enrolled, &key);
    let up = device.up(&[]).await;
    assert_eq!(status(&up, TAGS).await, 200);
    let question = guarded.checker.last();
    assert_eq!((&question["at"], &question["device_uid"]), (&"request".into(), &uid.into()));
    for command in [&["role", "laptop", "admin"][..], &["revoke", "laptop"], &["forget", "laptop"]]
    {
        assert_eq!(world.aditd(&[&["device"], command].concat()).await.code, Some(0));
    }
    let lines = async || {
        let log = world.aditd(&["audit", "--json", "--device", "laptop"]).await.stdout;
        log.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect::<Vec<Value>>()
    };
    // The server writes its own lines beside the requests.
    let written = async { while lines().await.len() < 5 {} };
    tokio::time::timeout(SOON, written).await.expect("enroll, request, role, revoke, forget");
    for line in lines().await {
        assert_eq!(line["device_uid"], uid, "{line}");
    }

    let invited = world.up("desk").await;
    assert_eq!(status(&invited, TAGS).await, 200);
    assert_eq!(guarded.checker.last()["device_uid"], Value::Null);
}
