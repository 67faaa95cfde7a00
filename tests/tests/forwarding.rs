//! What passes through the tunnel, and that it passes unchanged.

use tests::world::World;

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");

#[tokio::test]
async fn a_request_passes() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let out = tokio::process::Command::new("curl")
        .args(["-s", &up.url("/")])
        .output()
        .await
        .unwrap();
    assert_eq!(out.stdout, b"Ollama is running");
}
