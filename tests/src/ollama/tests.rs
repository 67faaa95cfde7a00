use std::io::Read;

use tokio::io::AsyncReadExt;

use super::*;

const SOON: Duration = Duration::from_secs(5);
const ENDLESS: &str = r#"{"model":"stand-in","prompt":"hi","options":{"num_predict":-1}}"#;

type Tested = Result<(), Box<dyn std::error::Error>>;

async fn started() -> io::Result<Ollama> {
    Ollama::start(Options { token_interval: Duration::from_millis(1), ..Options::default() }).await
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
}

async fn send(ollama: &Ollama, request: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(ollama.addr()).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// Reads until `end` was received.
async fn read_to(stream: &mut TcpStream, end: &str) -> io::Result<String> {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn the_default_answer_says_that_it_is_a_stand_in() -> Tested {
    let ollama = started().await?;
    let body = r#"{"model":"stand-in","prompt":"hi","stream":false}"#;
    let mut stream = send(&ollama, &post("/api/generate", body)).await?;
    let answer = read_to(&mut stream, "}").await?;
    assert!(answer.contains("stand-in for Ollama, not a model"), "{answer}");
    assert!(answer.contains("so that you can try the tunnel.\""), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_half_close_cancels_a_stream() -> Tested {
    let ollama = started().await?;
    let mut stream = send(&ollama, &post("/api/generate", ENDLESS)).await?;
    read_to(&mut stream, "\"done\":false").await?;
    stream.shutdown().await?;
    let cancelled = ollama.wait_for(|now| now.cancelled == 1 && now.running == 0, SOON).await;
    assert!(cancelled.is_ok(), "{cancelled:?}");
    Ok(())
}

#[tokio::test]
async fn a_reset_cancels_a_generation_that_has_sent_nothing() -> Tested {
    let ollama =
        Ollama::start(Options { load_time: Duration::from_secs(3600), ..Options::default() })
            .await?;
    let stream = send(&ollama, &post("/api/generate", ENDLESS)).await?;
    let running = ollama.wait_for(|now| now.running == 1, SOON).await;
    assert!(running.is_ok(), "{running:?}");
    stream.set_zero_linger()?;
    drop(stream);
    let cancelled = ollama.wait_for(|now| now.cancelled == 1, SOON).await;
    assert!(cancelled.is_ok(), "{cancelled:?}");
    Ok(())
}

#[tokio::test]
async fn an_unnecessary_upload_is_answered_before_its_body() -> Tested {
    let ollama = started().await?;
    let head =
        "POST /api/blobs/sha256:x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    let mut stream = send(&ollama, head).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    // The socket lingers: data under way causes no reset that could lose the answer.
    stream.write_all(b"late").await?;
    Ok(())
}

#[tokio::test]
async fn stop_frees_the_port() -> Tested {
    let ollama = started().await?;
    let addr = ollama.addr();
    let mut stream = send(&ollama, &post("/api/generate", ENDLESS)).await?;
    read_to(&mut stream, "\"done\":false").await?;
    ollama.stop().await;
    Ollama::start(Options { listen: addr, ..Options::default() }).await?;
    Ok(())
}

#[test]
fn seeded_bytes_do_not_depend_on_how_they_are_read() {
    let mut whole = [0; 1000];
    seeded_bytes(7).fill(&mut whole);
    let mut pieces = Vec::new();
    let mut source = seeded_bytes(7);
    for size in [1, 7, 8, 9, 64, 911] {
        let mut piece = vec![0; size];
        source.read_exact(&mut piece).expect("an endless source");
        pieces.extend(piece);
    }
    assert_eq!(pieces, whole);
    let mut other = [0; 1000];
    seeded_bytes(8).fill(&mut other);
    assert_ne!(other, whole);
}
