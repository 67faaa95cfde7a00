//! What applications and their users see of several services.

use tests::{cli_assert::document, ollama::Options, raw, world::World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{OpenAi, address_of, echo, get, post, printed, soon, status, up};
use crate::{
    PROGRAM,
    readme::json::{By, Page},
};

#[tokio::test]
async fn each_service_has_its_own_address_by_one_enrollment_and_is_shown() {
    let (vllm, (db, _echo)) = (OpenAi::start().await, echo().await);
    let config = format!("{}[services.db]\nupstream = 'tcp://{db}'\n", vllm.table("vllm"));
    let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
    let device = world.device_as("laptop", "infer").await;
    let (up, address) = up(&device, &["vllm=localhost:0", "db=127.0.0.1:0"]).await;

    let models = raw::exchange(address, &get("/v1/models")).await;
    assert!(models.contains("\"m1\""), "{models}");
    let chat = post("/v1/chat/completions", r#"{"model":"m1","messages":[]}"#);
    let answer = raw::exchange(address, &chat).await;
    assert!(status(&answer) == 200 && answer.contains("\"hi\""), "{answer}");
    let ollama = raw::exchange(up.address, &get("/api/version")).await;
    assert!(ollama.contains("version"), "{ollama}");
    assert_eq!(vllm.seen(), ["GET /v1/models HTTP/1.1", "POST /v1/chat/completions HTTP/1.1"]);
    let mut tcp = raw::connect(address_of(&device, "db").await).await;
    tcp.write_all(b"\x00\xffany bytes").await.expect("sent");
    let mut back = [0; 11];
    soon("an echo", tcp.read_exact(&mut back)).await.expect("read");
    assert_eq!(&back, b"\x00\xffany bytes");

    let shown = device.status().await;
    let kinds: Vec<_> =
        shown["services"].as_array().expect("a list").iter().map(|it| &it["kind"]).collect();
    assert_eq!(kinds, ["tcp", "openai"]);
    let text = device.adit(&["status"], "").await;
    assert!(printed(&text).contains(&format!("vllm (openai) at http://{address}")), "{text:?}");
    let listed = device.adit(&["ls"], "").await;
    let line = format!("default, vllm: http://{address}\n  m1\n  m2");
    assert!(printed(&listed).contains(&line), "{listed:?}");
    let listed = device.adit(&["list"], "").await;
    assert!(printed(&listed).contains(&format!("vllm={address}")), "{listed:?}");
    let mut page = Page::read();
    for command in ["ls", "list"] {
        let told = device.adit(&[command, "--json"], "").await;
        page.has(&format!("adit {command}"), &document(&told));
    }
    page.objects_are_printed(By::Services);
    let there = world.status().await;
    assert_eq!(there["services"][2]["upstream"], format!("openai://127.0.0.1:{}", vllm.port()));
    let doctor = world.aditd(&["doctor", "--json"]).await;
    assert!(doctor.stdout.contains("`vllm` at openai://127.0.0.1:"), "{}", doctor.stdout);
    let doctor = device.adit(&["doctor", "--json"], "").await;
    assert!(doctor.stdout.contains("`vllm` at openai://127.0.0.1:"), "{}", doctor.stdout);
}

#[tokio::test]
async fn a_service_that_the_server_does_not_have_is_told_with_those_that_it_has() {
    let vllm = OpenAi::start().await;
    let world =
        World::start_configured(PROGRAM, Options::default(), &[], &vllm.table("vllm")).await;
    let device = world.device_as("laptop", "infer").await;
    // A device of its own: the tunnel of a program that did not start is there for a while.
    let other = world.device_as("other", "infer").await;
    let up = ["up", "--listen", "localhost:0", "--service", "whisper=localhost:0"];
    let run = ["--service", "whisper", "--", "true"];
    for refused in [device.adit(&up, "").await, other.run(&run).await] {
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("no service `whisper`"), "{}", refused.stderr);
        assert!(refused.stderr.contains("it has: `ollama`, `vllm`"), "{}", refused.stderr);
        // The server was told of the end: what watches over this process had nothing to say.
        assert!(!refused.stderr.contains("without a word"), "{}", refused.stderr);
    }

    // What the server's owner changes does not keep Ollama from the applications.
    let file = world.scratch("adit.toml");
    std::fs::write(&file, "[services]\nwhisper = \"localhost:0\"\n").expect("written");
    let up = device.up(&["--config", file.to_str().expect("a path")]).await;
    let ollama = raw::exchange(up.address, &get("/api/version")).await;
    assert_eq!(status(&ollama), 200, "{ollama}");
    let address = address_of(&device, "whisper").await;
    let told = raw::exchange(address, &get("/v1/models")).await;
    assert_eq!(status(&told), 502, "{told}");
    assert!(told.contains("it has: `ollama`, `vllm`"), "{told}");
    let shown = device.adit(&["status"], "").await;
    assert!(printed(&shown).contains("whisper: the server does not have it"), "{shown:?}");
}

#[tokio::test]
async fn a_program_gets_the_service_that_it_names_with_and_without_a_running_tunnel() {
    let vllm = OpenAi::start().await;
    let world =
        World::start_configured(PROGRAM, Options::default(), &[], &vllm.table("vllm")).await;
    let script = "printf 'url=%s host=%s' \"$OPENAI_BASE_URL\" \"$OLLAMA_HOST\"; \
                  exec 3<>/dev/tcp/${ADIT_ADDRESS%:*}/${ADIT_ADDRESS#*:}; \
                  printf 'GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3; cat <&3";
    let run = ["--service", "vllm", "--", "bash", "-c", script];
    for (name, has_tunnel) in [("without", false), ("with", true)] {
        let device = world.device_as(name, "infer").await;
        let running = match has_tunnel {
            false => None,
            true => Some(up(&device, &["vllm=localhost:0"]).await),
        };
        let ended = device.run(&run).await;
        assert!(printed(&ended).starts_with("url=http://127.0.0.1:"), "{ended:?}");
        assert!(ended.stdout.contains("/v1 host="), "{ended:?}");
        assert!(ended.stdout.contains("{\"path\":\"/health\"}"), "{ended:?}");
        if let Some((_up, address)) = &running {
            let exported = device.adit(&["env", "--service", "vllm", "--shell", "sh"], "").await;
            let line = format!("export OPENAI_BASE_URL='http://{address}/v1'");
            assert!(printed(&exported).contains(&line), "{exported:?}");
            let unknown = device.adit(&["env", "--service", "other"], "").await;
            assert_eq!(unknown.code, Some(2), "{unknown:?}");
            assert!(unknown.stderr.contains("it has: `vllm`"), "{unknown:?}");
        }
    }
}
