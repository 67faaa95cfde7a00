//! Unmodified client libraries with a key.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tests::{ollama::Options, skip};

use super::Https;

const WITHIN: Duration = Duration::from_secs(300);

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

fn has(program: &str, args: &[&str]) -> bool {
    std::process::Command::new(program).args(args).output().is_ok_and(|out| out.status.success())
}

/// Runs a client script against the HTTPS listener and the stand-in behind it.
async fn passes(program: &str, name: &str) {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let https = Https::start(options, "").await;
    let key = https.key("app", &["--role", "admin"]).await;
    // What curl is told in this way, the libraries are told by variables.
    let settings =
        format!("cacert = \"{}\"\nheader = \"Authorization: Bearer {key}\"\n", https.ca.display());
    std::fs::write(https.world.scratch(".curlrc"), settings).expect("written");
    let mut command = tokio::process::Command::new(program);
    command
        .arg(script(name))
        .env("ADIT_URL", https.url(""))
        .env("ADIT_DIRECT", format!("http://{}", https.world.ollama.addr()))
        .env("ADIT_KEY", &key)
        .env("OLLAMA_API_KEY", &key)
        .env("SSL_CERT_FILE", &https.ca)
        .env("NODE_EXTRA_CA_CERTS", &https.ca)
        .env("CURL_HOME", https.world.scratch(""))
        .kill_on_drop(true);
    for proxy in
        ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
    {
        command.env_remove(proxy);
    }
    let out =
        tokio::time::timeout(WITHIN, command.output()).await.expect("in time").expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{name}: {}\n{}", text(&out.stdout), text(&out.stderr));
}

async fn python(name: &str, package: &str) {
    let python = std::env::var("ADIT_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !has(&python, &["-c", &format!("import {package}")])
        && skip::skip_test(&format!("the Python package `{package}` is not installed"))
    {
        return;
    }
    passes(&python, name).await;
}

#[tokio::test]
async fn curl_streams_uploads_and_reuses_connections_with_a_key() {
    passes("bash", "curl.sh").await;
}

#[tokio::test]
async fn the_python_package_openai_works_with_a_base_url_and_a_key() {
    python("openai_client.py", "openai").await;
}

#[tokio::test]
async fn the_python_package_ollama_works_with_a_key() {
    python("ollama_client.py", "ollama").await;
}

#[tokio::test]
async fn the_npm_package_ollama_works_with_a_key() {
    let there = std::env::var("ADIT_TEST_NODE_PATH")
        .is_ok_and(|path| Path::new(&path).join("ollama").is_dir())
        && has("node", &["--version"]);
    if !there
        && skip::skip_test(
            "node or the npm package `ollama` is not installed (ADIT_TEST_NODE_PATH)",
        )
    {
        return;
    }
    passes("node", "ollama_client.mjs").await;
}
