//! Ollama's own routes, `/api/…`.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App, Options,
    generation::{Generation, Pace, Wish},
    reply::{self, Reply, Source},
    request::{self, Refusal},
};

/// The version of Ollama that is imitated.
pub(super) const VERSION: &str = "0.33.0";

/// A fixed date, so that equal answers do not differ.
const DATE: &str = "2026-01-01T00:00:00.000000000Z";

const DIGEST: &str = "5374616e642d696e20666f72204f6c6c616d612c206e6f742061206d6f64656c";
const SIZE: u64 = 4_096;
const NDJSON: &str = "application/x-ndjson";

#[derive(Deserialize)]
struct Ask {
    #[serde(default)]
    model: String,
    /// The name of `model` in older clients.
    #[serde(default)]
    name: String,
    #[serde(default)]
    prompt: Value,
    #[serde(default)]
    messages: Value,
    #[serde(default)]
    input: Value,
    stream: Option<bool>,
    #[serde(default)]
    options: Option<ModelOptions>,
}

#[derive(Deserialize)]
struct ModelOptions {
    seed: Option<i64>,
    num_predict: Option<i64>,
}

impl Ask {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut ask: Self = request::parse(body)?;
        if ask.model.is_empty() {
            ask.model = std::mem::take(&mut ask.name);
        }
        Ok(ask)
    }

    fn for_model(body: &[u8], ours: &str) -> Result<Self, Refusal> {
        let ask = Self::parse(body)?;
        request::check_model(&ask.model, ours)?;
        Ok(ask)
    }

    fn streams(&self) -> bool {
        self.stream.unwrap_or(true)
    }

    fn wish(&self) -> Wish {
        let options = self.options.as_ref();
        Wish {
            seed: options.and_then(|options| options.seed),
            tokens: options.and_then(|options| options.num_predict),
        }
    }
}

/// `POST /api/generate`
pub(super) async fn generate(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    Ok(match Ask::for_model(&body, &app.options.model) {
        Ok(ask) => complete(app, &ask, &ask.prompt, |text| json!({ "response": text })).await,
        Err(refusal) => refuse(&refusal),
    })
}

/// `POST /api/chat`
pub(super) async fn chat(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    let message = |text: &str| json!({ "message": { "role": "assistant", "content": text } });
    Ok(match Ask::for_model(&body, &app.options.model) {
        Ok(ask) => complete(app, &ask, &ask.messages, message).await,
        Err(refusal) => refuse(&refusal),
    })
}

/// Answers a prompt; `wrap` puts a piece of text where the route has it.
async fn complete(app: &App, ask: &Ask, prompt: &Value, wrap: fn(&str) -> Value) -> Reply {
    let prompt_words = request::count_words(prompt);
    let lines =
        Lines { model: ask.model.clone(), wrap, end: end(&app.options, ask.wish(), prompt_words) };
    if prompt_words == 0 {
        // A request to load the model, with which every chat of the `ollama` command begins.
        return reply::json(&lines.line("", &json!({ "done": true, "done_reason": "load" })));
    }
    let generation = Generation::new(ask.wish(), &app.options, app.tally.generation());
    if ask.streams() {
        let answer = Answer { lines, generation: Some(generation) };
        return reply::stream(NDJSON, answer).await;
    }
    let text = generation.text().await;
    reply::json(&lines.line(&text, &lines.end))
}

/// The fields of an answer's last line; the durations are computed, not measured.
fn end(options: &Options, wish: Wish, prompt_words: usize) -> Value {
    let load = options.load_time.as_nanos();
    let eval = options.token_interval.as_nanos().saturating_mul(u128::from(wish.count()));
    let nanoseconds = |duration: u128| u64::try_from(duration).unwrap_or(u64::MAX);
    json!({
        "done": true,
        "done_reason": wish.end_reason(),
        "total_duration": nanoseconds(load.saturating_add(eval)),
        "load_duration": nanoseconds(load),
        "prompt_eval_count": prompt_words,
        "prompt_eval_duration": 0,
        "eval_count": wish.count(),
        "eval_duration": nanoseconds(eval),
    })
}

/// Makes the lines of one answer.
struct Lines {
    model: String,
    wrap: fn(&str) -> Value,
    end: Value,
}

impl Lines {
    fn line(&self, text: &str, more: &Value) -> Value {
        let mut line = json!({ "model": self.model, "created_at": DATE });
        for part in [&(self.wrap)(text), more] {
            for (name, value) in part.as_object().into_iter().flatten() {
                line[name] = value.clone();
            }
        }
        line
    }
}

/// A streamed answer: a line per token, and a last line with the result.
struct Answer {
    lines: Lines,
    generation: Option<Generation>,
}

impl Source for Answer {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(generation) = &mut self.generation else {
            return Poll::Ready(None);
        };
        let line = match ready!(generation.poll_token(cx)) {
            Some(token) => self.lines.line(&token, &json!({ "done": false })),
            None => {
                self.generation = None;
                self.lines.line("", &self.lines.end)
            }
        };
        Poll::Ready(Some(ndjson(&line)))
    }
}

fn ndjson(line: &Value) -> Bytes {
    format!("{line}\n").into()
}

/// `POST /api/pull`
pub(super) async fn pull(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    let ask = match Ask::parse(&body) {
        Ok(ask) => ask,
        Err(refusal) => return Ok(refuse(&refusal)),
    };
    if !ask.streams() {
        return Ok(reply::json(&json!({ "status": "success" })));
    }
    let digest = format!("sha256:{DIGEST}");
    let layer = format!("pulling {}", &DIGEST[..12]);
    let mut steps = VecDeque::from([json!({ "status": "pulling manifest" })]);
    steps.extend(
        (0..=4).map(|quarter| json!({ "status": layer, "digest": digest, "total": SIZE, "completed": SIZE / 4 * quarter })),
    );
    steps.extend(
        ["verifying sha256 digest", "writing manifest", "success"]
            .map(|status| json!({ "status": status })),
    );
    let pace = Pace::new(&app.options);
    Ok(reply::stream(NDJSON, Steps { steps, pace }).await)
}

/// Progress, one step per tick.
struct Steps {
    steps: VecDeque<Value>,
    pace: Pace,
}

impl Source for Steps {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.steps.is_empty() {
            return Poll::Ready(None);
        }
        ready!(self.pace.poll_tick(cx));
        Poll::Ready(self.steps.pop_front().map(|step| ndjson(&step)))
    }
}

/// `POST /api/embed`
pub(super) async fn embed(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    Ok(match Ask::for_model(&body, &app.options.model) {
        Ok(ask) => {
            let embeddings: Vec<_> =
                request::texts(&ask.input).into_iter().map(request::embedding).collect();
            reply::json(&json!({
                "model": ask.model,
                "embeddings": embeddings,
                "total_duration": 0,
                "load_duration": 0,
                "prompt_eval_count": request::count_words(&ask.input),
            }))
        }
        Err(refusal) => refuse(&refusal),
    })
}

/// `POST /api/show`
pub(super) async fn show(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    Ok(match Ask::for_model(&body, &app.options.model) {
        Ok(_) => reply::json(&json!({
            "license": "",
            "modelfile": format!("# A stand-in for Ollama, not a model\nFROM {}\n", app.options.model),
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": details(),
            "model_info": { "general.architecture": "stand-in", "general.parameter_count": 0 },
            "capabilities": ["completion", "embedding"],
            "modified_at": DATE,
        })),
        Err(refusal) => refuse(&refusal),
    })
}

/// `GET /api/tags`
pub(super) fn tags(app: &App) -> Reply {
    reply::json(&json!({ "models": [{
        "name": app.options.model,
        "model": app.options.model,
        "modified_at": DATE,
        "size": SIZE,
        "digest": DIGEST,
        "details": details(),
    }] }))
}

/// `GET /api/ps`
pub(super) fn running(app: &App) -> Reply {
    reply::json(&json!({ "models": [{
        "name": app.options.model,
        "model": app.options.model,
        "size": SIZE,
        "digest": DIGEST,
        "details": details(),
        "expires_at": DATE,
        "size_vram": 0,
        "context_length": 4096,
    }] }))
}

fn details() -> Value {
    json!({
        "parent_model": "",
        "format": "none",
        "family": "stand-in",
        "families": ["stand-in"],
        "parameter_size": "0B",
        "quantization_level": "none",
    })
}

fn refuse(refusal: &Refusal) -> Reply {
    reply::error(refusal.status, &refusal.message)
}
