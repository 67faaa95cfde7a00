//! Routes requests by their path and method.

use std::sync::Arc;

use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{ALLOW, HeaderValue},
};
use serde_json::json;

use super::{
    App, anthropic, bytes, native, openai,
    origins::{self, Page},
    reply::{self, Reply},
};

const READ: &[Method] = &[Method::GET, Method::HEAD];
const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const BLOB: &[Method] = &[Method::HEAD, Method::POST];

/// A route, by its path.
enum Route<'a> {
    Greeting,
    Version,
    Tags,
    Running,
    Show,
    Generate,
    Chat,
    Embed,
    Pull,
    Blob(&'a str),
    Models,
    ChatCompletions,
    Completions,
    Embeddings,
    Messages,
    TestBytes,
    TestDigest,
    TestCounters,
}

impl<'a> Route<'a> {
    fn find(path: &'a str) -> Option<(Self, &'static [Method])> {
        let found = match path {
            "/" => (Self::Greeting, READ),
            "/api/version" => (Self::Version, READ),
            "/api/tags" => (Self::Tags, READ),
            "/api/ps" => (Self::Running, GET),
            "/api/show" => (Self::Show, POST),
            "/api/generate" => (Self::Generate, POST),
            "/api/chat" => (Self::Chat, POST),
            "/api/embed" => (Self::Embed, POST),
            "/api/pull" => (Self::Pull, POST),
            "/v1/models" => (Self::Models, GET),
            "/v1/chat/completions" => (Self::ChatCompletions, POST),
            "/v1/completions" => (Self::Completions, POST),
            "/v1/embeddings" => (Self::Embeddings, POST),
            "/v1/messages" => (Self::Messages, POST),
            "/test/bytes" => (Self::TestBytes, GET),
            "/test/sha256" => (Self::TestDigest, POST),
            "/test/counters" => (Self::TestCounters, GET),
            _ => (Self::Blob(path.strip_prefix("/api/blobs/")?), BLOB),
        };
        Some(found)
    }
}

/// Answers one request. An error means that its body was cut; the connection ends with it.
pub(super) async fn answer(
    app: Arc<App>,
    request: Request<Incoming>,
) -> Result<Reply, hyper::Error> {
    match Page::of(request.headers()) {
        Page::Own => by_route(app, request).await,
        Page::Refused => Ok(reply::empty(StatusCode::FORBIDDEN)),
        Page::Allowed(origin) if request.method() == Method::OPTIONS => {
            Ok(origins::preflight(origin))
        }
        Page::Allowed(origin) => {
            by_route(app, request).await.map(|reply| origins::with_origin(reply, origin))
        }
    }
}

async fn by_route(app: Arc<App>, request: Request<Incoming>) -> Result<Reply, hyper::Error> {
    let (head, body) = request.into_parts();
    let Some((route, allowed)) = Route::find(head.uri.path()) else {
        return Ok(reply::text(StatusCode::NOT_FOUND, "text/plain", "404 page not found"));
    };
    if !allowed.contains(&head.method) {
        return Ok(not_allowed(allowed));
    }
    Ok(match route {
        Route::Greeting => {
            reply::text(StatusCode::OK, "text/plain; charset=utf-8", "Ollama is running")
        }
        Route::Version => reply::json(&json!({ "version": native::VERSION })),
        Route::Tags => native::tags(&app),
        Route::Running => native::running(&app),
        Route::Show => native::show(&app, body).await?,
        Route::Generate => native::generate(&app, body).await?,
        Route::Chat => native::chat(&app, body).await?,
        Route::Embed => native::embed(&app, body).await?,
        Route::Pull => native::pull(&app, body).await?,
        Route::Blob(digest) => app.blobs.answer(&head.method, digest, body).await,
        Route::Models => openai::models(&app),
        Route::ChatCompletions => openai::chat(&app, body).await?,
        Route::Completions => openai::completions(&app, body).await?,
        Route::Embeddings => openai::embeddings(&app, body).await?,
        Route::Messages => anthropic::messages(&app, body).await?,
        Route::TestBytes => bytes::download(head.uri.query().unwrap_or_default()),
        Route::TestDigest => bytes::digest(body).await?,
        Route::TestCounters => reply::json(&json!(app.tally.now())),
    })
}

fn not_allowed(allowed: &[Method]) -> Reply {
    let mut reply =
        reply::text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "405 method not allowed");
    let names: Vec<_> = allowed.iter().map(Method::as_str).collect();
    let names = HeaderValue::from_str(&names.join(", ")).expect("method names are printable ASCII");
    reply.headers_mut().insert(ALLOW, names);
    reply
}
