//! Examines Ollama: asks it as a tool would, at its own address and at the other addresses of this
//! machine.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use common::machine::{
    network::own_addresses,
    process::{Protocol, port_holder_pid},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{CONNECTION, HOST, ORIGIN},
};
use hyper_util::rt::TokioIo;
use proto::doctor::gpu_box::{
    Unit,
    ollama::{KEPT, Ollama, Pages, Parallel, VersionAnswer},
};
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinSet};

use super::systemd;
use crate::{
    outside::{self, Around},
    policy::upstream::{Kind, UnixJoins, Upstream, connect},
};

const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a connection from this machine to itself may take.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// The longest answer that is read, in bytes.
const MOST: usize = 4 << 20;
/// The header `Origin` of a page of another site, and of a browser extension.
const OTHER_SITE: &str = "http://adit-doctor.example";
const EXTENSION: &str = "chrome-extension://aditdoctoraditdoctoraditdoctorad";

/// What was found, the directory of its models if its environment names one, and the unit of aditd.
pub(super) struct OllamaOutcome {
    pub(super) found: Ollama,
    pub(super) unit: Option<Unit>,
    pub(super) models_dir: Option<PathBuf>,
}

/// Where something is asked.
#[derive(Clone, Copy)]
enum At<'a> {
    Upstream(&'a Upstream),
    Address(SocketAddr),
}

/// Examines what listens at `upstream`.
pub(super) async fn look(upstream: &Upstream) -> OllamaOutcome {
    let (address, at) = (upstream.address(), At::Upstream(upstream));
    let looked = async {
        match outside::around(address).await {
            Some(around) => around,
            None => around(address).await,
        }
    };
    let around = looked.await;
    let answer = match upstream.kind {
        Kind::Http => version(at).await,
        Kind::Tcp | Kind::OpenAi => connected(upstream).await,
    };
    let is_ollama = matches!(answer, VersionAnswer::Version(_));
    let mut found = Ollama {
        address: address.map_or_else(|| upstream.to_string(), |address| address.to_string()),
        answer,
        exposed: Vec::new(),
        has_unit: around.ollama_has_unit,
        pages: None,
        parallel: around.parallel,
        set: around.set,
        models: None,
    };
    if is_ollama {
        (found.exposed, found.pages, found.models) =
            tokio::join!(exposed(address), pages(at), models(at));
    }
    OllamaOutcome { found, models_dir: around.models, unit: around.unit }
}

/// What this process finds out about others: the units of aditd and of Ollama, and the environment
/// of the Ollama that listens at `address`.
pub(crate) async fn around(address: Option<SocketAddr>) -> Around {
    let (own, unit) = tokio::join!(systemd::unit(), systemd::show("ollama", &[]));
    let unit = unit.filter(|unit| unit.get("LoadState").is_some_and(|load| load == "loaded"));
    let ollama_has_unit = unit.is_some();
    // On its own thread, because it looks through the open files of all processes.
    let environment = tokio::task::spawn_blocking(move || environment(unit.as_ref(), address));
    let environment = environment.await.ok().flatten();
    Around {
        unit: own,
        ollama_has_unit,
        parallel: environment.as_ref().map(|environment| {
            let set = environment.get("OLLAMA_NUM_PARALLEL").and_then(|n| n.parse().ok());
            // 0 means that Ollama chooses.
            set.filter(|n| *n > 0).map_or(Parallel::NotSet, Parallel::Set)
        }),
        set: environment.as_ref().map(kept).unwrap_or_default(),
        models: environment.and_then(|found| found.get("OLLAMA_MODELS").map(PathBuf::from)),
    }
}

async fn version(at: At<'_>) -> VersionAnswer {
    match get(at, "/api/version", None).await {
        Ok((StatusCode::OK, body)) => {
            let said: Value = serde_json::from_slice(&body).unwrap_or_default();
            match said["version"].as_str() {
                Some(version) => VersionAnswer::Version(version.chars().take(40).collect()),
                None => VersionAnswer::Other { status: 200, is_empty: body.is_empty() },
            }
        }
        Ok((status, body)) => {
            VersionAnswer::Other { status: status.as_u16(), is_empty: body.is_empty() }
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => VersionAnswer::Refused,
        Err(e) => VersionAnswer::Silent(e.to_string()),
    }
}

/// Whether something accepts connections there.
pub(super) async fn connected(upstream: &Upstream) -> VersionAnswer {
    let joins = UnixJoins::default();
    match tokio::time::timeout(ANSWER_WITHIN, connect(upstream, &joins)).await {
        Ok(Ok(_)) => VersionAnswer::Connected,
        Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => VersionAnswer::Refused,
        Ok(Err(e)) => VersionAnswer::Silent(e.to_string()),
        Err(_) => VersionAnswer::Silent(silent().to_string()),
    }
}

/// The statuses that a page of another site and a browser extension get.
async fn pages(at: At<'_>) -> Option<Pages> {
    let (other, extension) = tokio::join!(
        get(at, "/api/version", Some(OTHER_SITE)),
        get(at, "/api/version", Some(EXTENSION)),
    );
    Some(Pages { other_site: other.ok()?.0.as_u16(), extension: extension.ok()?.0.as_u16() })
}

/// The names of the models that Ollama has.
pub(crate) async fn model_names(upstream: &Upstream) -> Option<Vec<String>> {
    let answer = get(At::Upstream(upstream), "/api/tags", None).await.ok()?;
    let said: Value = serde_json::from_slice(&answer.1).ok()?;
    let names = said["models"].as_array()?.iter().filter_map(|model| model["name"].as_str());
    Some(names.map(str::to_owned).collect())
}

/// How many models there are, and which are loaded.
async fn models(at: At<'_>) -> Option<(u64, Vec<(String, u64)>)> {
    let list = |answer: io::Result<(StatusCode, Bytes)>| -> Option<Vec<Value>> {
        let said: Value = serde_json::from_slice(&answer.ok()?.1).ok()?;
        said["models"].as_array().cloned()
    };
    let (all, loaded) = tokio::join!(get(at, "/api/tags", None), get(at, "/api/ps", None));
    let loaded = list(loaded).unwrap_or_default().into_iter().map(|model| {
        let name = model["name"].as_str().unwrap_or("?").chars().take(80).collect();
        (name, model["size"].as_u64().unwrap_or(0))
    });
    Some((list(all)?.len() as u64, loaded.take(16).collect()))
}

impl At<'_> {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Upstream(upstream) => upstream.address(),
            Self::Address(address) => Some(*address),
        }
    }
}

/// The addresses of this machine besides loopback where an Ollama answers on the port of one that
/// listens at `address`.
async fn exposed(address: Option<SocketAddr>) -> Vec<String> {
    let Some(port) = address.filter(|it| it.ip().is_loopback()).map(|it| it.port()) else {
        return Vec::new();
    };
    let is_reached = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_loopback(),
        // A link-local address is useless without the name of its interface.
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let mut asked = JoinSet::new();
    for ip in own_addresses().into_iter().filter(is_reached) {
        asked.spawn(async move {
            let address = SocketAddr::new(ip, port);
            let (status, body) = get(At::Address(address), "/", None).await.ok()?;
            // An Ollama that checks `Host` answers 403 here: it can be reached all the same.
            let is_ollama = body.starts_with(b"Ollama") || status == StatusCode::FORBIDDEN;
            is_ollama.then(|| address.to_string())
        });
    }
    let mut found: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    found.sort();
    found
}

/// The environment of Ollama, if this user may read it: that of the process, or what its unit sets.
fn environment(
    unit: Option<&systemd::Properties>,
    address: Option<SocketAddr>,
) -> Option<HashMap<String, String>> {
    let pid = match unit {
        Some(unit) => unit.get("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0),
        None => port_holder_pid(address?, Protocol::TCP),
    };
    let pair =
        |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let of_process = pid.and_then(|pid| std::fs::read(format!("/proc/{pid}/environ")).ok());
    if let Some(bytes) = of_process {
        let text = String::from_utf8_lossy(&bytes);
        return Some(text.split('\0').filter_map(pair).collect());
    }
    let of_unit = unit?.get("Environment")?;
    // systemd quotes a value with spaces. None of the variables that are read here has any.
    Some(of_unit.split(' ').filter_map(|text| pair(text.trim_matches('"'))).collect())
}

/// The settings that a cure keeps, by name.
fn kept(environment: &HashMap<String, String>) -> Vec<(String, String)> {
    let one = |name: &&str| Some(((*name).to_owned(), environment.get(*name)?.clone()));
    KEPT.iter().filter_map(one).collect()
}

/// Makes a GET request as a tool makes it. Returns the status and the body.
async fn get(at: At<'_>, path: &str, origin: Option<&str>) -> io::Result<(StatusCode, Bytes)> {
    let (joins, address) = (UnixJoins::default(), at.address());
    let exchange = async {
        let connected = async {
            match at {
                At::Upstream(upstream) => connect(upstream, &joins).await,
                At::Address(address) => TcpStream::connect(address).await,
            }
        };
        let tcp = tokio::time::timeout(CONNECT_WITHIN, connected);
        let tcp = tcp.await.map_err(|_| silent())??;
        let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .map_err(io::Error::other)?;
        let host = address.map_or_else(
            || "localhost".to_owned(),
            |address| format!("localhost:{}", address.port()),
        );
        let mut request = Request::get(path).header(HOST, host).header(CONNECTION, "close");
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let answer = async {
            let answer = requests.send_request(request).await.map_err(io::Error::other)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MOST).collect().await.map_err(io::Error::other)?;
            io::Result::Ok((head.status, body.to_bytes()))
        };
        tokio::pin!(answer, connection);
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    };
    tokio::time::timeout(ANSWER_WITHIN, exchange).await.unwrap_or_else(|_| Err(silent()))
}

fn silent() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
    )
}
