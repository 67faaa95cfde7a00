//! Web pages: those of the list may use the server, by the rules of CORS.

use tests::ollama::Options;

use super::Https;

const CONFIG: &str =
    "max_in_flight = 1\nqueue_header = true\n[https]\norigins = [\"https://chat.example.com\"]\n";
const LISTED: &str = "Origin: https://chat.example.com";
const OTHER: &str = "Origin: https://evil.example.com";

#[tokio::test]
async fn a_preflight_of_a_listed_page_is_answered_without_a_key_and_of_another_it_is_refused() {
    let https = Https::start(Options::default(), CONFIG).await;
    let preflight = |origin| {
        let args = [
            "--request",
            "OPTIONS",
            "--header",
            origin,
            "--header",
            "Access-Control-Request-Method: POST",
            "--header",
            "Access-Control-Request-Headers: authorization,content-type",
        ];
        let https = &https;
        async move { https.curl("/v1/chat/completions", &args).await }
    };
    let got = preflight(LISTED).await;
    assert_eq!(got.status, 204, "{got:?}");
    let headers = got.headers.to_ascii_lowercase();
    for line in [
        "access-control-allow-origin: https://chat.example.com",
        "access-control-allow-headers: authorization,content-type",
        "vary: origin",
    ] {
        assert!(headers.contains(line), "{got:?}");
    }
    let refused = preflight(OTHER).await;
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(
        !refused.headers.to_ascii_lowercase().contains("access-control-allow-origin"),
        "{refused:?}"
    );
    assert_eq!(https.world.ollama.counters().started, 0);
}

#[tokio::test]
async fn a_listed_page_may_read_answers_and_refusals_and_another_gets_neither() {
    let https = Https::start(Options::default(), CONFIG).await;
    let key = https.key("page", &[]).await;
    let allows = |headers: &str| {
        headers
            .to_ascii_lowercase()
            .contains("access-control-allow-origin: https://chat.example.com\r\n")
    };
    let served = https.with_key(&key, "/api/tags", &["--header", LISTED]).await;
    assert!(served.status == 200 && allows(&served.headers), "{served:?}");
    let denied =
        https.with_key(&key, "/api/delete", &["--request", "DELETE", "--header", LISTED]).await;
    assert!(denied.status == 403 && allows(&denied.headers), "{denied:?}");
    let unknown = https.curl("/api/tags", &["--header", LISTED]).await;
    assert!(unknown.status == 401 && allows(&unknown.headers), "{unknown:?}");
    // Even with the key: a browser may send a password that it remembers, for any page.
    let other = https.with_key(&key, "/api/generate", &["--header", OTHER, "--data", "{}"]).await;
    assert_eq!(other.status, 403, "{other:?}");
    let body = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":2}}"#;
    let made = https.with_key(&key, "/api/generate", &["--header", LISTED, "--data", body]).await;
    assert!(made.status == 200 && allows(&made.headers), "{made:?}");
    assert!(made.headers.to_ascii_lowercase().contains("x-adit-queue: position="), "{made:?}");
    let own = format!("Origin: {}", https.url("").trim_end_matches('/'));
    assert_eq!(https.with_key(&key, "/api/tags", &["--header", &own]).await.status, 200);
}
