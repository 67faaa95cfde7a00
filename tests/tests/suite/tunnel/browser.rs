//! Web pages in a real browser, and the local address of `adit up`: a page of the internet must not
//! use the GPU of who looks at it.

use std::time::Duration;

use serde_json::Value;
use tests::{
    browser::Chromium,
    ollama::Options,
    world::{Up, World},
};

use crate::PROGRAM;

const BODY: &str = "const body = JSON.stringify({ model: 'stand-in', prompt: 'x' })";

/// `None` without a browser.
async fn start() -> Option<(World, Up, Chromium)> {
    let chromium = Chromium::find()?;
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let world = World::start_with(PROGRAM, options, &[]).await;
    let up = world.up("laptop").await;
    Some((world, up, chromium))
}

#[tokio::test]
async fn a_page_whose_name_leads_to_the_local_address_later_gets_nothing() {
    let Some((world, up, chromium)) = start().await else { return };
    // To the browser these are requests to the page's own site: no rule of CORS holds.
    let script = format!(
        r"{BODY}
const ask = async (path, init) => {{
  const answer = await fetch(path, init)
  return {{ status: answer.status, text: await answer.text() }}
}}
return [
  await ask('/api/tags'),
  await ask('/api/generate', {{ method: 'POST', body }}),
  await ask('/api/delete', {{ method: 'DELETE', body }}),
]"
    );
    let mut page = chromium.open("evil.example", &script, Some(up.address)).await;
    let told = page.tells().await;
    let answers = told.as_array().expect("three answers");
    assert_eq!(answers.len(), 3, "{told}");
    for answer in answers {
        assert_eq!(answer["status"], 403, "{answer}");
        let text = answer["text"].as_str().unwrap_or_default();
        assert!(text.contains("this is not `evil.example`"), "{answer}");
    }
    assert_eq!(world.ollama.counters().started, 0);
    // By a name of this machine the same page would get an answer.
    let script = "return (await fetch('/api/tags')).status";
    let mut page = chromium.open("localhost", script, Some(up.address)).await;
    assert_eq!(page.tells().await, 200);
}

#[tokio::test]
async fn a_page_of_another_site_reads_nothing_and_starts_nothing_at_the_local_address() {
    let Some((world, up, chromium)) = start().await else { return };
    let script = format!(
        r"{BODY}
const local = 'http://localhost:{}'
const tried = (answer) => answer.then((it) => `${{it.type}} ${{it.status}}`, (error) => error.name)
const json = {{ 'Content-Type': 'application/json' }}
return [
  await tried(fetch(`${{local}}/api/tags`)),
  await tried(fetch(`${{local}}/api/generate`, {{ method: 'POST', headers: json, body }})),
  await tried(fetch(`${{local}}/api/delete`, {{ method: 'DELETE', body }})),
  await tried(fetch(`${{local}}/api/generate`, {{ method: 'POST', body }})),
  await tried(fetch(`${{local}}/api/generate`, {{ method: 'POST', body, mode: 'no-cors' }})),
]",
        up.address.port()
    );
    let mut page = chromium.open("evil.example", &script, None).await;
    let tried = page.tells().await;
    let wanted: Value = ["TypeError", "TypeError", "TypeError", "TypeError", "opaque 0"].into();
    assert_eq!(tried, wanted, "the last one has reached the address");
    assert_eq!(world.ollama.counters().started, 0);
}

#[tokio::test]
async fn a_page_of_this_machine_reads_a_streamed_answer_by_ollamas_own_rules() {
    let Some((world, up, chromium)) = start().await else { return };
    let script = format!(
        r"const body = JSON.stringify({{ model: 'stand-in', prompt: 'x', options: {{ num_predict: 8 }} }})
const headers = {{ 'Content-Type': 'application/json' }}
const answer = await fetch('http://localhost:{}/api/generate', {{ method: 'POST', headers, body }})
const [reader, decoder] = [answer.body.getReader(), new TextDecoder()]
for (let text = ''; ; ) {{
  const {{ done, value }} = await reader.read()
  if (done) return {{ status: answer.status, type: answer.type, text }}
  text += decoder.decode(value, {{ stream: true }})
}}",
        up.address.port()
    );
    let mut page = chromium.open("localhost", &script, None).await;
    let told = page.tells().await;
    assert_eq!((&told["status"], &told["type"]), (&200.into(), &"cors".into()), "{told}");
    let lines = told["text"].as_str().unwrap_or_default().lines().count();
    assert_eq!(lines, 9, "{told}");
    assert_eq!(world.ollama.counters().completed, 1);
}
