//! A stand-in for Ollama, for tests and for the demo.
//!
//! It speaks HTTP as Ollama does where a tunnel could notice the difference: one flush per token,
//! headers that come only with the first token, an early answer to an upload nobody needs, and a
//! generation that is cancelled as soon as the client's side of the connection ends. Its answers
//! depend on the request alone (no clock, no chance), so two ways to the same stand-in can be
//! compared byte for byte.

mod blobs;
mod bytes;
mod counters;
mod generation;
mod native;
mod openai;
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

/// How long a connection that was answered early stays up, as long as Go's HTTP server leaves it:
/// enough for the client to read the answer before the reset that unread data in the socket brings.
const LINGER: Duration = Duration::from_millis(500);

/// How a stand-in behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// From one token to the next; zero sends as fast as the client reads, still one flush per
    /// token.
    pub token_interval: Duration,
    /// From a request to its first token, and so to its headers.
    pub load_time: Duration,
    /// The only model there is.
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

/// A running stand-in. Dropping it stops its listener and all its connections.
#[derive(Debug)]
pub struct Ollama {
    addr: SocketAddr,
    app: Arc<App>,
    /// Holds the one task that owns the listener and every connection.
    tasks: JoinSet<()>,
}

impl Ollama {
    /// Binds the listener and begins to serve.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let addr = listener.local_addr()?;
        let app = Arc::new(App { options, tally: Tally::default(), blobs: Blobs::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&app)));
        Ok(Self { addr, app, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.app.tally.now()
    }

    /// Waits until `pred` holds for the counters; `Err` carries what they were when the time was
    /// up.
    pub async fn wait_for(
        &self,
        pred: impl Fn(&Counters) -> bool,
        within: Duration,
    ) -> Result<Counters, Counters> {
        self.app.tally.wait_for(pred, within).await
    }

    /// Stops, and returns once the port is free and every connection is closed.
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
                // Out of descriptors, most likely: give the open connections a moment to end.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, app: Arc<App>) {
    // First, so that it is dropped last: the count goes down only after the socket is closed.
    let _open = app.tally.connection();
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let app = Arc::clone(&app);
    let served = http1::Builder::new()
        // A half-close cancels: hyper then drops the handler or the body, and with it the
        // generation.
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

/// Ends our side, then closes: at once if the client has ended too, else after [`LINGER`] with
/// whatever it still sends left unread, as Go's HTTP server does.
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
