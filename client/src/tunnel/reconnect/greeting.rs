//! What the two ends say at the beginning and at the end of a session.

use std::time::Duration;

use common::transport::{HANDSHAKE_WITHIN, frame};
use proto::wire::{Code, Greeting, Hello, Notice};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::Notify;
use tracing::debug;

use crate::dial::DialError;

/// What the server says of its end.
pub(super) enum Leave {
    /// It stops.
    Draining,
    /// Another process serves new sessions.
    Replaced,
}

/// Makes a session of a connection for those who want nothing but to end the one before.
pub(crate) async fn greeted(connection: &Connection) -> Result<(), DialError> {
    match tokio::time::timeout(HANDSHAKE_WITHIN, greet(connection, None)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(DialError::Other(e.to_string())),
        Err(_) => Err(DialError::NoAnswer("the server".to_owned())),
    }
}

/// Ends a connection in order. The process must not be gone before its last packet is: that may take
/// this time.
pub(crate) async fn take_leave(connection: &Connection, endpoint: &Endpoint, within: Duration) {
    connection.close((Code::Done as u32).into(), b"");
    // And the sessions before it whose answers still run.
    endpoint.close((Code::Done as u32).into(), b"");
    let _ = tokio::time::timeout(within, endpoint.wait_idle()).await;
}

/// Sends the greeting and reads the hello: from then on there is a session. `to` is where it goes,
/// `epoch` what the server gave this device to remember.
///
/// # Errors
/// Why the server has said no, or nothing.
pub(crate) async fn begin_session(
    connection: &Connection,
    to: &str,
    epoch: Option<String>,
) -> Result<(Hello, RecvStream, SendStream), DialError> {
    match tokio::time::timeout(HANDSHAKE_WITHIN, greet(connection, epoch)).await {
        Ok(Ok(greeted)) => Ok(greeted),
        // The server judges the device after the client's handshake is done: the close tells why.
        Ok(Err(e)) => {
            let closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
            Err(closed.map_or_else(
                |_| DialError::Other(e.to_string()),
                |e| DialError::from_connection(&e, to),
            ))
        }
        Err(_) => Err(DialError::NoAnswer(to.to_owned())),
    }
}

async fn greet(
    connection: &Connection,
    epoch: Option<String>,
) -> std::io::Result<(Hello, RecvStream, SendStream)> {
    let mut send = connection.open_uni().await?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    frame::write(&mut send, &Greeting { version, epoch, follows_ca: true }).await?;
    let mut notices = connection.accept_uni().await?;
    let hello = frame::read(&mut notices).await?;
    Ok((hello, notices, send))
}

/// Ends when the server says that it takes no more streams here; wakes `renew` when it wants the
/// certificate to be renewed. An error of the stream is ignored,
/// because the connection's error says more.
pub(super) async fn listen_to(notices: &mut RecvStream, renew: &Notify) -> Leave {
    loop {
        match frame::read::<Notice>(notices).await {
            Ok(Notice::Here) => {}
            Ok(Notice::Renew) => renew.notify_one(),
            Ok(Notice::Draining) => return Leave::Draining,
            Ok(Notice::Replaced) => return Leave::Replaced,
            Err(e) => {
                debug!("no more notices: {e}");
                return std::future::pending().await;
            }
        }
    }
}
