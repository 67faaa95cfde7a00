//! Asks a provider over HTTPS: bounded in time and length, without following redirects.

use std::{io, sync::OnceLock, time::Duration};

use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use serde::de::DeserializeOwned;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The longest answer, in bytes.
const LONGEST: usize = 1 << 20;

/// The client for requests to `url`. It trusts the CAs of the system, and uses the proxy that the
/// environment names, but not for this machine itself.
pub(crate) fn client(url: &Url) -> io::Result<&'static Client> {
    static BESIDE: OnceLock<Result<Client, String>> = OnceLock::new();
    static ELSEWHERE: OnceLock<Result<Client, String>> = OnceLock::new();
    // The settings allow http on this machine only.
    let is_here = url.scheme() == "http";
    let made = if is_here { &BESIDE } else { &ELSEWHERE }.get_or_init(|| {
        let builder = Client::builder()
            .timeout(ANSWER_WITHIN)
            .connect_timeout(CONNECT_WITHIN)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("aditd/", env!("CARGO_PKG_VERSION")));
        let builder = if is_here { builder.no_proxy() } else { builder };
        builder.build().map_err(|e| chain(&e))
    });
    made.as_ref().map_err(|e| io::Error::other(e.clone()))
}

/// The document at `url`.
///
/// # Errors
/// Why there is none.
pub(crate) async fn get(url: Url) -> io::Result<Vec<u8>> {
    let (status, body) = send(client(&url)?.get(url.clone())).await?;
    match status {
        200 => Ok(body),
        status => Err(io::Error::other(format!("`{url}` answered with the status {status}"))),
    }
}

/// The JSON document at `url`.
///
/// # Errors
/// Why there is none.
pub(crate) async fn get_json<T: DeserializeOwned>(url: Url) -> io::Result<T> {
    let body = get(url.clone()).await?;
    serde_json::from_slice(&body)
        .map_err(|e| io::Error::other(format!("the answer of `{url}` cannot be read: {e}")))
}

/// The status and the body of an answer.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn send(request: RequestBuilder) -> io::Result<(u16, Vec<u8>)> {
    let failed = |e: reqwest::Error| io::Error::other(chain(&e));
    let mut response: Response = request.send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > LONGEST {
            return Err(io::Error::other("the answer is longer than 1 MiB"));
        }
        body.extend_from_slice(&piece);
    }
    Ok((response.status().as_u16(), body))
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
