//! Where a service may be: on this machine, at a Unix socket, or where the owner has spelled it out.

use tests::{ollama::Options, raw, world::World};

use super::{OpenAi, get, post, printed, status, up};
use crate::PROGRAM;

#[tokio::test]
async fn a_unix_socket_is_a_service() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("vllm.sock");
    let vllm = OpenAi::at_socket(&socket);
    let config =
        format!("[services.vllm]\nupstream = 'unix:{}'\nkind = 'openai'\n", socket.display());
    let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
    let device = world.device_as("laptop", "infer").await;
    let (_up, address) = up(&device, &["vllm=localhost:0"]).await;
    for request in [get("/v1/models"), post("/v1/completions", r#"{"model":"m1","stream":true}"#)] {
        let answer = raw::exchange(address, &request).await;
        assert!(status(&answer) == 200, "{answer}");
    }
    assert_eq!(vllm.seen().len(), 2);
    drop(vllm);
    std::fs::remove_file(&socket).expect("removed");
    let gone = raw::exchange(address, &get("/v1/models")).await;
    assert_eq!(status(&gone), 502, "{gone}");
    assert!(gone.contains("the service `vllm` is not running"), "{gone}");
}

#[tokio::test]
async fn another_machine_is_refused_until_its_exact_address_is_spelled_out() {
    let world = World::start(PROGRAM).await;
    let file = world.scratch("other.toml");
    let serve = async |text: &str| {
        std::fs::write(&file, text).expect("written");
        world.aditd(&["serve", "--config", file.to_str().expect("a path")]).await
    };
    let table = "[services.vllm]\nupstream = 'http://192.0.2.1:8000'\nkind = 'openai'\n";
    let refused = serve(table).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("`192.0.2.1:8000` is not a loopback address"), "{refused:?}");
    let line = "upstream_allow = [\"192.0.2.1:8000\"]";
    assert!(refused.stderr.contains(line), "{refused:?}");
    for other in ["192.0.2.1:8001", "192.0.2.2:8000", "0.0.0.0:8000"] {
        let refused = serve(&format!("upstream_allow = ['{other}']\n{table}")).await;
        assert!(refused.stderr.contains("is not a loopback address"), "{other}: {refused:?}");
    }
    let named =
        serve(&format!("{line}\n[roles.infer]\nservices = ['vllm', 'other']\n{table}")).await;
    assert_eq!(named.code, Some(2), "{named:?}");
    assert!(named.stderr.contains("the service `other`, which there is not"), "{named:?}");
}

/// The resolver reads numbers as names of addresses: `127.1` is 127.0.0.1, and 3221225985 is
/// 192.0.2.1. No name server is asked.
#[tokio::test]
async fn a_name_is_dialled_while_all_its_addresses_are_allowed_and_what_is_unencrypted_is_told() {
    let vllm = OpenAi::start().await;
    let port = vllm.port();
    let config = format!(
        "upstream_allow = ['192.0.2.9:{port}']\n\
         [services.near]\nupstream = 'http://127.1:{port}'\nkind = 'openai'\n\
         [services.far]\nupstream = 'http://3221225985:{port}'\nkind = 'openai'\n"
    );
    let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
    let device = world.device_as("laptop", "admin").await;
    let (_up, near) = up(&device, &["near=localhost:0", "far=localhost:0"]).await;
    let far = super::address_of(&device, "far").await;
    assert_eq!(status(&raw::exchange(near, &get("/v1/models")).await), 200);
    let told = raw::exchange(far, &get("/v1/models")).await;
    assert_eq!(status(&told), 504, "{told}");
    assert_eq!(vllm.seen().len(), 1);

    let unencrypted = "the prompts and answers of the service `near` travel unencrypted";
    let shown = world.status().await;
    let told = shown["services"].to_string();
    assert!(told.contains(unencrypted), "{told}");
    let text = world.aditd(&["status"]).await;
    let words = printed(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(unencrypted), "{words}");
    let doctor = world.aditd(&["doctor", "--json"]).await;
    assert!(doctor.stdout.contains("`far` at"), "{}", doctor.stdout);
}
