//! Failures travel between our programs as data: what failed, why, what cures it, and the exit code
//! arrive as they were sent.

use std::{path::Path, process::Stdio};

use common::{
    machine::{
        control,
        report::{Exit, Failure},
    },
    transport::frame,
};
use data_encoding::BASE64;
use proto::wire::{EnrollDevice, Enrolled, SSH_FAILED, SSH_MARKER, SshFailed};
use server::running::{Answer, Request};
use tests::{
    credentials::{csr, new_key},
    ollama::Options,
    told::own_group,
    world::World,
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

/// What a command over SSH left: its answer, its exit code, and what people read.
struct Ended<T> {
    answer: Result<T, Failure>,
    code: Option<i32>,
    stderr: String,
}

/// Runs an `aditd` command on this state as sshd would, with these bytes on standard input.
async fn over_ssh(
    world: &World,
    args: &[&str],
    state: &Path,
    config: &Path,
    input: &[u8],
) -> Ended<Vec<u8>> {
    let mut command = world.programs.command("aditd", args);
    command.env("ADITD_STATE_DIR", state).env("ADITD_CONFIG", config);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("aditd runs");
    // It may end without reading.
    let _ = child.stdin.take().expect("piped").write_all(input).await;
    let out = child.wait_with_output().await.expect("ended");
    let answer = match out.stdout.strip_prefix(SSH_FAILED.as_bytes()) {
        Some(mut framed) => {
            let SshFailed { schema, failure } =
                frame::read(&mut framed).await.expect("a framed failure");
            assert_eq!((schema, framed), (1, &b""[..]));
            Err(failure)
        }
        None => Ok(out.stdout),
    };
    Ended { answer, code: out.status.code(), stderr: String::from_utf8(out.stderr).expect("text") }
}

async fn request() -> Vec<u8> {
    let mut framed = Vec::new();
    let csr = BASE64.encode(&csr(&new_key()));
    frame::write(&mut framed, &EnrollDevice { csr }).await.expect("framed");
    framed
}

/// What failed, the first cure, and the exit code; and that people are told the same.
#[track_caller]
fn assert_failed(ended: &Ended<Vec<u8>>, what: &str, hint: &str, exit: Exit) {
    let failure = ended.answer.as_ref().expect_err("it failed");
    assert_eq!(failure.what(), what);
    assert!(failure.hints().iter().any(|h| h.contains(hint)), "no `{hint}` in {failure:?}");
    assert_eq!((failure.exit_code(), ended.code), (exit, Some(u8::from(exit).into())));
    assert!(ended.stderr.ends_with(&format!("{failure}\n")), "{}", ended.stderr);
}

#[tokio::test]
async fn a_command_over_ssh_answers_its_failure_as_data_and_tells_people_the_same() {
    let world = World::start(PROGRAM).await;
    let (state, config) = (world.state(), world.config());
    let run = async |args: &[&str], config: &Path, input: &[u8]| {
        over_ssh(&world, args, &state, config, input).await
    };
    let enrolled = run(&["enroll-device", "laptop"], &config, &request().await).await;
    let answer = enrolled.answer.expect("enrolled");
    let mut framed = answer.strip_prefix(SSH_MARKER.as_bytes()).expect("the marker first");
    let Enrolled { device, .. } = frame::read(&mut framed).await.expect("a certificate");
    assert_eq!(device.as_str(), "laptop");

    let taken = run(&["enroll-device", "laptop"], &config, &request().await).await;
    let what = "there is a device `laptop` already";
    assert_failed(&taken, what, "`aditd device forget laptop`", Exit::Failed);
    let nameless = run(&["enroll-device", "a b"], &config, &request().await).await;
    assert_failed(&nameless, "`a b` can't be a device's name", "--device NAME", Exit::Usage);
    let talk = run(&["enroll-device", "desk"], &config, b"hello, is this aditd?").await;
    assert_failed(&talk, "cannot read the device's request", "aditd invite", Exit::Usage);

    let wrong = world.scratch("wrong.toml");
    std::fs::write(&wrong, "listen = [").expect("written");
    let what = format!("the configuration `{}` is wrong", wrong.display());
    for args in [&["enroll-device", "desk"][..], &["relay"]] {
        let refused = run(args, &wrong, &request().await).await;
        assert_failed(&refused, &what, "line 1", Exit::Usage);
    }
}

#[tokio::test]
async fn a_member_of_the_enroll_group_is_told_the_servers_own_causes_and_cures() {
    let tmp = tempfile::tempdir().expect("a directory");
    let config = tmp.path().join("aditd.toml");
    let socket = format!("enroll_socket = '{}'", tmp.path().join("enroll.sock").display());
    std::fs::write(&config, socket).expect("written");
    let flags = ["--enroll-group", &own_group(), "--config", config.to_str().expect("a path")];
    let world = World::start_with(PROGRAM, Options::default(), &flags).await;
    world.device("laptop").await;
    let nobodys = tmp.path().join("nobodys");
    let args = ["enroll-device", "laptop"];
    let taken = over_ssh(&world, &args, &nobodys, &config, &request().await).await;
    let what = "there is a device `laptop` already";
    assert_failed(&taken, what, "`aditd device forget laptop`", Exit::Failed);
    assert_eq!(taken.answer.expect_err("it failed").causes(), [""; 0]);
}

#[tokio::test]
async fn the_running_server_sends_a_failed_reload_as_data() {
    let world = World::start(PROGRAM).await;
    std::fs::write(world.config(), "\nmax_in_flight = 0").expect("written");
    let reload = Request::Reload { named: None };
    let answer = control::ask::<_, Answer>(&world.state(), &reload).await.expect("it answers");
    let Some(Answer::Failed(failure)) = answer else { panic!("{answer:?}") };
    assert!(failure.causes()[0].contains("at line 2"), "{failure:?}");
    assert!(failure.hints()[0].contains("line 2"), "{failure:?}");
    assert_eq!(failure.exit_code(), Exit::Usage);
    let told = world.aditd(&["reload"]).await;
    assert_eq!(told.code, Some(2), "{}", told.stderr);
    let with_all = Failure::new("the settings stay as they were").caused_by(failure);
    assert!(told.stderr.ends_with(&format!("{with_all}\n")), "{}", told.stderr);
}
