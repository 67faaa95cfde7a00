//! The bodies of the API's answers.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, mpsc::Receiver};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// The body of an answer.
pub(super) enum Body {
    /// All of it; `None` when it was sent.
    Whole(Option<Bytes>),
    Events(EventsBody),
}

/// Lines as they come.
pub(super) struct EventsBody {
    lines: Receiver<Bytes>,
    replaced: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl EventsBody {
    /// These lines, until `replaced` is cancelled.
    pub(super) fn new(
        lines: Receiver<Bytes>,
        replaced: WaitForCancellationFutureOwned,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { lines, replaced: Box::pin(replaced), _place: place }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Events(events) => match events.lines.poll_recv(context) {
                Poll::Pending => events.replaced.as_mut().poll(context).map(|()| None),
                line => line,
            },
        };
        next.map(|line| line.map(|line| Ok(Frame::data(line))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Events(_) => SizeHint::default(),
        }
    }
}
