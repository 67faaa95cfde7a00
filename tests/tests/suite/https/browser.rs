//! Web pages in a real browser: it asks for the rules of CORS, and keeps them.

use std::time::Duration;

use rcgen::PublicKeyData;
use serde_json::Value;
use tempfile::TempDir;
use tests::{browser::Chromium, cli_assert::assert_ok, ollama::Options, world::SOON};

use super::{Https, own_certificate};

const CONFIG: &str = "[https]\norigins = [\"http://chat.example\"]\n";
/// What the scripts share: a request that a browser asks about first, and a reader of a stream.
const SHARED: &str = r"
const messages = [{ role: 'user', content: 'Why?' }]
const ask = (key, tokens) => fetch(`${server}/v1/chat/completions`, {
  method: 'POST',
  headers: { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json' },
  body: JSON.stringify({ model: 'stand-in', messages, stream: true, max_tokens: tokens }),
})
const read = async (answer, third) => {
  const [reader, decoder] = [answer.body.getReader(), new TextDecoder()]
  for (let parts = 0, text = ''; ; parts += 1) {
    const { done, value } = await reader.read()
    if (done) return { parts, text }
    if (parts === 3) await third?.()
    text += decoder.decode(value, { stream: true })
  }
}
";

/// A server with a certificate that the browser trusts, and a key for it; `None` without a browser.
async fn start() -> Option<(Https, Chromium, String, TempDir)> {
    let chromium = Chromium::find()?;
    let dir = tempfile::tempdir().expect("a directory");
    let pair = own_certificate(dir.path());
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let chromium = chromium.trusts(&pair.subject_public_key_info());
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let flags =
        ["--tls-cert", cert.to_str().expect("a path"), "--tls-key", key.to_str().expect("a path")];
    let https = Https::start_with(options, CONFIG, &flags).await;
    let key = https.key("page", &[]).await;
    Some((https, chromium, key, dir))
}

fn script(https: &Https, key: &str, then: &str) -> String {
    let server = https.url("");
    format!("const server = '{server}'\nconst key = '{key}'\n{SHARED}\n{then}")
}

#[tokio::test]
async fn a_listed_page_reads_a_streamed_answer_and_sees_it_cut_when_its_key_is_revoked() {
    let Some((https, chromium, key, _dir)) = start().await else { return };
    // The preflights have no key, and the page reads the refusal of a wrong key.
    let then = r"
const whole = await ask(key, 8)
await tell({ status: whole.status, ...(await read(whole)) })
const wrong = await ask('wrong', 8)
await tell({ status: wrong.status, text: await wrong.text() })
const endless = await ask(key, -1)
const cut = await read(endless, () => tell('begun')).catch((error) => error.name)
return { cut, after: (await ask(key, 8)).status }
";
    let mut page = chromium.open("chat.example", &script(&https, &key, then), None).await;
    let whole = page.tells().await;
    assert_eq!(whole["status"], 200, "{whole}");
    let text = whole["text"].as_str().unwrap_or_default();
    assert!(text.trim_end().ends_with("[DONE]"), "{whole}");
    let wrong = page.tells().await;
    assert_eq!(wrong["status"], 401, "{wrong}");
    assert!(wrong["text"].as_str().is_some_and(|text| text.contains("not valid")), "{wrong}");
    assert_eq!(page.tells().await, "begun");
    assert_ok(&https.world.aditd(&["key", "revoke", "page"]).await);
    let end = page.tells().await;
    assert_eq!((&end["cut"], &end["after"]), (&"TypeError".into(), &401.into()), "{end}");
    let stopped = https.world.ollama.wait_for(|now| now.running == 0, SOON).await;
    assert_eq!(stopped.expect("it stops").cancelled, 1);
}

#[tokio::test]
async fn a_page_that_is_not_listed_reads_nothing_and_starts_nothing_even_with_a_key() {
    let Some((https, chromium, key, _dir)) = start().await else { return };
    // The last two need no preflight: the browser sends them, and keeps the answer from the page.
    let then = r"
const tried = (answer) => answer.then((it) => `${it.type} ${it.status}`, (error) => error.name)
const body = JSON.stringify({ model: 'stand-in', prompt: 'x' })
const simple = { method: 'POST', credentials: 'include', body }
return [
  await tried(ask(key, 8)),
  await tried(fetch(`${server}/api/tags`, { headers: { 'X-Api-Key': key } })),
  await tried(fetch(`${server}/api/generate`, simple)),
  await tried(fetch(`${server}/api/generate`, { ...simple, mode: 'no-cors' })),
]
";
    let mut page = chromium.open("evil.example", &script(&https, &key, then), None).await;
    let tried = page.tells().await;
    let wanted: Value = ["TypeError", "TypeError", "TypeError", "opaque 0"].into();
    assert_eq!(tried, wanted, "the last one has reached the server");
    assert_eq!(https.world.ollama.counters().started, 0);
}
