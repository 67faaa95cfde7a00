//! The TLS handshake. While a certificate authority is about to check a name, the handshakes that it
//! makes for that are answered too, also for addresses that may not reach the listener: those get
//! nothing else, not even an alert.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ServerConfig,
    server::{Accepted, Acceptor},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{StartHandshake, server::TlsStream};
use tracing::debug;

use super::{
    Https,
    acme::Challenges,
    places::{Bounds, Origin, Places},
};

/// How long the check of an authority may take.
const CHECKED_WITHIN: Duration = Duration::from_secs(10);
/// How many connections of addresses that may not reach the listener wait for their first message.
/// Let's Encrypt checks a name from about five places.
const BOUNDS: Bounds = Bounds { all: 32, strangers: 32, strangers_of_one: 4 };
/// The longest first message, in bytes.
const LONGEST_HELLO: usize = 16 << 10;

/// What answers an authority that checks names.
pub(super) struct Checks {
    challenges: Arc<Challenges>,
    tls: Arc<ServerConfig>,
    places: Arc<Places>,
}

impl Checks {
    /// Answers these challenges while they wait.
    ///
    /// # Errors
    /// When TLS cannot be used.
    pub(super) fn new(challenges: &Arc<Challenges>) -> Result<Self, rustls::Error> {
        let (challenges, tls) = (challenges.clone(), challenges.tls()?);
        Ok(Self { challenges, tls, places: Places::new(BOUNDS) })
    }

    fn is_asked(&self, accepted: &Accepted) -> bool {
        self.challenges.is_asked(&accepted.client_hello())
    }

    async fn answer(&self, accepted: Accepted, tcp: TcpStream) -> io::Result<()> {
        let start = StartHandshake::from_parts(accepted, tcp);
        // The certificate is all that it wants to see (RFC 8737 section 3).
        start.into_stream(self.tls.clone()).await?.shutdown().await
    }
}

impl Https {
    /// Makes a handshake. `None` if it was the check of an authority, which is answered then.
    ///
    /// # Errors
    /// The client makes none.
    ///
    /// # Cancel safety
    /// Dropped before its end, it closes the connection.
    pub(super) async fn handshake(
        &self,
        mut tcp: TcpStream,
    ) -> io::Result<Option<TlsStream<TcpStream>>> {
        let Some(checks) = self.checks.as_ref().filter(|checks| checks.challenges.is_waiting())
        else {
            return self.acceptor().accept(tcp).await.map(Some);
        };
        let accepted = first_message(&mut tcp).await?;
        if checks.is_asked(&accepted) {
            return checks.answer(accepted, tcp).await.map(|()| None);
        }
        let config = self.acceptor().config().clone();
        StartHandshake::from_parts(accepted, tcp).into_stream(config).await.map(Some)
    }

    /// What answers the check of an authority on a connection of an address that may not reach the
    /// listener. `None` if none waits, or if there are too many such connections.
    pub(crate) fn answer_check(
        self: &Arc<Self>,
        mut tcp: TcpStream,
        remote: SocketAddr,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let checks = self.checks.as_ref().filter(|checks| checks.challenges.is_waiting())?;
        let place = checks.places.enter(Origin::from(remote.ip()))?;
        let https = self.clone();
        Some(async move {
            let _place = place;
            let Some(checks) = &https.checks else { return };
            let answered = async {
                let accepted = first_message(&mut tcp).await?;
                if !checks.is_asked(&accepted) {
                    return Err(ErrorKind::PermissionDenied.into());
                }
                checks.answer(accepted, tcp).await
            };
            match tokio::time::timeout(CHECKED_WITHIN, answered).await {
                Ok(Ok(())) => debug!(%remote, "an authority has checked a name"),
                Ok(Err(e)) => debug!(%remote, "this was no check of a name: {e}"),
                Err(_) => debug!(%remote, "no handshake in time"),
            }
        })
    }
}

/// Reads the first message of a handshake, and answers nothing.
async fn first_message(tcp: &mut TcpStream) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    let mut bytes = vec![0; 4096];
    let mut all = 0;
    loop {
        let read = tcp.read(&mut bytes).await?;
        all += read;
        if read == 0 || all > LONGEST_HELLO {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut rest = &bytes[..read];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest)?;
            // The alert that it would send is not sent.
            let accepted = acceptor.accept().map_err(|(e, _)| io::Error::other(e))?;
            if let Some(accepted) = accepted {
                return Ok(accepted);
            }
        }
    }
}
