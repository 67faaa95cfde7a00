//! Unmodified client libraries with a key, and with a key that is revoked in the middle of an answer.

use std::{process::Stdio, time::Duration};

use tests::{cli_assert::assert_ok, clients::Client, ollama::Options, world::SOON};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{ChildStdout, Command},
    time::Instant,
};

use super::{Https, endless::Endless};

/// How soon a client has to learn that its answer is cut.
const CUT_WITHIN: Duration = Duration::from_secs(10);

async fn start() -> Https {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    Https::start(options, "").await
}

/// Gives a client the key, and the certificate of the CA.
fn set(command: &mut Command, https: &Https, key: &str) {
    // What curl is told in this way, the libraries are told by variables.
    let settings =
        format!("cacert = \"{}\"\nheader = \"Authorization: Bearer {key}\"\n", https.ca.display());
    std::fs::write(https.world.scratch(".curlrc"), settings).expect("written");
    command
        .env("ADIT_KEY", key)
        .env("OLLAMA_API_KEY", key)
        .env("SSL_CERT_FILE", &https.ca)
        .env("NODE_EXTRA_CA_CERTS", &https.ca)
        .env("CURL_HOME", https.world.scratch(""));
}

fn direct(https: &Https) -> String {
    format!("http://{}", https.world.ollama.addr())
}

/// Runs a client against the HTTPS listener and the stand-in behind it.
async fn passes(client: Option<Client>) {
    let Some(client) = client else { return };
    let https = start().await;
    let key = https.key("app", &["--role", "admin"]).await;
    let set = |command: &mut Command| set(command, &https, &key);
    client.passes(&https.url(""), &direct(&https), set).await;
}

/// Revokes the key of a client in the middle of an answer. The client checks what its package makes of
/// that.
async fn is_cut(client: Option<Client>, package: &str) {
    let Some(client) = client else { return };
    let https = start().await;
    let key = https.key("app", &[]).await;
    let mut command = client.command(&https.url(""), &direct(&https));
    set(&mut command, &https, &key);
    command.arg(package).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().expect("it runs");
    let mut said = BufReader::new(running.stdout.take().expect("its output"));
    wait_for(&mut said, "begun", SOON).await;
    assert_ok(&https.world.aditd(&["key", "revoke", "app"]).await);
    let revoked = Instant::now();
    wait_for(&mut said, "cut", CUT_WITHIN).await;
    eprintln!("{package}: cut after {:?}", revoked.elapsed());
    let stopped = https.world.ollama.wait_for(|now| now.running == 0, SOON).await;
    assert_eq!(stopped.expect("it stops").cancelled, 1);
    let out = tokio::time::timeout(SOON, running.wait_with_output()).await;
    let out = out.expect("in time").expect("it ends");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Reads lines until one begins with this word.
async fn wait_for(said: &mut BufReader<ChildStdout>, word: &str, within: Duration) {
    let mut all = String::new();
    let read = async {
        loop {
            let from = all.len();
            let more = said.read_line(&mut all).await.expect("text");
            assert!(more > 0, "it ends before `{word}`: {all}");
            if all[from..].starts_with(word) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(within, read).await.is_ok();
    assert!(in_time, "no `{word}` within {within:?}");
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
async fn the_python_package_anthropic_works_with_a_base_url_and_a_key() {
    passes(Client::python("anthropic_client.py", "anthropic")).await;
}

#[tokio::test]
async fn the_python_package_ollama_works_with_a_key() {
    passes(Client::python("ollama_client.py", "ollama")).await;
}

#[tokio::test]
async fn the_npm_package_openai_works_with_a_base_url_and_a_key() {
    passes(Client::node("openai_client.mjs", "openai")).await;
}

#[tokio::test]
async fn the_npm_package_ollama_works_with_a_key() {
    passes(Client::node("ollama_client.mjs", "ollama")).await;
}

#[tokio::test]
async fn the_python_package_openai_reports_the_end_of_its_key_in_the_middle_of_an_answer() {
    is_cut(Client::python("revoked.py", "openai"), "openai").await;
}

#[tokio::test]
async fn the_python_package_anthropic_reports_the_end_of_its_key_in_the_middle_of_an_answer() {
    is_cut(Client::python("revoked.py", "anthropic"), "anthropic").await;
}

#[tokio::test]
async fn the_python_package_ollama_reports_the_end_of_its_key_in_the_middle_of_an_answer() {
    is_cut(Client::python("revoked.py", "ollama"), "ollama").await;
}

#[tokio::test]
async fn the_npm_package_openai_reports_the_end_of_its_key_in_the_middle_of_an_answer() {
    is_cut(Client::node("revoked.mjs", "openai"), "openai").await;
}

#[tokio::test]
async fn the_npm_package_ollama_reports_the_end_of_its_key_in_the_middle_of_an_answer() {
    is_cut(Client::node("revoked.mjs", "ollama"), "ollama").await;
}

#[tokio::test]
async fn curl_is_cut_in_the_middle_of_an_answer_however_it_sends_its_key() {
    let https = start().await;
    for way in ["Authorization: Bearer ", "X-Api-Key: ", "me:"] {
        let key = https.key("app", &[]).await;
        let flag = if way == "me:" { "--user" } else { "--header" };
        let args = [flag, &format!("{way}{key}")];
        let running = Endless::begun_with(&https, &args).await;
        assert_ok(&https.world.aditd(&["key", "revoke", "app"]).await);
        let revoked = Instant::now();
        running.was_cut().await;
        assert!(revoked.elapsed() < CUT_WITHIN, "{way}: after {:?}", revoked.elapsed());
        assert_eq!(https.curl("/api/tags", &args).await.status, 401, "{way}");
    }
}
