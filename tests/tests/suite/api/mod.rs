//! The API for the owner's own tools, asked as a portal would: by curl at the control socket.

mod calls;
mod events;
mod json;

use std::path::PathBuf;

use serde_json::Value;
use tests::world::World;

/// The control socket, as `aditd api` prints it.
async fn socket(world: &World) -> PathBuf {
    let told = world.aditd(&["api"]).await;
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    told.stdout.trim().into()
}

/// What curl gets: the status and the JSON.
async fn call(world: &World, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "--max-time", "60", "-X", method, "-w", "\n%{http_code}"]);
    if !body.is_empty() {
        curl.args(["-d", body]);
    }
    curl.arg("--unix-socket").arg(socket(world).await).arg(format!("http://localhost{path}"));
    let output = curl.output().await.expect("curl");
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    let (json, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    let json = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));
    (status.parse().expect("a status"), json)
}

/// Like [`call`], for a call that succeeds.
async fn done(world: &World, method: &str, path: &str, body: &str) -> Value {
    let (status, json) = call(world, method, path, body).await;
    assert_eq!(status, 200, "{method} {path}: {json}");
    assert_eq!(json["schema"], 1, "{method} {path}: {json}");
    json
}
