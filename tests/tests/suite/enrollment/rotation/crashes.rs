//! Commands that are killed at any moment.

use std::time::Duration;

use tests::{cli_assert::assert_ok, state_files::text, world::World};

use super::{all_have_it, states, status};
use crate::PROGRAM;

#[tokio::test]
async fn a_rotation_and_an_end_that_are_killed_leave_what_the_same_command_goes_on_with() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    for millis in [1, 4, 8, 12, 16, 24, 40] {
        for command in ["rotate", "retire"] {
            let state = world.state();
            let args = ["ca", command, "--state-dir", text(&state)];
            let mut killed = world.programs.command("aditd", &args).spawn().expect("started");
            let _ = tokio::time::timeout(Duration::from_millis(millis), killed.wait()).await;
            killed.kill().await.expect("killed");
            let before = states(&world).await.len();
            match command {
                "rotate" => {
                    assert_ok(&world.aditd(&["ca", "rotate"]).await);
                    assert_eq!(states(&world).await.len(), before + 1);
                }
                _ => {
                    all_have_it(&world).await;
                    let ended = world.aditd(&["ca", "retire"]).await;
                    // It may have been done before it was killed.
                    assert!(ended.code == Some(0) || ended.stderr.contains("no old"), "{ended:?}");
                }
            }
            if states(&world).await.len() >= 7 {
                break;
            }
        }
        all_have_it(&world).await;
        if states(&world).await.len() >= 7 {
            break;
        }
    }
    up.works().await;
    world.kill_server().await;
    world.restart_server().await;
    device.up(&[]).await.works().await;
    assert!(status(&world).await["up_to_date"] == 1);
}
