//! Parses requests, and reports errors in Ollama's words.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{StatusCode, body::Incoming};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a request gets an error.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

pub(super) async fn read(body: Incoming) -> Result<Bytes, hyper::Error> {
    Ok(body.collect().await?.to_bytes())
}

/// Parses a JSON body.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() {
        return Err(bad("missing request body"));
    }
    serde_json::from_slice(body).map_err(|error| bad(error.to_string()))
}

/// Checks that `wanted` is the stand-in's model; a name without a tag means `latest`.
pub(super) fn check_model(wanted: &str, ours: &str) -> Result<(), Refusal> {
    if wanted.is_empty() {
        return Err(bad("model is required"));
    }
    if wanted == ours || ours.strip_suffix(":latest") == Some(wanted) {
        return Ok(());
    }
    Err(Refusal { status: StatusCode::NOT_FOUND, message: format!("model '{wanted}' not found") })
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, message: message.into() }
}

/// The texts of a field that has one text or a list of them.
pub(super) fn texts(input: &Value) -> Vec<&str> {
    match input {
        Value::Array(inputs) => inputs.iter().filter_map(Value::as_str).collect(),
        input => input.as_str().into_iter().collect(),
    }
}

/// The number of words in all strings of a value: the stand-in's count of a prompt's tokens.
pub(super) fn count_words(value: &Value) -> usize {
    match value {
        Value::String(text) => text.split_whitespace().count(),
        Value::Array(items) => items.iter().map(count_words).sum(),
        Value::Object(fields) => fields.values().map(count_words).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// A vector that depends only on the text.
pub(super) fn embedding(text: &str) -> Vec<f32> {
    let seed = text.bytes().fold(0, |seed, byte| super::bytes::mix(seed ^ u64::from(byte)));
    // The top byte of each word as a number from -1 to 1, exact in f32 and so printed alike
    // everywhere.
    let numbers =
        (0..16).map(|index| super::bytes::mix(seed ^ index).to_le_bytes()[7].cast_signed());
    numbers.map(|number| f32::from(number) / 128.0).collect()
}
