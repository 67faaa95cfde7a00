//! The API for the owner's own tools: HTTP/1.1 with JSON over the control socket.

mod bodies;
mod calls;
mod cas;
mod devices;
mod failed;
mod keys;
mod users;

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use common::machine::{files, process};
use http_body_util::{BodyExt, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::document::{Document, NoAnswer};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::UnixStream, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use self::{
    bodies::{Body, EventsBody},
    calls::{CALLS, Call, NoCall, call, parameter},
    failed::Failed,
};
use crate::{
    audit::read::Lines,
    changes::{AuditLog, Changes},
    documents::{Live, ReloadShown, View},
    running::Server,
    serve::reload::Reloaded,
};

/// How many connections may be open, and how many of them may read events.
const CONNECTIONS: usize = 64;
const READERS: usize = 16;
/// The longest body of a request, in bytes.
const MOST_BODY: usize = 64 << 10;
/// How long a head, and a body, may take to come.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How many lines of the audit log are shown by default, and at the most.
const LINES: usize = 100;
const MOST_LINES: usize = 1000;

/// What answers the calls.
pub(super) struct Api {
    server: Arc<Server>,
    connections: Semaphore,
    readers: Arc<Semaphore>,
}

/// One call, and who makes it.
struct Caller {
    /// The user of this machine who makes it, for the audit log.
    uid: u32,
    /// Cancelled to end the connection.
    end: CancellationToken,
}

impl Api {
    pub(super) fn new(server: Arc<Server>) -> Self {
        let readers = Arc::new(Semaphore::new(READERS));
        Self { server, connections: Semaphore::new(CONNECTIONS), readers }
    }

    /// Answers the calls of one connection. Connections above a limit, and those of users who may
    /// not change the state, are closed.
    pub(super) async fn serve(&self, stream: UnixStream) {
        let Ok(peer) = stream.peer_cred() else { return };
        // The directory keeps others out; this holds even if its mode was changed.
        let own = [0, process::uid(), rustix::process::geteuid().as_raw()];
        if !own.contains(&peer.uid()) {
            tracing::warn!("the API was asked by another user (uid {}): refused", peer.uid());
            return;
        }
        let Ok(_place) = self.connections.try_acquire() else {
            tracing::warn!("the API has {CONNECTIONS} connections already: another was closed");
            return;
        };
        let end = CancellationToken::new();
        let caller = Caller { uid: peer.uid(), end: end.clone() };
        let caller = &caller;
        let service = service_fn(move |request| async move {
            Ok::<_, Infallible>(self.answer(request, caller).await)
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
        tokio::select! {
            // A client that disconnects is not an error.
            _ = http.serve_connection(TokioIo::new(stream), service) => {}
            () = end.cancelled() => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>, caller: &Caller) -> Response<Body> {
        let (head, body) = request.into_parts();
        let (which, name) = match call(&head.method, head.uri.path()) {
            Ok(found) => found,
            Err(NoCall::Path) => {
                let what = "there is no such call: `GET /v1` lists them";
                return failed(Failed::new(StatusCode::NOT_FOUND, what));
            }
            Err(NoCall::Method(methods)) => {
                let what = format!("`{}` has other methods: {methods}", head.uri.path());
                let mut answer = failed(Failed::new(StatusCode::METHOD_NOT_ALLOWED, what));
                if let Ok(methods) = HeaderValue::from_str(&methods) {
                    answer.headers_mut().insert(ALLOW, methods);
                }
                return answer;
            }
        };
        if which == Call::Events {
            return self.events(caller).unwrap_or_else(failed);
        }
        let body = match whole(body).await {
            Ok(body) => body,
            Err(e) => return failed(e),
        };
        let query = head.uri.query();
        match self.carry_out(which, name, &body, query, caller).await {
            Ok(value) => json_answer(StatusCode::OK, &value),
            Err(e) => failed(e),
        }
    }

    async fn carry_out(
        &self,
        which: Call,
        name: &str,
        body: &[u8],
        query: Option<&str>,
        caller: &Caller,
    ) -> Result<Value, Failed> {
        let (server, uid, name) = (&self.server, caller.uid, name.to_owned());
        match which {
            Call::Index => {
                let of_one = |(method, path, _, does): &(&str, &str, Call, &str)| json!({"method": method, "path": path.replace("{}", "NAME"), "does": does});
                let calls: Vec<_> = CALLS.iter().map(of_one).collect();
                Ok(json!({"schema": 1, "aditd": env!("CARGO_PKG_VERSION"), "calls": calls}))
            }
            Call::Status => document(server.status()),
            Call::Roles => {
                let roles: Vec<_> = server.policy.rules().names().cloned().collect();
                Ok(json!({"schema": 1, "roles": roles}))
            }
            Call::Reload => {
                let Reloaded { file, later, remarks } = server.reload(None).await?;
                let needs_restart = later.into_iter().map(str::to_owned).collect();
                document(ReloadShown { file, needs_restart, remarks })
            }
            Call::Ca => cas::status(server).await,
            Call::CaRotate => cas::rotate(server, uid).await,
            Call::CaRetire => cas::retire(server, uid, read(body)?).await,
            Call::Requests => Ok(json!({"schema": 1, "requests": server.accounting.live.list()})),
            Call::Audit => self.audit(query).await,
            Call::Invitations => devices::invitations(server).await,
            Call::Invite => devices::invite(server, uid, read(body)?).await,
            Call::Withdraw => devices::withdraw(server, uid, name).await,
            Call::Devices => devices::list(server).await,
            Call::Device => devices::show(server, name).await,
            Call::DeviceRole => devices::role(server, uid, name, read(body)?).await,
            Call::DeviceModels => devices::models(server, uid, name, read(body)?).await,
            Call::DeviceUser => devices::assign(server, uid, name, read(body)?).await,
            Call::DeviceRename => devices::rename(server, uid, name, read(body)?).await,
            Call::DeviceRevoke => devices::revoke(server, uid, name, read(body)?).await,
            Call::DeviceRestore => devices::restore(server, uid, name).await,
            Call::DeviceConfirm => devices::confirm(server, uid, name).await,
            Call::DeviceForget => devices::forget(server, uid, name, read(body)?).await,
            Call::Keys => keys::list(server).await,
            Call::Key => keys::show(server, name).await,
            Call::KeyCreate => keys::create(server, uid, read(body)?).await,
            Call::KeyRole => keys::role(server, uid, name, read(body)?).await,
            Call::KeyModels => keys::models(server, uid, name, read(body)?).await,
            Call::KeyUser => keys::assign(server, uid, name, read(body)?).await,
            Call::KeyRotate => keys::rotate(server, uid, name, read(body)?).await,
            Call::KeyRevoke => keys::revoke(server, uid, name).await,
            Call::Users => users::list(server).await,
            Call::User => users::show(server, name).await,
            Call::UserRole => users::role(server, uid, name, read(body)?).await,
            Call::UserRevoke => users::revoke(server, uid, name, read(body)?).await,
            Call::UserRestore => users::restore(server, uid, name).await,
            Call::Events => Err(Failed::bad("events are a stream")),
        }
    }

    /// A stream of events. Its connection is closed if they are not read in time, and when another
    /// process replaces this one.
    fn events(&self, caller: &Caller) -> Result<Response<Body>, Failed> {
        let place = self.readers.clone().try_acquire_owned().map_err(|_| {
            let what = format!("{READERS} programs read events already");
            Failed::new(StatusCode::SERVICE_UNAVAILABLE, what)
        })?;
        let lines = self.server.accounting.audit.events().subscribe(caller.end.clone());
        let replaced = self.server.replaced.clone().cancelled_owned();
        let mut answer = Response::new(Body::Events(EventsBody::new(lines, replaced, place)));
        let kind = HeaderValue::from_static("application/x-ndjson");
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(answer)
    }

    async fn audit(&self, query: Option<&str>) -> Result<Value, Failed> {
        let last = match parameter(query, "last").map(str::parse::<usize>) {
            None => LINES,
            Some(Ok(last @ 1..=MOST_LINES)) => last,
            Some(_) => {
                return Err(Failed::bad(format!("`last` is a number from 1 to {MOST_LINES}")));
            }
        };
        let device = parameter(query, "device").map(str::to_owned);
        let dir = self.server.settings.config.accounting.audit.dir.clone();
        let lines = blocking(move || {
            tail(&dir, last, device.as_deref())
                .map_err(|e| Failed { status: StatusCode::INTERNAL_SERVER_ERROR, why: e.into() })
        });
        Ok(json!({"schema": 1, "lines": lines.await?}))
    }
}

/// The last lines of the audit log, the oldest first. Blocks.
fn tail(
    dir: &std::path::Path,
    last: usize,
    device: Option<&str>,
) -> Result<Vec<Value>, files::FileError> {
    let (mut lines, mut kept) = (Lines::open(dir, None)?, std::collections::VecDeque::new());
    while let Some(line) = lines.read_line()? {
        // A line that a crash has torn is skipped.
        let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
        let is_wanted = |device| line["device"] == device || line["device_id"] == device;
        if device.is_none_or(is_wanted) {
            if kept.len() == last {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    }
    Ok(kept.into())
}

/// Runs `work` in a thread where it may block. It runs to its end even if this is dropped.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Refuses what would be dated by a clock that cannot be right.
fn check_clock(server: &Server) -> Result<(), Failed> {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let authorities = server.state.authorities.get();
    let checked = authorities.check_clock(process::unix_now());
    checked.map_err(|e| Failed { status, why: e.into() })
}

/// A change of the register, which is in force when this returns.
async fn change<T: Send + 'static>(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> Result<T, Failed> + Send + 'static,
) -> Result<(T, usize), Failed> {
    let at = server.clone();
    let done = blocking(move || work(&at)).await?;
    let cut = server.refresh_for_command().await?;
    Ok((done, cut))
}

async fn whole(body: Incoming) -> Result<Bytes, Failed> {
    let body = tokio::time::timeout(BODY_WITHIN, Limited::new(body, MOST_BODY).collect()).await;
    match body {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            let what = format!("the body is longer than {MOST_BODY} bytes");
            Err(Failed::new(StatusCode::PAYLOAD_TOO_LARGE, what))
        }
        _ => Err(Failed::new(StatusCode::REQUEST_TIMEOUT, "the body did not come")),
    }
}

/// Reads a body; an empty one is an object without fields.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failed> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|e| Failed::bad(format!("the body can't be read: {e}")))
}

/// An object with the number of its schema.
fn document(content: impl Serialize) -> Result<Value, Failed> {
    let internal = |e: serde_json::Error| Failed::new(StatusCode::INTERNAL_SERVER_ERROR, e);
    serde_json::to_value(Document::new(content)).map_err(internal)
}

/// Changes that this user of the machine makes.
fn changes(server: &Server, uid: u32) -> Changes<'_> {
    let log = AuditLog::Server(&server.accounting.audit);
    Changes { state: &server.state, log, uid }
}

/// How things are shown now. Blocks.
fn view(server: &Server) -> Result<View, Failed> {
    let sessions = server.live.status().into_iter().map(|session| (session.device_id, session));
    let mut live = Live { sessions: sessions.collect(), running: HashMap::new() };
    for request in server.accounting.live.list() {
        *live.running.entry(request.who.device_id).or_default() += 1;
    }
    Ok(View::new(&server.state.register, live)?)
}

fn failed(Failed { status, why }: Failed) -> Response<Body> {
    let error = document(NoAnswer::from(why));
    json_answer(status, &error.unwrap_or_default())
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Body> {
    let mut text = value.to_string();
    text.push('\n');
    let mut answer = Response::new(Body::Whole(Some(text.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
