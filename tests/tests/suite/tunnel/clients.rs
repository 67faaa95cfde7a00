//! Real, unmodified programs through the tunnel: curl, and the client libraries that applications
//! use.

use std::time::Duration;

use tests::{clients::Client, ollama::Options, world::World};

use crate::PROGRAM;

/// Runs a client against the tunnel and the stand-in behind it.
async fn passes(client: Option<Client>) {
    let Some(client) = client else { return };
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let world = World::start_with(PROGRAM, options, &[]).await;
    let up = world.up("laptop").await;
    let direct = format!("http://{}", world.ollama.addr());
    client.passes(&up.url(""), &direct, |_| {}).await;
}

#[tokio::test]
async fn curl_streams_uploads_and_reuses_connections() {
    passes(Client::curl()).await;
}

#[tokio::test]
async fn the_python_package_ollama_works_and_can_cancel() {
    passes(Client::python("ollama_client.py", "ollama")).await;
}

#[tokio::test]
async fn the_python_package_openai_works_and_can_cancel() {
    passes(Client::python("openai_client.py", "openai")).await;
}

#[tokio::test]
async fn the_npm_package_ollama_works_and_can_cancel() {
    passes(Client::node("ollama_client.mjs", "ollama")).await;
}
