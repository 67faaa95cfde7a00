//! The routes that Ollama shares with OpenAI, `/v1/…`.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::{StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App,
    generation::{Generation, Wish},
    reply::{self, Reply, Source},
    request::{self, Refusal},
};

/// 2026-01-01, the same date as in [`super::native`].
const CREATED: u64 = 1_767_225_600;

#[derive(Deserialize)]
struct Ask {
    #[serde(default)]
    model: String,
    #[serde(default)]
    messages: Value,
    #[serde(default)]
    prompt: Value,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    seed: Option<i64>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Ask {
    fn for_model(body: &[u8], ours: &str) -> Result<Self, Refusal> {
        let ask: Self = request::parse(body)?;
        request::check_model(&ask.model, ours)?;
        Ok(ask)
    }

    fn wish(&self) -> Wish {
        Wish { seed: self.seed, tokens: self.max_completion_tokens.or(self.max_tokens) }
    }
}

/// The difference between the two kinds of completion.
struct Shape {
    id: &'static str,
    whole: &'static str,
    chunk: &'static str,
    /// Puts text where a whole answer has it.
    in_whole: fn(&str) -> Value,
    /// Puts text where a chunk has it.
    in_chunk: fn(&str) -> Value,
}

const CHAT: Shape = Shape {
    id: "chatcmpl-1",
    whole: "chat.completion",
    chunk: "chat.completion.chunk",
    in_whole: |text| json!({ "index": 0, "message": { "role": "assistant", "content": text } }),
    in_chunk: |text| json!({ "index": 0, "delta": { "role": "assistant", "content": text } }),
};

const TEXT: Shape = Shape {
    id: "cmpl-1",
    whole: "text_completion",
    chunk: "text_completion",
    in_whole: |text| json!({ "index": 0, "text": text }),
    in_chunk: |text| json!({ "index": 0, "text": text }),
};

/// `POST /v1/chat/completions`
pub(super) async fn chat(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    Ok(match Ask::for_model(&body, &app.options.model) {
        Ok(ask) => complete(app, &ask, &ask.messages, &CHAT).await,
        Err(refusal) => refuse(&refusal),
    })
}

/// `POST /v1/completions`
pub(super) async fn completions(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    Ok(match Ask::for_model(&body, &app.options.model) {
        Ok(ask) => complete(app, &ask, &ask.prompt, &TEXT).await,
        Err(refusal) => refuse(&refusal),
    })
}

async fn complete(app: &App, ask: &Ask, prompt: &Value, shape: &'static Shape) -> Reply {
    let generation = Generation::new(ask.wish(), &app.options, app.tally.generation());
    let usage = usage(request::count_words(prompt) as u64, ask.wish().count());
    if ask.stream {
        let include_usage =
            ask.stream_options.as_ref().is_some_and(|options| options.include_usage);
        let answer = Answer {
            model: ask.model.clone(),
            shape,
            end_reason: ask.wish().end_reason(),
            usage: include_usage.then_some(usage),
            generation: Some(generation),
        };
        return reply::stream("text/event-stream", answer).await;
    }
    let text = generation.text().await;
    let choice = (shape.in_whole)(&text);
    let mut answer =
        envelope(shape.whole, shape, &ask.model, &[finished(choice, ask.wish().end_reason())]);
    answer["usage"] = usage;
    reply::json(&answer)
}

fn envelope(object: &str, shape: &Shape, model: &str, choices: &[Value]) -> Value {
    json!({
        "id": shape.id,
        "object": object,
        "created": CREATED,
        "model": model,
        "system_fingerprint": "fp_ollama",
        "choices": choices,
    })
}

fn finished(mut choice: Value, reason: impl Into<Value>) -> Value {
    choice["finish_reason"] = reason.into();
    choice
}

fn usage(prompt: u64, completion: u64) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt.saturating_add(completion),
    })
}

/// A streamed answer: an event per token, then why it ended, the usage if the request asks for it,
/// and `[DONE]`.
struct Answer {
    model: String,
    shape: &'static Shape,
    end_reason: &'static str,
    usage: Option<Value>,
    generation: Option<Generation>,
}

impl Answer {
    fn event(&self, choices: &[Value]) -> Value {
        envelope(self.shape.chunk, self.shape, &self.model, choices)
    }

    fn end(&self) -> Bytes {
        let last = self.event(&[finished((self.shape.in_chunk)(""), self.end_reason)]);
        let usage = self.usage.as_ref().map(|usage| {
            let mut event = self.event(&[]);
            event["usage"] = usage.clone();
            format!("data: {event}\n\n")
        });
        format!("data: {last}\n\n{}data: [DONE]\n\n", usage.unwrap_or_default()).into()
    }
}

impl Source for Answer {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(generation) = &mut self.generation else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match ready!(generation.poll_token(cx)) {
            Some(token) => {
                let choice = finished((self.shape.in_chunk)(&token), Value::Null);
                format!("data: {}\n\n", self.event(&[choice])).into()
            }
            None => {
                self.generation = None;
                self.end()
            }
        }))
    }
}

/// `POST /v1/embeddings`
pub(super) async fn embeddings(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    let ask = match Ask::for_model(&body, &app.options.model) {
        Ok(ask) => ask,
        Err(refusal) => return Ok(refuse(&refusal)),
    };
    let embeddings = request::texts(&ask.input).into_iter().map(request::embedding).enumerate();
    let data: Vec<_> =
        embeddings.map(|(index, embedding)| json!({ "object": "embedding", "index": index, "embedding": embedding })).collect();
    let words = request::count_words(&ask.input);
    Ok(reply::json(&json!({
        "object": "list",
        "data": data,
        "model": ask.model,
        "usage": { "prompt_tokens": words, "total_tokens": words },
    })))
}

/// `GET /v1/models`
pub(super) fn models(app: &App) -> Reply {
    let model = json!({
        "id": app.options.model,
        "object": "model",
        "created": CREATED,
        "owned_by": "library",
    });
    reply::json(&json!({ "object": "list", "data": [model] }))
}

/// An error in the format of `/v1`.
fn refuse(refusal: &Refusal) -> Reply {
    let kind = match refusal.status {
        StatusCode::NOT_FOUND => "not_found_error",
        _ => "invalid_request_error",
    };
    let error = json!({ "message": refusal.message, "type": kind, "param": null, "code": null });
    reply::with_status(refusal.status, reply::json(&json!({ "error": error })))
}
