//! The route that Ollama shares with Anthropic, `/v1/messages`.

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

#[derive(Deserialize)]
struct Ask {
    #[serde(default)]
    model: String,
    #[serde(default)]
    messages: Value,
    #[serde(default)]
    stream: bool,
    max_tokens: Option<i64>,
}

impl Ask {
    fn for_model(body: &[u8], ours: &str) -> Result<Self, Refusal> {
        let ask: Self = request::parse(body)?;
        request::check_model(&ask.model, ours)?;
        Ok(ask)
    }

    fn wish(&self) -> Wish {
        Wish { seed: None, tokens: self.max_tokens }
    }

    fn message(&self, text: Option<&str>, stop: Value, made: u64) -> Value {
        let content = text.map(|text| json!({ "type": "text", "text": text }));
        json!({
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content.into_iter().collect::<Vec<_>>(),
            "stop_reason": stop,
            "stop_sequence": null,
            "usage": {
                "input_tokens": request::count_words(&self.messages),
                "output_tokens": made,
            },
        })
    }

    fn stop_reason(&self) -> Value {
        if self.max_tokens.is_some() { "max_tokens" } else { "end_turn" }.into()
    }
}

/// `POST /v1/messages`
pub(super) async fn messages(app: &App, body: Incoming) -> Result<Reply, hyper::Error> {
    let body = request::read(body).await?;
    let ask = match Ask::for_model(&body, &app.options.model) {
        Ok(ask) => ask,
        Err(refusal) => return Ok(refuse(&refusal)),
    };
    let generation = Generation::new(ask.wish(), &app.options, app.tally.generation());
    if ask.stream {
        let answer = Answer { ask, begun: false, generation: Some(generation) };
        return Ok(reply::stream("text/event-stream", answer).await);
    }
    let text = generation.text().await;
    Ok(reply::json(&ask.message(Some(&text), ask.stop_reason(), ask.wish().count())))
}

/// A streamed answer: the message and its block begin, an event per token, and both end.
struct Answer {
    ask: Ask,
    begun: bool,
    generation: Option<Generation>,
}

impl Answer {
    fn begin(&mut self) -> String {
        if std::mem::replace(&mut self.begun, true) {
            return String::new();
        }
        let message = self.ask.message(None, Value::Null, 0);
        let block = json!({ "type": "text", "text": "" });
        event(&json!({ "type": "message_start", "message": message }))
            + &event(&json!({ "type": "content_block_start", "index": 0, "content_block": block }))
    }

    fn end(&self) -> String {
        let delta = json!({ "stop_reason": self.ask.stop_reason(), "stop_sequence": null });
        let usage = json!({ "output_tokens": self.ask.wish().count() });
        event(&json!({ "type": "content_block_stop", "index": 0 }))
            + &event(&json!({ "type": "message_delta", "delta": delta, "usage": usage }))
            + &event(&json!({ "type": "message_stop" }))
    }
}

/// One event, with its type as its name.
fn event(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or_default())
}

impl Source for Answer {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(generation) = &mut self.generation else {
            return Poll::Ready(None);
        };
        let token = ready!(generation.poll_token(cx));
        let begin = self.begin();
        Poll::Ready(Some(Bytes::from(match token {
            Some(token) => {
                let delta = json!({ "type": "text_delta", "text": token });
                let delta = json!({ "type": "content_block_delta", "index": 0, "delta": delta });
                begin + &event(&delta)
            }
            None => {
                self.generation = None;
                begin + &self.end()
            }
        })))
    }
}

/// An error in the format of `/v1/messages`.
fn refuse(refusal: &Refusal) -> Reply {
    let kind = match refusal.status {
        StatusCode::NOT_FOUND => "not_found_error",
        _ => "invalid_request_error",
    };
    let error = json!({ "type": kind, "message": refusal.message });
    let answer = json!({ "type": "error", "error": error });
    reply::with_status(refusal.status, reply::json(&answer))
}
