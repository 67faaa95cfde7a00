//! Who may use which service, and that models and limits hold for all of them.

use tests::{ollama::Options, raw, world::World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{OpenAi, echo, get, post, printed, soon, status, up};
use crate::PROGRAM;

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_role_uses_the_services_that_it_names_and_a_change_cuts_what_runs() {
    let (vllm, (db, _echo)) = (OpenAi::start().await, echo().await);
    let tables = format!("{}[services.db]\nupstream = 'tcp://{db}'\n", vllm.table("vllm"));
    let world = World::start_configured(PROGRAM, Options::default(), &[], &tables).await;
    let device = world.device_as("laptop", "infer").await;
    let (_up, address) = up(&device, &["vllm=localhost:0", "db=localhost:0"]).await;
    let db = super::address_of(&device, "db").await;

    let endless = post(CHAT, r#"{"model":"m1","stream":true,"x":"endless"}"#);
    let mut running = raw::connect(address).await;
    running.write_all(endless.as_bytes()).await.expect("sent");
    soon("a first byte", running.read_u8()).await.expect("read");
    let mut echoed = raw::connect(db).await;
    echoed.write_all(b"x").await.expect("sent");
    soon("an echo", echoed.read_u8()).await.expect("read");

    let closed = format!("{tables}[roles.infer]\nservices = ['ollama']\n");
    std::fs::write(world.config(), closed).expect("written");
    printed(&world.aditd(&["reload"]).await);
    // It has no end of its own.
    let _ = soon("the end of the answer", running.read_to_end(&mut Vec::new())).await;
    let cut = soon("the end of the stream", echoed.read(&mut [0])).await;
    assert!(cut.as_ref().is_ok_and(|n| *n == 0) || cut.is_err(), "{cut:?}");

    let told = raw::exchange(address, &get("/v1/models")).await;
    assert_eq!(status(&told), 403, "{told}");
    assert!(told.contains("may not use the service `vllm`, only `ollama`"), "{told}");
    assert!(told.contains("`services` of `[roles.infer]`"), "{told}");
}

#[tokio::test]
async fn routes_models_and_tokens_hold_for_an_openai_service_as_for_ollama() {
    let vllm = OpenAi::start().await;
    let config = format!(
        "{}[devices.laptop]\nmodels = ['m1']\n[devices.laptop.limits]\ntokens_per_day = 30\n",
        vllm.table("vllm")
    );
    let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
    let device = world.device_as("laptop", "infer").await;
    let (_up, address) = up(&device, &["vllm=localhost:0"]).await;
    let ask = async |request: String| raw::exchange(address, &request).await;
    for (request, says) in [
        (get("/metrics"), "that needs the role `admin`"),
        (post("/api/generate", "{}"), "that needs the role `admin`"),
        (post(CHAT, r#"{"model":"m2"}"#), "may not use the model `m2`, only `m1`"),
        (post("/tokenize", r#"{"prompt":"x"}"#), "may use only `m1`, and this request names none"),
    ] {
        let told = ask(request.clone()).await;
        assert_eq!(status(&told), 403, "{request}: {told}");
        assert!(told.contains(says), "{request}: {told}");
    }
    let ambiguous = ask(post(CHAT, r#"{"Model":"m1","model":"m2"}"#)).await;
    assert_eq!(status(&ambiguous), 400, "{ambiguous}");
    assert!(vllm.seen().is_empty(), "{:?}", vllm.seen());

    assert_eq!(status(&ask(post("/tokenize", r#"{"model":"m1","prompt":"x"}"#)).await), 200);
    // 16 tokens, then 16 more in a stream: the day's 30 are used up.
    assert_eq!(status(&ask(post(CHAT, r#"{"model":"m1"}"#)).await), 200);
    let streamed = ask(post(CHAT, r#"{"model":"m1","stream":true}"#)).await;
    assert!(status(&streamed) == 200 && streamed.contains("[DONE]"), "{streamed}");
    let lines = world.audit_has(2, |line| line["path"] == CHAT && line["status"] == 200).await;
    for line in lines.iter().filter(|line| line["path"] == CHAT && line["status"] == 200) {
        assert_eq!(line["service"], "vllm", "{line}");
        assert_eq!((&line["tokens_in"], &line["tokens_out"]), (&7.into(), &9.into()), "{line}");
    }
    let told = ask(post(CHAT, r#"{"model":"m1"}"#)).await;
    assert_eq!(status(&told), 429, "{told}");
}
