//! `authorize`: a service of the owner's own that is asked over HTTP who may do what: on this
//! machine, or over HTTPS on another one that its owner has named.

mod address;
mod answer;
mod question;
mod trust;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::machine::report::Failure;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request,
    body::Bytes,
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

pub(crate) use self::{
    address::Address,
    answer::{Grant, Refusal},
    question::{At, Fields, How, Question},
    trust::Trust,
};
use self::{
    address::AuthorityAddr,
    answer::{MOST_BODY, Verdict},
};
use crate::outside;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How many answers are remembered, of one device and of all, and for how long at most. The crates
/// for caches have no bound for each device, so that one device could push out the answers of all.
const MOST_OF_ONE: usize = 256;
const MOST_REMEMBERED: usize = 4096;
/// The longest question whose answer is remembered, counted in bytes that the application has
/// written.
const MOST_QUESTION: usize = 1024;
/// The longest list of models that is remembered.
const MOST_MODELS: usize = 64;
/// The longest refusal that is remembered, in bytes of its body.
const MOST_REFUSAL: usize = 1024;

/// What the configuration says of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizeSettings {
    /// Where it is.
    pub address: Address,
    /// When it is asked.
    pub at: Vec<At>,
    /// The header fields of a request that it gets.
    pub headers: Vec<HeaderName>,
    /// How often it is asked again about a request that runs; `None` for never.
    pub recheck: Option<Duration>,
    /// Whose certificates are believed, if it is reached by HTTPS.
    pub trust: Option<Trust>,
}

/// Why the service did not allow it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    /// It answered 401 or 403.
    #[error("the server's own rules (`authorize`) do not allow this")]
    No(Arc<Refusal>),
    /// Any other answer, or none.
    #[error("the server could not ask its own rules (`authorize`)")]
    Failed(#[source] io::Error),
}

/// A service that can be asked.
#[derive(Debug)]
pub struct Authority {
    settings: AuthorizeSettings,
    remembered: Mutex<HashMap<Question, (Verdict, Instant)>>,
}

impl Authority {
    /// Asks as these settings say.
    pub fn new(settings: AuthorizeSettings) -> Self {
        Self { settings, remembered: Mutex::default() }
    }

    /// Whether both have the same settings.
    pub fn is_same(&self, other: &Self) -> bool {
        self.settings == other.settings
    }

    /// How often it is asked again about a request that runs; `None` for never.
    pub fn recheck(&self) -> Option<Duration> {
        self.settings.recheck
    }

    /// The fields of a request that it gets, from the request's head.
    pub fn fields(&self, head: &[u8]) -> Fields {
        Fields::of(head, &self.settings.headers)
    }

    /// Whether it is asked on this occasion.
    pub fn is_asked(&self, at: At) -> bool {
        self.settings.at.contains(&at)
    }

    /// Asks, unless this occasion is not asked about or the same question was answered lately.
    ///
    /// # Errors
    /// A refusal, or no answer; the log says why.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ask(&self, question: Question) -> Result<Arc<Grant>, AuthorizeError> {
        if !self.is_asked(question.at) {
            return Ok(Arc::default());
        }
        let verdict = match self.remembered(&question) {
            Some(verdict) => verdict,
            None => {
                let asked = tokio::time::timeout(ANSWER_WITHIN, self.ask_now(&question)).await;
                let (verdict, good_for) = asked.unwrap_or_else(|_| Err(silent())).map_err(|e| {
                    tracing::warn!("cannot ask {}: {e}", self.settings.address);
                    AuthorizeError::Failed(e)
                })?;
                self.remember(question, verdict.clone(), good_for);
                verdict
            }
        };
        verdict.map_err(AuthorizeError::No)
    }

    /// Where it is asked.
    pub(crate) fn address(&self) -> &Address {
        &self.settings.address
    }

    /// How long it takes to answer, whatever the answer is. Cancellation safe.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn time(&self, question: &Question) -> io::Result<Duration> {
        let began = Instant::now();
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.ask_now(question)).await;
        drop(asked.unwrap_or_else(|_| Err(silent()))?);
        Ok(began.elapsed())
    }

    async fn ask_now(&self, question: &Question) -> io::Result<(Verdict, Duration)> {
        let AuthorizeSettings { address, trust, .. } = &self.settings;
        let (Address { location, path }, host) = (address, address.host());
        match location {
            AuthorityAddr::Tcp(address) => {
                exchange(TcpStream::connect(address.get()).await?, &host, path, question).await
            }
            AuthorityAddr::Unix(socket) => {
                exchange(outside::connect(socket).await?, &host, path, question).await
            }
            AuthorityAddr::Https(server) => {
                let trust = trust.as_ref().ok_or_else(|| io::Error::other("no CA is trusted"))?;
                let name = server.name.to_str().into_owned();
                let all = outside::addresses(&name, server.port).await?;
                let tcp = TcpStream::connect(&*all).await?;
                let tls = TlsConnector::from(trust.tls.clone()).connect(server.name.clone(), tcp);
                exchange(tls.await?, &host, path, question).await
            }
        }
    }

    fn remembered(&self, question: &Question) -> Option<Verdict> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (verdict, until) = remembered.get(question)?;
        if *until > Instant::now() {
            return Some(verdict.clone());
        }
        remembered.remove(question);
        None
    }

    fn remember(&self, question: Question, verdict: Verdict, good_for: Duration) {
        let is_long = match &verdict {
            Ok(grant) => grant.models.as_ref().is_some_and(|models| models.len() > MOST_MODELS),
            Err(refusal) => refusal.answer.body.len() > MOST_REFUSAL,
        };
        if good_for.is_zero() || is_long || question.written() > MOST_QUESTION {
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
    host: &str,
    path: &str,
    question: &Question,
) -> io::Result<(Verdict, Duration)> {
    let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = request(host, path, question)?;
    let answered = async {
        let (head, body) =
            requests.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = if answer::has_body(head.status, &head.headers) {
            let whole = Limited::new(body, MOST_BODY).collect().await;
            match whole {
                Ok(whole) => Some(whole.to_bytes()),
                Err(e) if e.is::<http_body_util::LengthLimitError>() => None,
                Err(e) => return Err(io::Error::other(e)),
            }
        } else {
            Some(Bytes::new())
        };
        let verdict = answer::read(head.status, &head.headers, body.as_deref());
        Ok((verdict.map_err(io::Error::other)?, answer::good_for(&head.headers)))
    };
    tokio::pin!(answered, connection);
    tokio::select! {
        answer = &mut answered => answer,
        _ = &mut connection => answered.await,
    }
}

/// The question as a request: with the fields that services for nginx's `auth_request` read.
fn request(host: &str, path: &str, question: &Question) -> io::Result<Request<Full<Bytes>>> {
    let json = serde_json::to_vec(question)?;
    let mut request = Request::post(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(CONNECTION, HeaderValue::from_static("close"));
    for (name, value) in
        [("X-Original-Method", &question.method), ("X-Original-URI", &question.uri)]
    {
        // Both are visible ASCII: the head was parsed.
        if let Some(value) = value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
            request = request.header(name, value);
        }
    }
    for (name, value) in question.fields.iter() {
        request = request.header(name, value);
    }
    request.body(Full::new(Bytes::from(json))).map_err(io::Error::other)
}

impl From<AuthorizeError> for Failure {
    fn from(refusal: AuthorizeError) -> Self {
        Self::from_error(refusal).hint("see `authorize` in the server's configuration")
    }
}

#[cfg(test)]
mod tests {
    use proto::identity::DeviceId;

    use super::*;

    #[test]
    fn remembered_answers_are_bounded_and_expire() {
        let authority = Authority::new(AuthorizeSettings {
            address: "unix:/x".parse().expect("an address"),
            at: vec![At::Request],
            headers: Vec::new(),
            recheck: None,
            trust: None,
        });
        let (yes, other) = (
            || Ok(Arc::<Grant>::default()),
            || Ok(Arc::new(Grant { role: "models".parse().ok(), ..Grant::default() })),
        );
        let question = |path: String| Question {
            at: At::Request,
            device: "laptop".parse().expect("a name"),
            device_id: None,
            device_uid: None,
            enrolled: How::Code,
            key: false,
            token: false,
            user: None,
            role: "infer".parse().expect("a name"),
            service: None,
            method: Some("GET".into()),
            path: Some(path.into()),
            uri: None,
            model: None,
            models: vec![],
            fields: Fields::default(),
        };
        authority.remember(question("/old".into()), yes(), Duration::from_nanos(1));
        assert_eq!(authority.remembered(&question("/old".into())), None);
        let long = format!("/{}", "x".repeat(MOST_QUESTION));
        authority.remember(question(long.clone()), yes(), Duration::from_secs(60));
        assert_eq!(authority.remembered(&question(long)), None);
        for i in 0..2 * MOST_OF_ONE {
            authority.remember(
                question(format!("/{i}")),
                if i == 0 { other() } else { yes() },
                Duration::from_secs(60),
            );
        }
        assert_eq!(authority.remembered.lock().expect("lock").len(), MOST_OF_ONE);
        assert_eq!(authority.remembered(&question("/0".into())), Some(other()));
        for _ in 0..2 * MOST_REMEMBERED / MOST_OF_ONE {
            let device_id = Some(DeviceId::generate());
            for i in 0..MOST_OF_ONE {
                authority.remember(
                    Question { device_id, ..question(format!("/{i}")) },
                    yes(),
                    Duration::from_secs(60),
                );
            }
        }
        assert_eq!(authority.remembered.lock().expect("lock").len(), MOST_REMEMBERED);
        assert_eq!(authority.remembered(&question("/1".into())), Some(yes()));
    }
}
