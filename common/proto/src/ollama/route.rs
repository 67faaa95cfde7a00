//! The routes of a service's API: whether a path is in canonical form, and what the service does for
//! it. The table of Ollama's routes; `openai.rs` has that of services with OpenAI's API.

mod openai;

pub use crate::wire::Api;

impl Api {
    /// Every route that a role other than `admin` allows.
    fn routes(self) -> &'static [Route] {
        match self {
            Self::Ollama => ROUTES,
            Self::OpenAi => openai::ROUTES,
        }
    }

    /// Routes that need the GPU, but that no role other than `admin` allows.
    fn unnamed(self) -> &'static [Route] {
        match self {
            Self::Ollama => UNNAMED,
            Self::OpenAi => openai::UNNAMED,
        }
    }
}

/// Method, path, class, models. A path that ends with `*` matches every path that is longer and
/// begins like it.
type Route = (&'static str, &'static str, RouteClass, Models);

/// Classes of routes, for roles, logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteClass {
    /// Generating text: `/api/generate`, `/api/chat`, `/v1/chat/completions` and their kind.
    Generate,
    /// Embeddings.
    Embed,
    /// Listing: `/`, `/api/version`, `/api/tags`, `/api/ps`, `/api/show`, `/v1/models`.
    List,
    /// Changing models: pull, push, create, copy, delete, blobs.
    Models,
    /// Everything else.
    Other,
}

impl RouteClass {
    /// Whether a model runs for such a request.
    pub fn needs_gpu(self) -> bool {
        matches!(self, Self::Generate | Self::Embed)
    }

    /// Its name in settings and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Embed => "embed",
            Self::List => "list",
            Self::Models => "models",
            Self::Other => "other",
        }
    }
}

/// The path and the query of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Everything before the first `?`.
    pub path: &'a str,
    /// Whether the path is in canonical form. Otherwise no route of a role matches it.
    pub canonical: bool,
}

impl<'a> Target<'a> {
    /// Reads the target of a request, which begins with `/`.
    pub fn new(target: &'a str) -> Self {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Self { path, canonical: is_canonical(path) }
    }

    /// The last segment of the path, decoded.
    pub fn last_segment(&self) -> String {
        decoded(self.path.rsplit_once('/').map_or(self.path, |(_, segment)| segment))
    }
}

/// The percent-decoded path, as Ollama reads it.
fn decoded(path: &str) -> String {
    percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned()
}

/// Whether a path is in canonical form: no empty or dot segments, nothing encoded without need, no
/// encoded slash (RFC 3986 section 6.2.2).
fn is_canonical(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    rest.is_empty()
        || rest
            .split('/')
            .all(|segment| !matches!(segment, "" | "." | "..") && is_plain(segment.as_bytes()))
}

fn is_plain(mut segment: &[u8]) -> bool {
    while let [byte, rest @ ..] = segment {
        segment = match (byte, rest) {
            (b'%', [high, low, rest @ ..]) => match encoded(*high, *low) {
                Some(byte)
                    if !is_unreserved(byte)
                        && !matches!(byte, b'/' | b'\\' | b'%' | 0..b' ' | 0x7f) =>
                {
                    rest
                }
                _ => return false,
            },
            (b'%', _) => return false,
            (byte, rest) if is_unreserved(*byte) || b"!$&'()*+,;=:@".contains(byte) => rest,
            _ => return false,
        };
    }
    true
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn encoded(high: u8, low: u8) -> Option<u8> {
    // Lower-case digits would be a second way to write the same byte.
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    Some(digit(high)? << 4 | digit(low)?)
}

/// How the requests of a route name their models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Models {
    /// They name none.
    None,
    /// In their JSON: for each list, the first of these keys that is not empty.
    Json(&'static [&'static [&'static str]]),
    /// In the last segment of the path.
    Path,
    /// In a way that the gate does not read.
    Unread,
}

/// What is known about the route of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiRoute {
    pub class: RouteClass,
    /// How its requests name their models.
    pub models: Models,
}

const MODEL: Models = Models::Json(&[&["model"]]);
const MODEL_OR_NAME: Models = Models::Json(&[&["model", "name"]]);

/// Ollama's routes that a role other than `admin` allows.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    ("GET", "/", RouteClass::List, Models::None),
    ("GET", "/api/version", RouteClass::List, Models::None),
    ("GET", "/api/tags", RouteClass::List, Models::None),
    ("GET", "/api/ps", RouteClass::List, Models::None),
    ("GET", "/v1/models", RouteClass::List, Models::None),
    ("GET", "/v1/models/*", RouteClass::List, Models::Path),
    ("POST", "/api/show", RouteClass::List, MODEL_OR_NAME),
    ("POST", "/api/generate", RouteClass::Generate, MODEL),
    ("POST", "/api/chat", RouteClass::Generate, MODEL),
    ("POST", "/v1/chat/completions", RouteClass::Generate, MODEL),
    ("POST", "/v1/completions", RouteClass::Generate, MODEL),
    ("POST", "/v1/responses", RouteClass::Generate, MODEL),
    ("POST", "/v1/messages", RouteClass::Generate, MODEL),
    ("POST", "/v1/audio/transcriptions", RouteClass::Generate, Models::Unread),
    // Other routes of these APIs: clients try them, and go on if Ollama does not have them.
    // Counting tokens does not use the GPU, so it must not wait for it.
    ("POST", "/v1/messages/count_tokens", RouteClass::List, MODEL),
    ("POST", "/v1/messages/*", RouteClass::Generate, MODEL),
    ("POST", "/v1/responses/*", RouteClass::Generate, MODEL),
    ("POST", "/v1/chat/completions/*", RouteClass::Generate, MODEL),
    ("POST", "/v1/audio/*", RouteClass::Generate, Models::Unread),
    ("GET", "/v1/messages/*", RouteClass::List, Models::None),
    ("GET", "/v1/responses/*", RouteClass::List, Models::None),
    ("GET", "/v1/chat/completions/*", RouteClass::List, Models::None),
    ("POST", "/api/embed", RouteClass::Embed, MODEL),
    ("POST", "/api/embeddings", RouteClass::Embed, MODEL),
    ("POST", "/v1/embeddings", RouteClass::Embed, MODEL),
    ("POST", "/api/pull", RouteClass::Models, MODEL_OR_NAME),
    ("POST", "/api/push", RouteClass::Models, MODEL_OR_NAME),
    ("POST", "/api/create", RouteClass::Models, Models::Json(&[&["model", "name"], &["from"]])),
    ("POST", "/api/copy", RouteClass::Models, Models::Json(&[&["source"], &["destination"]])),
    ("DELETE", "/api/delete", RouteClass::Models, MODEL_OR_NAME),
    ("POST", "/api/blobs/*", RouteClass::Models, Models::None),
    ("HEAD", "/api/blobs/*", RouteClass::Models, Models::None),
];

/// Ollama's routes that need the GPU, but that no role other than `admin` allows.
const UNNAMED: &[Route] = &[("POST", "/v1/images/*", RouteClass::Generate, Models::Unread)];

/// The routes of these classes in an API, as patterns.
pub fn named(api: Api, classes: &[RouteClass]) -> Vec<Pattern> {
    let of = |(method, path, class, _): &Route| {
        classes
            .contains(class)
            .then(|| Pattern { method: Some((*method).into()), path: (*path).into() })
    };
    api.routes().iter().filter_map(of).collect()
}

/// Finds the route of a request.
pub fn route(api: Api, method: &str, target: Target<'_>) -> ApiRoute {
    let is = |path: &str| {
        let mut all = api.routes().iter().chain(api.unnamed());
        all.find(|(m, p, ..)| is_method(m, method) && matches(p, path))
    };
    let known = if target.canonical { is(target.path) } else { is(&decoded(target.path)) };
    match known {
        Some((.., class, models)) if target.canonical => {
            ApiRoute { class: *class, models: *models }
        }
        // No pattern matches a path like this. A role that allows it anyway causes the same work.
        Some((.., class, _)) => ApiRoute { class: *class, models: Models::Unread },
        // A CORS preflight names no model.
        None if method == "OPTIONS" => ApiRoute { class: RouteClass::Other, models: Models::None },
        None => ApiRoute { class: RouteClass::Other, models: Models::Unread },
    }
}

/// Whether a request may be sent a second time when nobody knows whether the first was served: its
/// method is idempotent (RFC 9110 section 9.2.2), or its route changes nothing on the server, though
/// it is a POST. No API may have a route that changes something where another only reads.
pub fn is_repeatable(method: &str, target: &str) -> bool {
    if matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE") {
        return true;
    }
    let target = Target::new(target);
    let reads = |api: &Api| {
        matches!(
            route(*api, method, target).class,
            RouteClass::Generate | RouteClass::Embed | RouteClass::List
        )
    };
    method == "POST" && target.canonical && Api::ALL.iter().any(reads)
}

/// A route for GET is also one for HEAD.
fn is_method(named: &str, method: &str) -> bool {
    named == method || named == "GET" && method == "HEAD"
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.len() > prefix.len() && path.starts_with(prefix),
        None => path == pattern,
    }
}

/// A pattern of routes in a role: `GET /api/tags`, `POST /v1/*`, `/x` for every method.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    method: Option<Box<str>>,
    path: Box<str>,
}

impl Pattern {
    /// Whether the pattern matches a request. It matches a preflight if it matches the request that
    /// the preflight asks for.
    pub fn means(&self, method: &str, preflight: Option<&str>, target: Target<'_>) -> bool {
        let method = match (method, preflight) {
            ("OPTIONS", Some(wanted)) => wanted,
            _ => method,
        };
        target.canonical
            && self.method.as_ref().is_none_or(|named| is_method(named, method))
            && matches(&self.path, target.path)
    }
}

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (method, path) = match text.split_once(' ') {
            Some((method, path)) => (Some(method), path),
            None => (None, text),
        };
        let wrong =
            || format!("`{text}` is no route: write it like `GET /api/tags` or `POST /v1/*`");
        if method.is_some_and(|m| m.is_empty() || !m.bytes().all(|b| b.is_ascii_uppercase())) {
            return Err(wrong());
        }
        let fixed = path.strip_suffix('*').unwrap_or(path);
        let whole_segment = !path.ends_with('*') || fixed.ends_with('/');
        let folder = fixed.strip_suffix('/').unwrap_or(fixed);
        let plain = fixed == "/" || (folder != "/" && is_canonical(folder));
        if fixed.contains('*')
            || !whole_segment
            || !plain
            || (path.len() > 1 && path.ends_with('/'))
        {
            return Err(wrong());
        }
        Ok(Self { method: method.map(Into::into), path: path.into() })
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_idempotent_or_changes_nothing_may_be_repeated() {
        for (method, target) in [
            ("GET", "/api/tags"),
            ("HEAD", "/"),
            ("OPTIONS", "/api/chat"),
            ("DELETE", "/api/delete"),
            ("PUT", "/anything"),
            ("POST", "/api/generate"),
            ("POST", "/api/chat?x=1"),
            ("POST", "/api/embed"),
            ("POST", "/api/embeddings"),
            ("POST", "/api/show"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/responses"),
            ("POST", "/v1/messages"),
            ("POST", "/v1/messages/count_tokens"),
            ("POST", "/v1/embeddings"),
        ] {
            assert!(is_repeatable(method, target), "{method} {target}");
        }
        for (method, target) in [
            ("POST", "/"),
            ("POST", "/api/pull"),
            ("POST", "/api/push"),
            ("POST", "/api/create"),
            ("POST", "/api/copy"),
            ("POST", "/api/blobs/sha256:00"),
            ("POST", "/api/unknown"),
            ("POST", "/api//chat"),
            ("POST", "/api/ch%61t"),
            ("POST", "api/chat"),
            ("PATCH", "/api/chat"),
            ("get", "/api/tags"),
            ("CONNECT", "/api/chat"),
        ] {
            assert!(!is_repeatable(method, target), "{method} {target}");
        }
    }

    #[test]
    fn only_two_hexadecimal_digits_are_decoded() {
        for (path, read) in
            [("/a%2Fb", "/a/b"), ("/%41", "/A"), ("/%+1", "/%+1"), ("/%4", "/%4"), ("/%", "/%")]
        {
            assert_eq!(decoded(path), read, "{path}");
        }
    }

    #[test]
    fn a_path_that_could_be_written_otherwise_is_not_canonical() {
        for good in [
            "/",
            "/api/chat",
            "/v1/models/llama3:8b",
            "/v1/models/a%20b",
            "/api/blobs/sha256:00ff",
            "/a/...",
            "/a;b=c@d",
        ] {
            assert!(Target::new(good).canonical, "{good}");
        }
        for bad in [
            "//",
            "//api/chat",
            "/api//chat",
            "/api/chat/",
            "/./api/chat",
            "/api/../api/chat",
            "/api/chat/.",
            "/%61pi/chat",
            "/api%2Fchat",
            "/api%2fchat",
            "/api/%2e%2e/chat",
            "/api/%2E",
            "/api\\chat",
            "/api%5Cchat",
            "/api/chat%00",
            "/api/chat%0A",
            "/api/chat%",
            "/api/chat%2",
            "/api/chat%zz",
            "/api/chat%3a",
            "/api/%2570i",
            "/api/chat#x",
            "/api/{chat}",
        ] {
            assert!(!Target::new(bad).canonical, "{bad}");
            assert_eq!(
                route(Api::Ollama, "POST", Target::new(bad)).models,
                Models::Unread,
                "{bad}"
            );
        }
        assert_eq!(
            Target::new("/api/chat?x=//../%2e"),
            Target { path: "/api/chat", canonical: true }
        );
    }

    #[test]
    fn a_route_is_found_by_method_and_path() {
        let class = |method, target| route(Api::Ollama, method, Target::new(target)).class;
        assert_eq!(class("POST", "/api/chat"), RouteClass::Generate);
        assert_eq!(class("HEAD", "/"), RouteClass::List);
        assert_eq!(class("GET", "/api/chat"), RouteClass::Other);
        assert_eq!(class("POST", "/API/chat"), RouteClass::Other);
        assert_eq!(class("POST", "/api/%63hat"), RouteClass::Generate);
        assert_eq!(class("POST", "/v1/images/generations"), RouteClass::Generate);
        assert_eq!(class("GET", "/v1/models/"), RouteClass::Other);
        assert_eq!(class("GET", "/debug/pprof/heap"), RouteClass::Other);
        assert_eq!(class("DELETE", "/api/delete"), RouteClass::Models);
        assert_eq!(class("POST", "/v1/messages/count_tokens"), RouteClass::List);
        assert_eq!(class("POST", "/v1/messages/batches"), RouteClass::Generate);
        assert_eq!(class("GET", "/v1/responses/resp_1/input_items"), RouteClass::List);
        assert_eq!(class("DELETE", "/v1/responses/resp_1"), RouteClass::Other);
    }

    #[test]
    fn a_pattern_means_its_method_its_path_and_the_question_in_advance() {
        let means = |pattern: &str, method: &str, preflight, target| {
            pattern.parse::<Pattern>().expect(pattern).means(method, preflight, Target::new(target))
        };
        assert!(means("POST /v1/*", "POST", None, "/v1/chat/completions"));
        assert!(!means("POST /v1/*", "GET", None, "/v1/models"));
        assert!(!means("POST /v1/*", "POST", None, "/v1/"));
        assert!(!means("POST /v1/*", "POST", None, "/v1/../api/delete"));
        assert!(means("GET /api/tags", "HEAD", None, "/api/tags"));
        assert!(means("/metrics", "PUT", None, "/metrics"));
        assert!(means("POST /api/chat", "OPTIONS", Some("POST"), "/api/chat"));
        assert!(!means("POST /api/chat", "OPTIONS", Some("DELETE"), "/api/chat"));
        assert!(!means("POST /api/chat", "OPTIONS", None, "/api/chat"));
        assert!(means("/*", "POST", None, "/anything/at/all"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in [
            "",
            "GET",
            "get /x",
            " /x",
            "GET  /x",
            "GET x",
            "GET /a*b",
            "GET /a*",
            "GET //",
            "GET //*",
            "GET /a/../b",
            "GET /%61",
            "GET /a/",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
