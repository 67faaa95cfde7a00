//! A stand-in for Ollama, for tests and for the demo.
//!
//! It speaks HTTP as Ollama does wherever a tunnel could make a difference: one flush per token,
//! headers that come only with the first token, an early answer to an unnecessary upload, and a
//! generation that is cancelled as soon as the client's side of the connection ends. Its answers
//! depend only on the request (no clock, no chance), so that two ways to the same stand-in can be
//! compared byte for byte.

mod anthropic;
mod blobs;
mod bytes;
mod counters;
mod generation;
mod native;
mod openai;
mod origins;
mod reply;
mod request;
mod routes;

pub use bytes::{SeededBytes, seeded_bytes};
pub use counters::Counters;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, sleep_until, timeout_at},
};

use self::{blobs::Blobs, counters::Tally};

/// How long a connection stays open after an early answer, as with Go's HTTP server: the client
/// must read the answer before unread data in the socket causes a reset.
const LINGER: Duration = Duration::from_millis(500);

/// How a stand-in behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on; port 0 chooses a free port.
    pub listen: SocketAddr,
    /// The time between two tokens. Zero sends as fast as the client reads, with one flush per
    /// token.
    pub token_interval: Duration,
    /// The time from a request to its first token, and so to its headers.
    pub load_time: Duration,
    /// The name of its only model.
    pub model: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            token_interval: Duration::from_millis(50),
            load_time: Duration::ZERO,
            model: "stand-in:latest".to_owned(),
        }
    }
}

/// A running stand-in. Dropping it closes its listener and all its connections.
#[derive(Debug)]
pub struct Ollama {
    addr: SocketAddr,
    app: Arc<App>,
    /// The one task that owns the listener and every connection.
    tasks: JoinSet<()>,
}

impl Ollama {
    /// Binds the listener and starts to serve.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let addr = listener.local_addr()?;
        let app = Arc::new(App { options, tally: Tally::default(), blobs: Blobs::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&app)));
        Ok(Self { addr, app, tasks })
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.app.tally.now()
    }

    /// Waits until `pred` holds for the counters; `Err` has the counters when the time was over.
    pub async fn wait_for(
        &self,
        pred: impl Fn(&Counters) -> bool,
        within: Duration,
    ) -> Result<Counters, Counters> {
        self.app.tally.wait_for(pred, within).await
    }

    /// Stops; returns when the port is free and every connection is closed.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        self.app.tally.no_connections().await;
    }
}

/// What all connections share.
#[derive(Debug)]
struct App {
    options: Options,
    tally: Tally,
    blobs: Blobs,
}

async fn accept(listener: TcpListener, app: Arc<App>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&app)));
                }
                // Most likely no descriptor is free: open connections may end soon.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, app: Arc<App>) {
    // First, so that it is dropped last: the count decreases only after the socket is closed.
    let _open = app.tally.connection();
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let app = Arc::clone(&app);
    let served = http1::Builder::new()
        // A half-close cancels: hyper then drops the handler or the body, and the generation with
        // it.
        .half_close(false)
        .header_read_timeout(None)
        .title_case_headers(true)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| routes::answer(Arc::clone(&app), request)),
        )
        .without_shutdown()
        .await;
    if let Ok(parts) = served {
        hang_up(parts.io.into_inner()).await;
    }
}

/// Sends FIN, then closes: at once if the client has sent FIN too, else after [`LINGER`] without
/// reading the rest, as Go's HTTP server does.
async fn hang_up(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let end = tokio::time::Instant::now() + LINGER;
    if let Ok(Ok(1..)) = timeout_at(end, stream.peek(&mut [0])).await {
        sleep_until(end).await;
    }
}

#[cfg(test)]
mod tests;
