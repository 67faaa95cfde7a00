//! Which web pages Ollama lets in by default: those of this machine, and those of programs that show
//! pages of their own.

use hyper::{
    HeaderMap, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_MAX_AGE, HOST, HeaderValue, ORIGIN, VARY,
    },
};

use super::reply::{self, Reply};

const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "0.0.0.0"];
const SCHEMES: [&str; 5] = ["app", "file", "tauri", "vscode-webview", "vscode-file"];

/// The page from which a request comes.
pub(super) enum Page {
    /// No page, or one of this server.
    Own,
    Allowed(HeaderValue),
    Refused,
}

impl Page {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(origin) = headers.get(ORIGIN) else { return Self::Own };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        match origin.to_str() {
            Ok(text) if is_of(text, host) => Self::Own,
            Ok(text) if is_allowed(text) => Self::Allowed(origin.clone()),
            _ => Self::Refused,
        }
    }
}

fn is_of(origin: &str, host: &str) -> bool {
    matches!(origin.split_once("://"), Some(("http" | "https", name)) if name == host)
}

fn is_allowed(origin: &str) -> bool {
    match origin.split_once("://") {
        Some(("http" | "https", host)) => {
            let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
            HOSTS.contains(&name)
        }
        Some((scheme, _)) => SCHEMES.contains(&scheme),
        None => false,
    }
}

/// The answer to a preflight.
pub(super) fn preflight(origin: HeaderValue) -> Reply {
    let mut reply = with_origin(reply::empty(StatusCode::NO_CONTENT), origin);
    let methods = HeaderValue::from_static("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS");
    let fields = HeaderValue::from_static(
        "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,OpenAI-Beta",
    );
    reply.headers_mut().insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    reply.headers_mut().insert(ACCESS_CONTROL_ALLOW_HEADERS, fields);
    reply.headers_mut().insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("43200"));
    reply
}

/// An answer that the page may read.
pub(super) fn with_origin(mut reply: Reply, origin: HeaderValue) -> Reply {
    reply.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    reply.headers_mut().append(VARY, HeaderValue::from_static("Origin"));
    reply
}
