//! Bodies that must be read before they are checked, because the device may use only some models.

use tests::{raw, world::SOON};
use tokio::io::AsyncWriteExt;

use super::limits::{start, told, up};

#[tokio::test]
async fn unfinished_bodies_leave_memory_for_other_devices_and_another_body_waits() {
    let world = start("[roles.infer]\nmodels = ['stand-in']").await;
    let (script, person) = (up(&world, "script").await, up(&world, "person").await);
    // One device gets memory for three of them; each is held open one byte before its end.
    const LONG: usize = 31 << 20;
    const OPEN: &str = r#"{"prompt":""#;
    const END: &str = r#"","model":"other"}"#;
    let head =
        format!("POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LONG}\r\n\r\n");
    let text = vec![b'x'; LONG - OPEN.len() - END.len()];
    let beginning = std::sync::Arc::new([head.as_bytes(), OPEN.as_bytes(), &text].concat());
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let beginning = beginning.clone();
        held.spawn(async move {
            let mut app = raw::connect(script.address).await;
            app.write_all(&beginning).await.expect("sent");
            app
        });
    }
    let mut held = held.join_all().await;
    // A fourth body waits for memory; another device's does not.
    let mut waits = raw::connect(script.address).await;
    let sent = waits.write_all(&beginning);
    tokio::pin!(sent);
    let short = raw::generate(1, 1);
    let answer = tokio::select! {
        _ = &mut sent => panic!("it was read"),
        answer = raw::exchange(person.address, &short) => answer,
    };
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // The fourth is read and answered when one of the others has ended.
    let mut one = held.pop().expect("one");
    one.write_all(END.as_bytes()).await.expect("sent");
    let (answer, _) = raw::read_to_end(&mut one).await;
    assert!(answer.starts_with(b"HTTP/1.1 403 "), "{}", String::from_utf8_lossy(&answer));
    tokio::time::timeout(SOON, sent).await.expect("read").expect("sent");
    waits.write_all(END.as_bytes()).await.expect("sent");
    let (answer, _) = raw::read_to_end(&mut waits).await;
    assert!(answer.starts_with(b"HTTP/1.1 403 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_content_length_above_the_limit_is_refused_at_the_head() {
    let config = "[roles.infer]\nmodels = ['stand-in']\n[roles.infer.limits]\nbody = '1MiB'";
    let world = start(config).await;
    let up = up(&world, "laptop").await;
    let mut app = raw::connect(up.address).await;
    let head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 32505856\r\n\r\n";
    app.write_all(head.as_bytes()).await.expect("sent");
    let (answer, _) = raw::read_to_end(&mut app).await;
    told(&String::from_utf8(answer).expect("text"), "413");
    // A body of unknown length is refused when it is too long.
    let mut app = raw::connect(up.address).await;
    let head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("120000\r\n{{\"prompt\":\"{}", "x".repeat(0x120000 - 11));
    app.write_all(format!("{head}{chunk}").as_bytes()).await.expect("sent");
    let (answer, _) = raw::read_to_end(&mut app).await;
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
}

/// A prompt with an image of this many bytes; the model is the first or the last field.
fn image(bytes: usize, model_first: bool, chunked: bool) -> Vec<u8> {
    let image = format!(r#""messages":[{{"content":"x","images":["{}"]}}]"#, "A".repeat(bytes));
    let model = r#""model":"stand-in","options":{"num_predict":1}"#;
    let (first, second) = if model_first { (model, &*image) } else { (&*image, model) };
    let json = format!("{{{first},{second}}}");
    let head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    if chunked {
        let length = json.len();
        return format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{json}\r\n0\r\n\r\n"
        )
        .into_bytes();
    }
    format!("{head}Content-Length: {}\r\n\r\n{json}", json.len()).into_bytes()
}

#[tokio::test]
async fn prompts_with_images_wait_for_memory_and_pass() {
    let world = start("[roles.infer]\nmodels = ['stand-in']").await;
    let up = up(&world, "laptop").await;
    let mut asked = tokio::task::JoinSet::new();
    let mib = 1 << 20;
    for (bytes, model_first, chunked, times) in [
        (49 * mib, true, false, 1),
        (34 * mib, false, false, 1),
        (20 * mib, false, false, 2),
        (20 * mib, false, true, 1),
    ] {
        let request = std::sync::Arc::new(image(bytes, model_first, chunked));
        for _ in 0..times {
            let request = request.clone();
            asked.spawn(async move {
                let mut app = raw::connect(up.address).await;
                app.write_all(&request).await.expect("sent");
                raw::read_to_end(&mut app).await.0
            });
        }
    }
    for answer in asked.join_all().await {
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_second_model_after_the_first_kilobytes_is_refused_before_the_service_begins() {
    let config = "[roles.infer]\nmodels = ['stand-in']";
    let world = start(config).await;
    let up = up(&world, "laptop").await;
    for second in [r#""model":"other""#, r#""MODEL":"other""#, r#""mode\u006c":"other""#] {
        let json = format!(r#"{{"model":"stand-in","prompt":"{}",{second}}}"#, "x".repeat(300_000));
        let answer = raw::exchange(up.address, &raw::post("/api/generate", &json)).await;
        assert!(told(&answer, "400").contains("model name is ambiguous"), "{answer}");
    }
    assert_eq!(world.ollama.counters().started, 0);
}
