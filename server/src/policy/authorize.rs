//! `authorize`: a service of the owner's own, on this machine, that is asked over HTTP who may do
//! what.

use std::{
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::machine::report::Failure;
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use proto::identity::{DeviceId, Name, UserName};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::policy::upstream::{LoopbackAddr, Upstream};

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How many answers are remembered, of one device and of all, and for how long at most. The crates
/// for caches have no bound for each device, so that one device could push out the answers of all.
const MOST_OF_ONE: usize = 256;
const MOST_REMEMBERED: usize = 4096;
/// The longest question whose answer is remembered, counted in bytes that the application has
/// written.
const MOST_QUESTION: usize = 1024;
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The address of the service: `http://127.0.0.1:9000/check` or `unix:/run/check.sock:/check`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    location: AuthorityAddr,
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum AuthorityAddr {
    Tcp(LoopbackAddr),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an address for `authorize`: write it like http://127.0.0.1:9000/check or unix:/run/check.sock:/check"
            )
        };
        let (location, path) = if let Some(rest) = text.strip_prefix("unix:") {
            let (socket, path) = rest.rsplit_once(":/").unwrap_or((rest, ""));
            if !socket.starts_with('/') {
                return Err(wrong());
            }
            (AuthorityAddr::Unix(socket.into()), path)
        } else {
            let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let upstream: Upstream =
                format!("http://{authority}").parse().map_err(|e| format!("{e}"))?;
            (AuthorityAddr::Tcp(upstream.address()), path)
        };
        if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(wrong());
        }
        Ok(Self { location, path: format!("/{path}") })
    }
}

impl Address {
    /// A command that asks there.
    pub(crate) fn by_hand(&self) -> String {
        match &self.location {
            AuthorityAddr::Tcp(address) => {
                format!("curl -i -d '{{}}' 'http://{}{}'", address.get(), self.path)
            }
            AuthorityAddr::Unix(socket) => {
                format!(
                    "curl -i -d '{{}}' --unix-socket '{}' 'http://localhost{}'",
                    socket.display(),
                    self.path
                )
            }
        }
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            AuthorityAddr::Tcp(address) => write!(f, "http://{}{}", address.get(), self.path),
            AuthorityAddr::Unix(socket) => write!(f, "unix:{}:{}", socket.display(), self.path),
        }
    }
}

/// When the service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum At {
    /// When a device enrolls.
    Enroll,
    /// Before each request.
    Request,
}

/// The question, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Question {
    pub at: At,
    pub device: Name,
    /// The device's id, if it has one already.
    pub device_id: Option<DeviceId>,
    /// The user of this machine who enrolls or has enrolled it over SSH.
    pub device_uid: Option<u32>,
    /// Whether it is a key, over HTTPS, and no device.
    pub key: bool,
    /// The person to whom the device or key belongs, if that is known.
    pub user: Option<UserName>,
    pub role: Name,
    pub method: Option<Box<str>>,
    /// The request's path, without its query.
    pub path: Option<Box<str>>,
    /// The model that the request names.
    pub model: Option<String>,
    /// All models, if the request names several.
    pub models: Vec<String>,
}

impl Question {
    /// The question whether a device may enroll.
    pub fn enrolling(
        device: Name,
        device_uid: Option<u32>,
        user: Option<UserName>,
        role: Name,
    ) -> Self {
        Self {
            at: At::Enroll,
            device,
            device_id: None,
            device_uid,
            key: false,
            user,
            role,
            method: None,
            path: None,
            model: None,
            models: Vec::new(),
        }
    }

    /// How many bytes of the question the application has written.
    fn written(&self) -> usize {
        let texts = [self.method.as_deref(), self.path.as_deref(), self.model.as_deref()];
        texts
            .into_iter()
            .flatten()
            .chain(self.models.iter().map(String::as_str))
            .map(str::len)
            .sum()
    }
}

/// Why the service did not allow it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    /// It answered 401 or 403.
    #[error("the server's own rules (`authorize`) do not allow this")]
    No,
    /// Any other answer, or none.
    #[error("the server could not ask its own rules (`authorize`)")]
    Failed(#[source] io::Error),
}

/// A service that can be asked.
#[derive(Debug)]
pub struct Authority {
    address: Address,
    at: Vec<At>,
    remembered: Mutex<HashMap<Question, (bool, Instant)>>,
}

impl Authority {
    /// Asks at this address, on these occasions.
    pub fn new(address: Address, at: Vec<At>) -> Self {
        Self { address, at, remembered: Mutex::default() }
    }

    /// Whether both have the same address and occasions.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.address, &self.at) == (&other.address, &other.at)
    }

    /// Whether it is asked on this occasion.
    pub fn is_asked(&self, at: At) -> bool {
        self.at.contains(&at)
    }

    /// Asks, unless this occasion is not asked about or the same question was answered lately.
    ///
    /// # Errors
    /// A refusal, or no answer; the log says why.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ask(&self, question: Question) -> Result<(), AuthorizeError> {
        if !self.is_asked(question.at) {
            return Ok(());
        }
        let verdict = match self.remembered(&question) {
            Some(verdict) => verdict,
            None => {
                let asked = tokio::time::timeout(ANSWER_WITHIN, self.ask_now(&question)).await;
                let (verdict, good_for) = asked.unwrap_or_else(|_| Err(silent())).map_err(|e| {
                    tracing::warn!("cannot ask {}: {e}", self.address);
                    AuthorizeError::Failed(e)
                })?;
                self.remember(question, verdict, good_for);
                verdict
            }
        };
        if verdict { Ok(()) } else { Err(AuthorizeError::No) }
    }

    /// Where it is asked.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// How long it takes to answer, whatever the answer is. Cancellation safe.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn time(&self, question: &Question) -> io::Result<Duration> {
        let began = Instant::now();
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.ask_now(question)).await;
        asked.unwrap_or_else(|_| Err(silent()))?;
        Ok(began.elapsed())
    }

    async fn ask_now(&self, question: &Question) -> io::Result<(bool, Duration)> {
        let json = serde_json::to_vec(question)?;
        match &self.address.location {
            AuthorityAddr::Tcp(address) => {
                exchange(TcpStream::connect(address.get()).await?, &self.address.path, json).await
            }
            AuthorityAddr::Unix(socket) => {
                exchange(UnixStream::connect(socket).await?, &self.address.path, json).await
            }
        }
    }

    fn remembered(&self, question: &Question) -> Option<bool> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (verdict, until) = *remembered.get(question)?;
        if until > Instant::now() {
            return Some(verdict);
        }
        remembered.remove(question);
        None
    }

    fn remember(&self, question: Question, verdict: bool, good_for: Duration) {
        if good_for.is_zero() || question.written() > MOST_QUESTION {
            return;
        }
        let (mut remembered, now) =
            (self.remembered.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let is_full = |remembered: &HashMap<Question, _>| {
            let of_one =
                remembered.keys().filter(|other| other.device_id == question.device_id).count();
            remembered.len() >= MOST_REMEMBERED || of_one >= MOST_OF_ONE
        };
        if is_full(&remembered) {
            remembered.retain(|_, (_, until)| *until > now);
        }
        // The memory is still full: the question will be asked again, which is only slower.
        if !is_full(&remembered) {
            remembered.insert(question, (verdict, now + good_for));
        }
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("silent for {} s", ANSWER_WITHIN.as_secs()))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
    json: Vec<u8>,
) -> io::Result<(bool, Duration)> {
    let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = Request::post(path)
        .header(HOST, HeaderValue::from_static("localhost"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(CONNECTION, HeaderValue::from_static("close"))
        .body(Full::new(Bytes::from(json)))
        .map_err(io::Error::other)?;
    let answer = requests.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    let answer = answer.map_err(io::Error::other)?;
    let good_for = answer
        .headers()
        .get(CACHE_CONTROL)
        .and_then(|value| value.to_str().ok())
        .map_or(Duration::ZERO, max_age);
    match answer.status() {
        status if status.is_success() => Ok((true, good_for)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok((false, good_for)),
        status => Err(io::Error::other(format!("it answered {status}"))),
    }
}

/// RFC 9111 section 5.2.2. Zero if any directive forbids storing. The crate `headers` compares the
/// names of directives with regard to case, which section 5.2 forbids.
fn max_age(value: &str) -> Duration {
    let mut age = Duration::ZERO;
    for directive in value.split(',').map(|directive| directive.trim().to_ascii_lowercase()) {
        match directive.split_once('=') {
            Some(("max-age", seconds)) => {
                age = seconds.parse().map_or(Duration::ZERO, Duration::from_secs)
            }
            _ if directive == "no-store" || directive == "no-cache" => return Duration::ZERO,
            _ => {}
        }
    }
    age.min(LONGEST)
}

impl From<AuthorizeError> for Failure {
    fn from(refusal: AuthorizeError) -> Self {
        Self::from_error(refusal).hint("see `authorize` in the server's configuration")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_accepted() {
        for (text, shown) in [
            ("http://127.0.0.1:9000/check", "http://127.0.0.1:9000/check"),
            ("http://localhost:9000", "http://127.0.0.1:9000/"),
            ("http://[::1]:9/a/b?c=d", "http://[::1]:9/a/b?c=d"),
            ("unix:/run/check.sock:/check", "unix:/run/check.sock:/check"),
            ("unix:/run/check.sock", "unix:/run/check.sock:/"),
        ] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(shown));
        }
        for bad in [
            "http://10.0.0.1:1/x",
            "http://gpu.lan:1/x",
            "https://127.0.0.1/x",
            "unix:run.sock",
            "127.0.0.1:9000",
            "http://127.0.0.1:1/a b",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_is_valid_for_its_max_age() {
        for (value, seconds) in [
            ("max-age=60", 60),
            ("private, MAX-AGE=5", 5),
            ("no-store, max-age=60", 0),
            ("max-age=60, no-cache", 0),
            ("max-age=soon", 0),
            ("max-age=-1", 0),
            ("", 0),
            ("max-age=99999999", 86_400),
        ] {
            assert_eq!(max_age(value), Duration::from_secs(seconds), "{value}");
        }
    }

    #[test]
    fn remembered_answers_are_bounded_and_expire() {
        let authority = Authority::new("unix:/x".parse().expect("an address"), vec![At::Request]);
        let question = |path: String| Question {
            at: At::Request,
            device: "laptop".parse().expect("a name"),
            device_id: None,
            device_uid: None,
            key: false,
            user: None,
            role: "infer".parse().expect("a name"),
            method: Some("GET".into()),
            path: Some(path.into()),
            model: None,
            models: vec![],
        };
        authority.remember(question("/old".into()), true, Duration::from_nanos(1));
        assert_eq!(authority.remembered(&question("/old".into())), None);
        let long = format!("/{}", "x".repeat(MOST_QUESTION));
        authority.remember(question(long.clone()), true, Duration::from_secs(60));
        assert_eq!(authority.remembered(&question(long)), None);
        for i in 0..2 * MOST_OF_ONE {
            authority.remember(question(format!("/{i}")), i == 0, Duration::from_secs(60));
        }
        assert_eq!(authority.remembered.lock().expect("lock").len(), MOST_OF_ONE);
        assert_eq!(authority.remembered(&question("/0".into())), Some(true));
        for _ in 0..2 * MOST_REMEMBERED / MOST_OF_ONE {
            let device_id = Some(DeviceId::generate());
            for i in 0..MOST_OF_ONE {
                authority.remember(
                    Question { device_id, ..question(format!("/{i}")) },
                    true,
                    Duration::from_secs(60),
                );
            }
        }
        assert_eq!(authority.remembered.lock().expect("lock").len(), MOST_REMEMBERED);
        assert_eq!(authority.remembered(&question("/1".into())), Some(false));
    }
}
