//! Unmodified client libraries with a key.

use std::time::Duration;

use tests::{clients::Client, ollama::Options};

use super::Https;

/// Runs a client against the HTTPS listener and the stand-in behind it.
async fn passes(client: Option<Client>) {
    let Some(client) = client else { return };
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let https = Https::start(options, "").await;
    let key = https.key("app", &["--role", "admin"]).await;
    // What curl is told in this way, the libraries are told by variables.
    let settings =
        format!("cacert = \"{}\"\nheader = \"Authorization: Bearer {key}\"\n", https.ca.display());
    std::fs::write(https.world.scratch(".curlrc"), settings).expect("written");
    let direct = format!("http://{}", https.world.ollama.addr());
    let set = |command: &mut tokio::process::Command| {
        command
            .env("ADIT_KEY", &key)
            .env("OLLAMA_API_KEY", &key)
            .env("SSL_CERT_FILE", &https.ca)
            .env("NODE_EXTRA_CA_CERTS", &https.ca)
            .env("CURL_HOME", https.world.scratch(""));
    };
    client.passes(&https.url(""), &direct, set).await;
}

#[tokio::test]
async fn curl_streams_uploads_and_reuses_connections_with_a_key() {
    passes(Client::curl()).await;
}

#[tokio::test]
async fn the_python_package_openai_works_with_a_base_url_and_a_key() {
    passes(Client::python("openai_client.py", "openai")).await;
}

#[tokio::test]
async fn the_python_package_ollama_works_with_a_key() {
    passes(Client::python("ollama_client.py", "ollama")).await;
}

#[tokio::test]
async fn the_npm_package_ollama_works_with_a_key() {
    passes(Client::node("ollama_client.mjs")).await;
}
