//! The listener for Prometheus: on a loopback address or a Unix socket, and nowhere else, by type.

use std::{
    convert::Infallible,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use common::{
    machine::{
        files,
        process::{Protocol, port_holder},
    },
    transport::accept::accept,
};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How many connections may be open; Prometheus needs one.
const CONNECTIONS: usize = 16;
/// How long a connection may send nothing before it is closed.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Where the metrics are served: `127.0.0.1:9464` or `unix:/run/adit/metrics.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct MetricsAddr(ScrapeAddr);

#[derive(Debug, Clone, PartialEq, Eq)]
enum ScrapeAddr {
    Loopback(SocketAddr),
    Unix(PathBuf),
}

impl MetricsAddr {
    /// The path of the Unix socket, if it is one.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match &self.0 {
            ScrapeAddr::Unix(path) => Some(path),
            ScrapeAddr::Loopback(_) => None,
        }
    }

    /// Another address to try, which is never the same one.
    pub(crate) fn another(&self) -> Self {
        let mut address = match &self.0 {
            ScrapeAddr::Loopback(address) => *address,
            ScrapeAddr::Unix(_) => {
                return Self(ScrapeAddr::Loopback(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))));
            }
        };
        address.set_port(address.port().checked_add(1).unwrap_or(9464));
        Self(ScrapeAddr::Loopback(address))
    }

    /// How to correct the error if it can't be opened, besides choosing another address.
    pub(crate) fn cure(&self) -> Option<String> {
        let dir = self.missing_directory()?;
        let make = format!("make the directory: `mkdir -p '{}'`", dir.display());
        Some(match dir.strip_prefix("/run") {
            Ok(name) => format!(
                "{make}; in a unit of systemd, `RuntimeDirectory={}` makes it at every start",
                name.display()
            ),
            Err(_) => make,
        })
    }

    /// The directory of a socket, if it does not exist.
    fn missing_directory(&self) -> Option<&Path> {
        let ScrapeAddr::Unix(path) = &self.0 else { return None };
        path.parent().filter(|dir| !dir.exists())
    }
}

impl FromStr for MetricsAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            return if path.is_absolute() {
                Ok(Self(ScrapeAddr::Unix(path.to_owned())))
            } else {
                Err(format!(
                    "`{text}` is not an address for metrics: the path of a socket begins with `/`"
                ))
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().to_canonical().is_loopback() => {
                Ok(Self(ScrapeAddr::Loopback(address)))
            }
            Ok(_) => Err(format!(
                "`{text}` is not a loopback address: metrics are for this machine only (127.0.0.0/8 or [::1])"
            )),
            Err(_) => Err(format!(
                "`{text}` is not an address for metrics: write it as 127.0.0.1:9464 or unix:/run/adit/metrics.sock"
            )),
        }
    }
}

impl TryFrom<String> for MetricsAddr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for MetricsAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ScrapeAddr::Loopback(address) => write!(f, "{address}"),
            ScrapeAddr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An open listener that serves metrics.
pub(crate) struct Exporter {
    listener: Listener,
    /// Another process serves there: the socket's file is not removed here.
    is_given: bool,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Exporter {
    /// Listens. A socket file that a killed server has left behind is replaced.
    ///
    /// # Errors
    /// When the address is taken or may not be used.
    pub(crate) async fn bind(address: &MetricsAddr) -> io::Result<Self> {
        let listener = match &address.0 {
            ScrapeAddr::Loopback(address) => {
                Listener::Tcp(TcpListener::bind(address).await.map_err(|e| taken(e, *address))?)
            }
            ScrapeAddr::Unix(path) => {
                // Without a directory of its own, the mode below could be given to another file.
                if let Some(dir) = path.parent().filter(|dir| dir.exists()) {
                    files::refuse_shared_dir(dir).map_err(io::Error::other)?;
                }
                remove_stale(path)?;
                let listener =
                    UnixListener::bind(path).map_err(|e| match address.missing_directory() {
                        Some(dir) => io::Error::new(
                            e.kind(),
                            format!("there is no directory `{}`", dir.display()),
                        ),
                        None => e,
                    })?;
                // Access to the directory decides who can reach the socket; its group may connect.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
                Listener::Unix(listener, path.clone())
            }
        };
        Ok(Self { listener, is_given: false })
    }

    /// Takes the listener over from another process that has opened it for the same address. Must be
    /// called within a runtime.
    ///
    /// # Errors
    /// If it is no listener of that kind.
    pub(crate) fn take_over(address: &MetricsAddr, listener: OwnedFd) -> io::Result<Self> {
        let listener = match &address.0 {
            ScrapeAddr::Loopback(_) => {
                let listener = std::net::TcpListener::from(listener);
                listener.local_addr()?;
                Listener::Tcp(TcpListener::from_std(listener)?)
            }
            ScrapeAddr::Unix(path) => {
                let listener = std::os::unix::net::UnixListener::from(listener);
                listener.local_addr()?;
                Listener::Unix(UnixListener::from_std(listener)?, path.clone())
            }
        };
        Ok(Self { listener, is_given: true })
    }

    /// A copy of the listener, for another process.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub(crate) fn listener(&self) -> io::Result<OwnedFd> {
        match &self.listener {
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Listener::Unix(listener, _) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// The address, for the log.
    pub(crate) fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp(listener) => {
                listener.local_addr().map(|a| format!("http://{a}/metrics")).unwrap_or_default()
            }
            Listener::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Serves the metrics for as long as it is polled; no more when another process serves them
    /// (`replaced`).
    pub(crate) async fn serve(
        mut self,
        text: impl Fn() -> String + Clone + Send + 'static,
        replaced: CancellationToken,
    ) {
        self.is_given = false;
        let mut connections = JoinSet::new();
        loop {
            let connection = tokio::select! {
                () = replaced.cancelled() => {
                    self.is_given = true;
                    return std::future::pending().await;
                }
                taken = accept("metrics", || self.listener.accept()), if connections.len() < CONNECTIONS => taken,
                Some(_) = connections.join_next() => continue,
            };
            connections.spawn(serve_one(connection, text.clone()));
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = &self.listener
            && !self.is_given
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }
}

fn taken(error: io::Error, address: SocketAddr) -> io::Error {
    let holder = (error.kind() == io::ErrorKind::AddrInUse)
        .then(|| port_holder(address, Protocol::TCP))
        .flatten();
    holder.map_or(error, |holder| {
        io::Error::new(io::ErrorKind::AddrInUse, format!("address already in use by {holder}"))
    })
}

/// Removes a socket file only if nobody listens on it.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is something there that is no socket",
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(e) => Err(e),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

async fn serve_one(connection: Box<dyn Stream>, text: impl Fn() -> String) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &text);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    // A scraper that disconnects is not an error.
    let _ = http.serve_connection(TokioIo::new(connection), service).await;
}

fn answer(request: &Request<Incoming>, text: &impl Fn() -> String) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            response.headers_mut().insert(CONTENT_TYPE, OPENMETRICS);
            *response.body_mut() = text().into();
        }
        (_, "/metrics") => {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        }
        _ => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            *response.body_mut() = "metrics are at /metrics\n".into();
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn metrics_are_served_on_this_machine_only() {
        for good in ["127.0.0.1:9464", "[::1]:9464", "unix:/run/adit/metrics.sock"] {
            assert_eq!(good.parse::<MetricsAddr>().expect(good).to_string(), good);
        }
        for (bad, says) in [
            ("0.0.0.0:9464", "not a loopback address"),
            ("192.168.1.7:9464", "not a loopback address"),
            ("[::ffff:10.0.0.1]:1", "not a loopback address"),
            ("9464", "write it as"),
            ("localhost:9464", "write it as"),
            ("unix:metrics.sock", "begins with `/`"),
        ] {
            let error = bad.parse::<MetricsAddr>().expect_err(bad);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_address_to_try_instead_is_never_the_same_one() {
        for (address, another) in [
            ("127.0.0.1:9464", "127.0.0.1:9465"),
            ("[::1]:9000", "[::1]:9001"),
            ("127.0.0.1:65535", "127.0.0.1:9464"),
            ("unix:/run/adit/metrics.sock", "127.0.0.1:9464"),
        ] {
            assert_eq!(
                address.parse::<MetricsAddr>().expect("a place").another().to_string(),
                another
            );
        }
    }

    #[test]
    fn a_missing_directory_is_made_by_hand_or_by_the_unit() {
        let cure = |address: &str| address.parse::<MetricsAddr>().expect("a place").cure();
        let cured = cure("unix:/run/no-such-adit/metrics.sock").expect("a cure");
        assert!(
            cured.contains("`mkdir -p '/run/no-such-adit'`")
                && cured.contains("`RuntimeDirectory=no-such-adit`"),
            "{cured}"
        );
        let elsewhere = cure("unix:/no-such-adit/metrics.sock").expect("a cure");
        assert_eq!(elsewhere, "make the directory: `mkdir -p '/no-such-adit'`");
        assert_eq!((cure("unix:/metrics.sock"), cure("127.0.0.1:1")), (None, None));
    }

    async fn ask(path: &Path, request: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(path).await.expect("connected");
        stream
            .write_all(
                format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .await
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn a_socket_is_served_replaced_when_stale_and_never_taken_from_another() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("metrics.sock");
        let address: MetricsAddr = format!("unix:{}", path.display()).parse().expect("a place");
        // A killed server leaves its socket file behind like this.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let exporter = Exporter::bind(&address).await.expect("replaced");
        assert!(Exporter::bind(&address).await.is_err());
        let asked = async {
            let answer = ask(&path, "GET /metrics").await;
            assert!(
                answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("# EOF\n"),
                "{answer}"
            );
            assert!(ask(&path, "POST /metrics").await.starts_with("HTTP/1.1 405 "));
            assert!(ask(&path, "GET /").await.starts_with("HTTP/1.1 404 "));
            assert!(!ask(&path, "HEAD /metrics").await.contains("EOF"));
        };
        tokio::select! { () = asked => {}, () = exporter.serve(|| "# EOF\n".to_owned(), CancellationToken::new()) => {} }
        assert!(!path.exists(), "it is removed with its listener");
        std::fs::write(&path, "mine").expect("written");
        assert!(Exporter::bind(&address).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("it is still there"), "mine");
    }
}
