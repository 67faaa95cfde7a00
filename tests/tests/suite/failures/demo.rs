//! The demo as a person runs it: everything passes, and nothing is left behind.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tempfile::TempDir;
use tests::process::Ended;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpSocket, TcpStream},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::PROGRAM;

/// Several demos run at once, perhaps on a loaded machine.
const WITHIN: Duration = Duration::from_secs(90);

/// A demo in a temporary directory of its own.
struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: String,
    tmp: TempDir,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let mut child = Command::new(PROGRAM)
            .args(args)
            .env("TMPDIR", tmp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the demo starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self { child, lines, said: String::new(), tmp }
    }

    /// Reads until a line contains `text`; returns that line.
    async fn says(&mut self, text: &str) -> String {
        let found = timeout(WITHIN, async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                self.said += &format!("{line}\n");
                if line.contains(text) {
                    return Some(line);
                }
            }
            None
        });
        let found = found.await.ok().flatten();
        found.unwrap_or_else(|| panic!("never said `{text}`:\n{}", self.said))
    }

    /// Sends the signal of Ctrl-C.
    fn interrupt(&self) {
        let pid = self.child.id().expect("it runs");
        // The `kill` of the shell: some machines have no other.
        let sent =
            std::process::Command::new("sh").arg("-c").arg(format!("kill -INT {pid}")).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -INT {pid}");
    }

    /// Waits for its end, and checks that nothing is left.
    async fn end(mut self) -> Ended {
        let rest = timeout(WITHIN, async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                self.said += &format!("{line}\n");
            }
            self.child.wait_with_output().await.expect("its end")
        });
        let mut ended =
            Ended::from(rest.await.unwrap_or_else(|_| panic!("it does not end:\n{}", self.said)));
        ended.stdout = self.said;
        let files: Vec<_> = std::fs::read_dir(self.tmp.path()).expect("a directory").collect();
        assert!(files.is_empty(), "left behind: {files:?}");
        // A helper of aditd ends by itself, a moment after aditd.
        let all_ended = async {
            while !processes_of(self.tmp.path()).is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let all_ended = timeout(WITHIN, all_ended).await;
        assert!(all_ended.is_ok(), "left running: {:?}", processes_of(self.tmp.path()));
        ended
    }
}

/// The command lines of all processes that contain this path.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("a path");
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(dir))
        .collect()
}

#[tokio::test]
async fn the_demo_passes_from_the_invitation_to_the_revocation() {
    let ended = Demo::start(&["--stand-in"]).end().await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    for line in [
        "a stand-in takes Ollama's place",
        "$ aditd invite laptop\n  adit",
        "$ adit enroll",
        "  Enrolled as laptop ",
        "$ adit up\n",
        "  This is a stand-in for Ollama, not a model:",
        "to the first token, p50",
        "between tokens, max",
        "answers are the same both ways, byte for byte",
        "$ aditd device revoke laptop\n  Revoked laptop ",
        "The answer was cut in the middle, ",
        "{\"error\":\"adit: this device was revoked",
        "refused with 503 Service Unavailable",
        "All of it held. ",
    ] {
        assert!(ended.stdout.contains(line), "`{line}` is missing in:\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains('\x1b'), "colours in a pipe:\n{}", ended.stdout);
    assert_eq!(ended.stderr, "");
}

#[tokio::test]
async fn nothing_of_the_demo_is_left_afterwards() {
    let mut demo = Demo::start(&["--stand-in"]);
    demo.says("The tunnel is up").await;
    // Without this, finding none afterwards would show nothing.
    let found = processes_of(demo.tmp.path());
    for program in ["/aditd serve ", "/adit up "] {
        assert!(found.iter().any(|line| line.contains(program)), "no {program} among {found:?}");
    }
    let ended = demo.end().await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test]
async fn with_keep_it_can_be_used_until_ctrl_c_and_then_ends_cleanly() {
    let mut demo = Demo::start(&["--stand-in", "--keep"]);
    demo.says("Yours until Ctrl-C").await;
    let line = demo.says("curl -N http://").await;
    let address = line.split(['/', ' ']).find_map(|word| word.parse::<SocketAddr>().ok());
    let mut tcp = TcpStream::connect(address.expect(&line)).await.expect("it listens");
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    tcp.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = timeout(WITHIN, tcp.read_to_string(&mut answer)).await;
    read.expect("in time").expect("an answer");
    assert!(answer.ends_with("Ollama is running"), "{answer}");

    demo.interrupt();
    let ended = demo.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    assert!(!ended.stdout.contains("device was revoked"), "{}", ended.stdout);
}

#[tokio::test]
async fn ctrl_c_in_the_middle_cleans_up_and_exits_with_an_error() {
    let mut demo = Demo::start(&["--stand-in"]);
    demo.says("The tunnel is up").await;
    demo.interrupt();
    let ended = demo.end().await;
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(1), "error: stopped before the end\n"),
        "{}",
        ended.stdout
    );
}

#[tokio::test]
async fn an_ollama_that_is_named_must_answer() {
    // Bound but not listening: no other process gets the port.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let address = socket.local_addr().expect("an address").to_string();
    let ended = Demo::start(&["--ollama", &address]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(
        ended.stderr.starts_with(&format!("error: no Ollama answers at {address}\n\nhint: ")),
        "{}",
        ended.stderr
    );
}
