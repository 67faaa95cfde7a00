//! Builds responses: whole ones, and streams with one flush per frame.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::{Body, Frame},
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::{Value, json};

/// A response of the stand-in.
pub(super) type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// 200 with a JSON body.
pub(super) fn json(value: &Value) -> Reply {
    with_type("application/json; charset=utf-8", whole(value.to_string()))
}

/// A plain text body; `content_type` because Ollama's errors have no charset and its greeting has
/// one.
pub(super) fn text(status: StatusCode, content_type: &'static str, text: &'static str) -> Reply {
    with_status(status, with_type(content_type, whole(text)))
}

/// An error in the format of `/api`.
pub(super) fn error(status: StatusCode, message: &str) -> Reply {
    with_status(status, json(&json!({ "error": message })))
}

/// A status without a body.
pub(super) fn empty(status: StatusCode) -> Reply {
    with_status(status, Response::new(whole("")))
}

/// 200 with a body of the given type.
pub(super) fn with_type(
    content_type: &'static str,
    body: UnsyncBoxBody<Bytes, Infallible>,
) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// The same response with another status.
pub(super) fn with_status(status: StatusCode, mut reply: Reply) -> Reply {
    *reply.status_mut() = status;
    reply
}

fn whole(body: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(body.into()).boxed_unsync()
}

/// The source of a stream's frames.
pub(super) trait Source: Send + Unpin + 'static {
    /// The next frame when it is due; `None` at the end, after which it is not polled again.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

/// Waits for the first frame and returns the response that begins with it, so that the headers do
/// not come earlier.
pub(super) async fn stream(content_type: &'static str, mut source: impl Source) -> Reply {
    let first = poll_fn(|cx| source.poll_next(cx)).await;
    let frames = Frames { ended: first.is_none(), first, source, flushed: true };
    with_type(content_type, frames.boxed_unsync())
}

struct Frames<S> {
    first: Option<Bytes>,
    source: S,
    ended: bool,
    flushed: bool,
}

impl<S: Source> Body for Frames<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended && self.first.is_none() {
            return Poll::Ready(None);
        }
        // hyper flushes when the body is not ready; otherwise it would put frames in quick
        // succession into one write.
        if !self.flushed {
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = match self.first.take() {
            Some(first) => Some(first),
            None => ready!(self.source.poll_next(cx)),
        };
        self.ended = frame.is_none();
        self.flushed = false;
        Poll::Ready(frame.map(|data| Ok(Frame::data(data))))
    }
}
