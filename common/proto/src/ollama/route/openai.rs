//! The routes of services with OpenAI's API: vLLM, the server of llama.cpp, and LM Studio. What none of
//! them has, or what shows or changes what belongs to all (`/metrics`, `/slots`, adapters, sleeping),
//! only `admin` may use, and roles that name it.

use super::{MODEL, Models, Route, RouteClass};

/// Routes that a role other than `admin` allows.
#[rustfmt::skip]
pub(super) const ROUTES: &[Route] = &[
    // All of them.
    ("GET", "/", RouteClass::List, Models::None),
    ("GET", "/health", RouteClass::List, Models::None),
    ("GET", "/v1/models", RouteClass::List, Models::None),
    ("GET", "/v1/models/*", RouteClass::List, Models::Path),
    ("POST", "/v1/chat/completions", RouteClass::Generate, MODEL),
    ("POST", "/v1/completions", RouteClass::Generate, MODEL),
    ("POST", "/v1/responses", RouteClass::Generate, MODEL),
    ("POST", "/v1/messages", RouteClass::Generate, MODEL),
    ("POST", "/v1/messages/count_tokens", RouteClass::List, MODEL),
    ("GET", "/v1/responses/*", RouteClass::List, Models::None),
    ("POST", "/v1/embeddings", RouteClass::Embed, MODEL),
    ("POST", "/tokenize", RouteClass::List, MODEL),
    ("POST", "/detokenize", RouteClass::List, MODEL),
    ("POST", "/v1/rerank", RouteClass::Embed, MODEL),
    ("POST", "/rerank", RouteClass::Embed, MODEL),
    ("POST", "/v1/audio/transcriptions", RouteClass::Generate, Models::Unread),
    // vLLM.
    ("GET", "/version", RouteClass::List, Models::None),
    ("GET", "/ping", RouteClass::List, Models::None),
    ("POST", "/v2/rerank", RouteClass::Embed, MODEL),
    ("POST", "/score", RouteClass::Embed, MODEL),
    ("POST", "/v1/score", RouteClass::Embed, MODEL),
    ("POST", "/pooling", RouteClass::Embed, MODEL),
    ("POST", "/classify", RouteClass::Embed, MODEL),
    ("POST", "/v1/audio/translations", RouteClass::Generate, Models::Unread),
    // The server of llama.cpp. Its own routes may leave the model out.
    ("GET", "/v1/health", RouteClass::List, Models::None),
    ("GET", "/models", RouteClass::List, Models::None),
    // With several models, the query names the one that is loaded for it.
    ("GET", "/props", RouteClass::List, Models::Unread),
    ("POST", "/apply-template", RouteClass::List, MODEL),
    ("POST", "/chat/completions", RouteClass::Generate, MODEL),
    ("POST", "/completions", RouteClass::Generate, MODEL),
    ("POST", "/completion", RouteClass::Generate, MODEL),
    ("POST", "/infill", RouteClass::Generate, MODEL),
    ("POST", "/embedding", RouteClass::Embed, MODEL),
    ("POST", "/embeddings", RouteClass::Embed, MODEL),
    ("POST", "/reranking", RouteClass::Embed, MODEL),
    ("POST", "/v1/reranking", RouteClass::Embed, MODEL),
    ("POST", "/models/load", RouteClass::Models, MODEL),
    ("POST", "/models/unload", RouteClass::Models, MODEL),
    // LM Studio.
    ("GET", "/api/v0/models", RouteClass::List, Models::None),
    ("GET", "/api/v0/models/*", RouteClass::List, Models::Path),
    ("POST", "/api/v0/chat/completions", RouteClass::Generate, MODEL),
    ("POST", "/api/v0/completions", RouteClass::Generate, MODEL),
    ("POST", "/api/v0/embeddings", RouteClass::Embed, MODEL),
];

/// Routes that need the GPU, but that no role other than `admin` allows.
pub(super) const UNNAMED: &[Route] = &[
    ("POST", "/v1/images/*", RouteClass::Generate, Models::Unread),
    ("POST", "/v1/audio/*", RouteClass::Generate, Models::Unread),
    ("POST", "/invocations", RouteClass::Generate, Models::Unread),
];

#[cfg(test)]
mod tests {
    use super::super::{Api, Target, is_repeatable, route};
    use super::*;

    const API: Api = Api::OpenAi;

    fn of(request: &str) -> (RouteClass, Models) {
        let (method, path) = request.split_once(' ').expect("a method and a path");
        let route = route(API, method, Target::new(path));
        (route.class, route.models)
    }

    #[test]
    fn each_route_has_its_class() {
        use RouteClass::{Embed, Generate, List, Models, Other};
        for (class, requests) in [
            (
                List,
                "GET /health, HEAD /health, GET /v1/models, GET /v1/models/a%20b, POST /tokenize, POST /detokenize, GET /version, \
                 GET /props, GET /api/v0/models, GET /api/v0/models/x, POST /v1/messages/count_tokens, POST /apply-template",
            ),
            (
                Generate,
                "POST /v1/chat/completions, POST /v1/completions?x=1, POST /v1/responses, POST /completion, POST /infill, \
                 POST /api/v0/chat/completions, POST /v1/audio/transcriptions, POST /v1/audio/speech, POST /v1/images/generations",
            ),
            (
                Embed,
                "POST /v1/embeddings, POST /v1/rerank, POST /rerank, POST /v2/rerank, POST /reranking, POST /score, POST /pooling, \
                 POST /embedding, POST /api/v0/embeddings",
            ),
            (Models, "POST /models/load, POST /models/unload"),
            (
                Other,
                "GET /metrics, GET /slots, POST /slots/0, POST /props, POST /v1/load_lora_adapter, POST /sleep, POST /wake_up, \
                 POST /reset_prefix_cache, GET /v1/chat/completions, GET /tokenize, POST /health, POST /api/chat, POST /api/pull, \
                 GET /api/tags, DELETE /v1/models/x, POST /lora-adapters, POST /v1/responses/x/cancel, GET /docs",
            ),
        ] {
            for request in requests.split(", ") {
                assert_eq!(of(request).0, class, "{request}");
            }
        }
    }

    #[test]
    fn what_runs_a_model_tells_which_or_is_not_read() {
        for (method, path, class, models) in ROUTES.iter().chain(UNNAMED) {
            let is_told = matches!(models, Models::Json(_) | Models::Unread);
            assert!(!class.needs_gpu() || is_told, "{method} {path}");
            assert!(*method == "GET" || is_told, "{method} {path}");
        }
        assert_eq!(of("GET /v1/models/x").1, Models::Path);
        assert_eq!(of("POST /tokenize").1, MODEL);
        assert_eq!(of("POST //tokenize").1, Models::Unread);
        assert_eq!(of("GET /metrics").1, Models::Unread);
    }

    /// The laptop does not know which API a service has when it sends a request again.
    #[test]
    fn what_changes_something_in_one_api_is_repeated_in_none() {
        for request in ["/models/load", "/models/unload", "/props", "/sleep", "/api/pull"] {
            assert!(!is_repeatable("POST", request), "{request}");
        }
        for api in Api::ALL {
            for (method, path, class, _) in api.routes().iter().chain(api.unnamed()) {
                let path = path.replace('*', "x");
                assert!(
                    *method != "POST"
                        || *class != RouteClass::Models
                        || !is_repeatable(method, &path),
                    "{path}"
                );
            }
        }
        assert!(is_repeatable("POST", "/v1/rerank") && is_repeatable("POST", "/tokenize"));
    }
}
