//! The stream of a device that enrolls.

use std::net::SocketAddr;

use common::transport::{frame, splice::Sending};
use proto::{rotation::CaNumber, wire::EnrollAnswer};
use quinn::RecvStream;

/// A device that enrolls.
pub(super) struct Enrolling {
    pub(super) send: Sending,
    pub(super) recv: RecvStream,
    pub(super) from: SocketAddr,
    /// The CA whose hash is in its code.
    pub(super) ca: CaNumber,
}

impl Enrolling {
    /// Sends an answer, or what the person has to do.
    pub(super) async fn tell(&mut self, answer: &EnrollAnswer) -> std::io::Result<()> {
        let mut framed = Vec::new();
        frame::write(&mut framed, answer).await?;
        Ok(self.send.write_all(&framed).await?)
    }
}
