//! The demo's HTTP client: small requests, and Ollama's answers piece by piece as they come.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::machine::report::Failure;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

/// The time limit of requests that need no model. Longer than `adit up` holds a request while it
/// has no tunnel.
const SMALL_WITHIN: Duration = Duration::from_secs(40);
/// The time limit of the first token: a large model may have to be loaded from a slow disk.
const FIRST_WITHIN: Duration = Duration::from_secs(300);
const NEXT_WITHIN: Duration = Duration::from_secs(60);

/// A connection that is reused.
pub(super) struct Client {
    address: SocketAddr,
    requests: SendRequest<Full<Bytes>>,
    /// The one task that moves the bytes.
    _driver: JoinSet<()>,
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let failed = || Failure::new(format!("cannot connect to {address}"));
        let tcp = TcpStream::connect(address).await.map_err(|e| failed().source(e))?;
        tcp.set_nodelay(true).map_err(|e| failed().source(e))?;
        let (requests, connection) =
            http1::handshake(TokioIo::new(tcp)).await.map_err(|e| failed().source(e))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // An error reaches the caller through the answer.
            let _ = connection.await;
        });
        Ok(Self { address, requests, _driver: driver })
    }

    /// Sends a GET and reads the whole answer.
    pub(super) async fn get(&mut self, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        let asked = async { whole(self.send(Method::GET, path, Bytes::new()).await?).await };
        let asked = timeout(SMALL_WITHIN, asked).await;
        self.judge(path, asked)
    }

    /// Sends JSON and reads the whole answer.
    pub(super) async fn post(
        &mut self,
        path: &str,
        json: &Value,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let asked =
            async { whole(self.send(Method::POST, path, json.to_string().into()).await?).await };
        let asked = timeout(SMALL_WITHIN, asked).await;
        self.judge(path, asked)
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Both have only characters that a header or a path may have.
        if let Ok(path) = path.parse() {
            *request.uri_mut() = path;
        }
        if let Ok(host) = self.address.to_string().parse() {
            request.headers_mut().insert(HOST, host);
        }
        let json = hyper::header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        self.requests.ready().await?;
        self.requests.send_request(request).await
    }

    fn judge<T>(
        &self,
        path: &str,
        asked: Result<Result<T, hyper::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, Failure> {
        let failed = || Failure::new(format!("http://{}{path} did not answer", self.address));
        match asked {
            Ok(answer) => answer.map_err(|e| failed().source(e)),
            Err(elapsed) => Err(failed().source(elapsed)),
        }
    }
}

async fn whole(response: Response<Incoming>) -> Result<(StatusCode, Bytes), hyper::Error> {
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

/// The next event of an answer.
pub(super) enum Event {
    /// A piece of text.
    Token(String),
    /// The answer is complete.
    Done,
    /// The connection broke before the answer was complete.
    Cut,
}

/// A running answer.
pub(super) struct Answer {
    _client: Client,
    body: Incoming,
    asked: Instant,
    raw: Vec<u8>,
    read: usize,
}

/// A complete answer.
pub(super) struct Whole {
    /// From before the connection was made to the first token.
    pub(super) first: Duration,
    /// From one token to the next.
    pub(super) gaps: Vec<Duration>,
    /// The text.
    pub(super) text: String,
    /// The body, byte by byte.
    pub(super) raw: Vec<u8>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    response: String,
    /// Some models send their thoughts first.
    thinking: Option<String>,
    #[serde(default)]
    done: bool,
    error: Option<String>,
}

impl Answer {
    /// Asks over a new connection, as most tools do.
    pub(super) async fn ask(address: SocketAddr, question: &Value) -> Result<Self, Failure> {
        const PATH: &str = "/api/generate";
        let asked = Instant::now();
        let mut client = Client::connect(address).await?;
        let answer =
            timeout(FIRST_WITHIN, client.send(Method::POST, PATH, question.to_string().into()))
                .await;
        let response = client.judge(PATH, answer)?;
        if response.status() != StatusCode::OK {
            let said = timeout(SMALL_WITHIN, whole(response)).await;
            let (status, body) = client.judge(PATH, said)?;
            let why = String::from_utf8_lossy(&body).into_owned();
            return Err(
                Failure::new(format!("http://{address}{PATH} answered {status}")).source(why)
            );
        }
        Ok(Self { _client: client, body: response.into_body(), asked, raw: Vec::new(), read: 0 })
    }

    /// Waits for the next event.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            while let Some(line) = self.line()? {
                match line {
                    Line { error: Some(why), .. } => {
                        return Err(
                            Failure::new("Ollama gave up in the middle of an answer").source(why)
                        );
                    }
                    Line { done: true, .. } => return Ok(Event::Done),
                    Line { response, thinking, .. } => {
                        match thinking.unwrap_or_default() + &response {
                            nothing if nothing.is_empty() => {}
                            token => return Ok(Event::Token(token)),
                        }
                    }
                }
            }
            match timeout(NEXT_WITHIN, self.body.frame()).await {
                Ok(Some(Ok(frame))) => self.raw.extend(frame.into_data().unwrap_or_default()),
                Ok(Some(Err(_))) => return Ok(Event::Cut),
                Ok(None) => {
                    return Err(Failure::new(
                        "an answer ended without its last line, as if it were complete",
                    ));
                }
                Err(_) => {
                    return Err(Failure::new("an answer stopped")
                        .source(format!("no token for {} s", NEXT_WITHIN.as_secs())));
                }
            }
        }
    }

    /// Reads the answer to its end and calls `each` for every token.
    pub(super) async fn whole(mut self, each: impl Fn(&str)) -> Result<Whole, Failure> {
        let (mut times, mut text) = (Vec::new(), String::new());
        let cut = || Failure::new("an answer was cut in the middle");
        loop {
            match self.next().await? {
                Event::Token(token) => {
                    times.push(Instant::now());
                    each(&token);
                    text += &token;
                }
                Event::Done => break,
                Event::Cut => return Err(cut()),
            }
        }
        let end = timeout(SMALL_WITHIN, self.body.collect()).await;
        let end = end.map_err(|e| cut().source(e))?.map_err(|e| cut().source(e))?;
        self.raw.extend(end.to_bytes());
        let first = times.first().ok_or_else(|| Failure::new("an answer had no words in it"))?;
        Ok(Whole {
            first: first.duration_since(self.asked),
            gaps: times.windows(2).map(|pair| pair[1].duration_since(pair[0])).collect(),
            text,
            raw: self.raw,
        })
    }

    fn line(&mut self) -> Result<Option<Line>, Failure> {
        let rest = &self.raw[self.read..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line = serde_json::from_slice(&rest[..end]);
        self.read += end + 1;
        line.map(Some).map_err(|e| {
            Failure::new("an answer has a line in it that is no JSON of Ollama's").source(e)
        })
    }
}
