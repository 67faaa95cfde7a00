//! Accepts connections for every listener: an error of `accept` never ends a listener.

use std::{io, time::Duration};

use tracing::{debug, warn};

/// The pause after an error, for example if descriptors or memory are short. Connections wait in
/// the backlog meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the next connection with `accept`. After any error it pauses and tries again: a program
/// whose listener has ended looks alive, but nobody can connect to it. Of several errors in a row,
/// only the first is logged as a warning. Cancellation safe if `accept` is.
pub async fn accept<T, F>(what: &str, mut accept: impl FnMut() -> F) -> T
where
    F: Future<Output = io::Result<T>>,
{
    let mut told = false;
    loop {
        match accept().await {
            Ok(connection) => return connection,
            Err(e) if told => debug!("cannot take a connection for {what}: {e}"),
            Err(e) => warn!("cannot take a connection for {what} now: {e}"),
        }
        told = true;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether an error says that this program or this computer is out of a resource that may be free
/// again soon.
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    short.into_iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[tokio::test]
    async fn no_error_ends_a_listener() {
        // accept(2) does not list the last two as temporary.
        let mut errors =
            vec![Errno::MFILE, Errno::CONNABORTED, Errno::PROTO, Errno::INVAL, Errno::BADF];
        let taken = accept("a test", || {
            let next = errors.pop().map_or(Ok("taken"), |errno| Err(io::Error::from(errno)));
            std::future::ready(next)
        });
        assert_eq!(tokio::time::timeout(Duration::from_secs(30), taken).await, Ok("taken"));
    }

    #[test]
    fn a_shortage_is_told_from_other_errors() {
        assert!(is_shortage(&Errno::MFILE.into()) && is_shortage(&Errno::NOBUFS.into()));
        assert!(!is_shortage(&Errno::CONNREFUSED.into()));
        assert!(!is_shortage(&io::ErrorKind::TimedOut.into()));
    }
}
