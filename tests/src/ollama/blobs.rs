//! `/api/blobs/sha256:…`: uploads, of which only the digests are remembered.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use hyper::{
    Method, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
};

use super::{
    bytes::sha256,
    reply::{self, Reply},
};

/// The digests of the uploaded blobs.
#[derive(Debug, Default)]
pub(super) struct Blobs(Mutex<HashSet<String>>);

impl Blobs {
    /// Answers a request for the blob with this digest.
    pub(super) async fn answer(&self, method: &Method, digest: &str, body: Incoming) -> Reply {
        if !well_formed(digest) {
            return early(reply::error(StatusCode::BAD_REQUEST, "invalid digest format"));
        }
        let exists = self.locked(|known| known.contains(digest));
        match (method, exists) {
            (&Method::HEAD, true) => reply::empty(StatusCode::OK),
            (&Method::HEAD, false) => {
                let message = format!("blob \"{digest}\" not found");
                reply::error(StatusCode::NOT_FOUND, &message)
            }
            (_, true) => early(reply::empty(StatusCode::OK)),
            (_, false) => self.upload(digest, body).await,
        }
    }

    async fn upload(&self, digest: &str, body: Incoming) -> Reply {
        let Ok((actual, _)) = sha256(body).await else {
            return reply::error(StatusCode::INTERNAL_SERVER_ERROR, "unexpected EOF");
        };
        if digest.strip_prefix("sha256:") != Some(&actual) {
            let message =
                format!("digest mismatch, expected \"{digest}\", got \"sha256:{actual}\"");
            return reply::error(StatusCode::BAD_REQUEST, &message);
        }
        self.locked(|known| known.insert(digest.to_owned()));
        reply::empty(StatusCode::CREATED)
    }

    fn locked<T>(&self, access: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        // A set of digests has no intermediate state that a panic could leave.
        access(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn well_formed(digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:");
    hex.is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Adds that the connection ends after this answer, because the request's body will not be read.
fn early(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}
