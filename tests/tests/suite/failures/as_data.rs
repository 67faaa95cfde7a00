//! Failures travel between our programs as data: the receiver gets the causes, cures and exit code
//! as they were sent.

use std::path::Path;

use common::machine::{
    control,
    report::{Exit, Failure},
};
use proto::wire::Enrolled;
use server::{Answer, Request};
use tests::{
    cli_assert::own_group,
    credentials::new_key,
    ollama::Options,
    over_ssh::{OverSsh, request},
    world::World,
};

use crate::PROGRAM;

/// Runs an `aditd` command on this state as sshd would, with these bytes on standard input.
async fn over_ssh(
    world: &World,
    args: &[&str],
    state: &Path,
    config: &Path,
    input: &[u8],
) -> OverSsh {
    let mut command = world.programs.command("aditd", args);
    command.env("ADITD_STATE_DIR", state).env("ADITD_CONFIG", config);
    OverSsh::run(command, input).await
}

#[tokio::test]
async fn a_command_over_ssh_sends_its_failure_as_data_and_prints_the_same_for_people() {
    let world = World::start(PROGRAM).await;
    let (state, config) = (world.state(), world.config());
    let run = async |args: &[&str], config: &Path, input: &[u8]| {
        over_ssh(&world, args, &state, config, input).await
    };
    let enrolled = run(&["enroll-device", "laptop"], &config, &request(&new_key()).await).await;
    let Enrolled { device, .. } = enrolled.enrolled().await;
    assert_eq!(device.as_str(), "laptop");

    let taken = run(&["enroll-device", "laptop"], &config, &request(&new_key()).await).await;
    let what = "there is a device `laptop` already";
    taken.assert_failed(what, "`aditd device forget laptop`", Exit::Failed);
    let nameless = run(&["enroll-device", "a b"], &config, &request(&new_key()).await).await;
    nameless.assert_failed("`a b` can't be a device's name", "--device NAME", Exit::Usage);
    let talk = run(&["enroll-device", "desk"], &config, b"hello, is this aditd?").await;
    talk.assert_failed("cannot read the device's request", "aditd invite", Exit::Usage);

    let wrong = world.scratch("wrong.toml");
    std::fs::write(&wrong, "listen = [").expect("written");
    let what = format!("the configuration `{}` is wrong", wrong.display());
    for args in [&["enroll-device", "desk"][..], &["relay"]] {
        let refused = run(args, &wrong, &request(&new_key()).await).await;
        refused.assert_failed(&what, "line 1", Exit::Usage);
    }
}

#[tokio::test]
async fn a_member_of_the_enroll_group_gets_the_causes_and_cures_of_the_server() {
    let tmp = tempfile::tempdir().expect("a directory");
    let config = tmp.path().join("aditd.toml");
    let socket = format!("enroll_socket = '{}'", tmp.path().join("enroll.sock").display());
    std::fs::write(&config, socket).expect("written");
    let flags = ["--enroll-group", &own_group(), "--config", config.to_str().expect("a path")];
    let world = World::start_with(PROGRAM, Options::default(), &flags).await;
    world.device("laptop").await;
    let nobodys = tmp.path().join("nobodys");
    let args = ["enroll-device", "laptop"];
    let taken = over_ssh(&world, &args, &nobodys, &config, &request(&new_key()).await).await;
    let what = "there is a device `laptop` already";
    taken.assert_failed(what, "`aditd device forget laptop`", Exit::Failed);
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
    let with_all = Failure::new("the settings have not changed").caused_by(failure);
    assert!(told.stderr.ends_with(&format!("{with_all}\n")), "{}", told.stderr);
}
