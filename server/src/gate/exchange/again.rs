//! When a request is sent again on another connection to the service (RFC 9112 section 9.3.1): the
//! connection was kept from an earlier request, it ended before a byte of this answer came, and
//! repeating the request is safe. The service closes an idle connection when it likes, and its FIN
//! may cross the next request.

use bytes::Bytes;

use super::{Answering, Exchange, ForwardedRequest};

/// A request of which more bytes were forwarded is not sent again.
const MOST: usize = 64 * 1024;

/// The bytes of a request that were forwarded, while it may have to be sent again.
#[derive(Debug, Default)]
pub(super) struct Sent(Option<Vec<u8>>);

impl Sent {
    /// Keeps what will be forwarded, if `keeps`.
    pub(super) fn new(keeps: bool) -> Self {
        Self(keeps.then(Vec::new))
    }

    /// The number of bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Vec::len)
    }

    pub(super) fn forget(&mut self) {
        self.0 = None;
    }

    /// Adds bytes. They are copied: chunks may be as small as a byte, and each keeps a whole
    /// received packet in memory.
    pub(super) fn add(&mut self, batch: &[Bytes]) {
        let Some(kept) = &mut self.0 else { return };
        if kept.len() + batch.iter().map(Bytes::len).sum::<usize>() > MOST {
            return self.forget();
        }
        batch.iter().for_each(|chunk| kept.extend_from_slice(chunk));
    }
}

impl Exchange<'_> {
    /// Whether the request is sent again, now that its connection has ended. The device may not have
    /// given it up.
    pub(super) fn is_sent_again(&self) -> bool {
        self.sent.0.is_some() && self.answering == Answering::Open
    }

    /// The request as it was before any of it was forwarded on this connection.
    pub(in crate::gate) fn again(self) -> ForwardedRequest {
        // They are counted again when they are forwarded again.
        self.incoming.bytes = 0;
        let sent = self.sent.0.filter(|sent| !sent.is_empty()).map(Bytes::from);
        ForwardedRequest {
            begun: sent.into_iter().chain(self.begun).chain(self.kept.take()).collect(),
            body: self.body,
            most_body: Some(self.most_body),
            turn: self.turn,
            added: self.added,
            ends_with_device: self.ends_with_device,
            // The next connection is a new one.
            may_repeat: false,
        }
    }

    /// Forgets what was forwarded: there is no memory to keep it.
    pub(in crate::gate) fn forget_sent(&mut self) {
        self.sent.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_to_be_sent_again_has_a_bound() {
        let mut sent = Sent::new(true);
        sent.add(&[Bytes::from(vec![b'x'; MOST - 1]), Bytes::from_static(b"y")]);
        assert_eq!(sent.len(), MOST);
        sent.add(&[Bytes::from_static(b"z")]);
        assert!(sent.0.is_none());
        let mut sent = Sent::new(false);
        sent.add(&[Bytes::from_static(b"z")]);
        assert!(sent.0.is_none());
    }
}
