//! An `adit up` that is killed while its tunnel goes over SSH.

use tests::{laptop::Laptop, raw, world::SOON};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

#[tokio::test]
async fn ollama_stops_when_an_adit_whose_tunnel_goes_over_ssh_is_killed() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    for (times, client) in (1..).zip(["builtin", "system"]) {
        let mut up = laptop.up(&world, &["--ssh-client", client]).await;
        assert_eq!(laptop.device.status().await["tunnel"]["carrier"], "ssh");
        let mut app = raw::connect(up.address).await;
        app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
        raw::read_exactly(&mut app, 300).await;
        assert_eq!(world.ollama.counters().running, 1);
        up.adit.kill().await;
        // Its watcher logs in anew: the end of an SSH connection alone is no end of a session.
        world
            .ollama
            .wait_for(|now| now.cancelled == times && now.running == 0, SOON)
            .await
            .unwrap_or_else(|now| panic!("with the {client} client: {now:?}"));
    }
}
