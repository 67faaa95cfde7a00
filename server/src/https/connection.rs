//! One connection: the TLS handshake, and for each request who makes it. What is not a caller's
//! request is answered here, and never reaches the gate.

mod heads;
mod identity;

use std::{
    net::SocketAddr,
    sync::atomic::AtomicI64,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use common::{
    machine::process::unix_now,
    transport::splice::{
        Receiving, Sending, finish,
        pipe::{PipeReceiving, PipeSending, pipe},
    },
};
use proto::{
    http1::{credentials, fields::forwarded, head::RequestHead},
    identity::{Certificate, Name},
    wire::Code,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::debug;

use self::{
    heads::{Heads, NextHead},
    identity::Identity,
};
use super::{
    Https, Turned,
    cors::{self, Page},
    mover,
    places::{Origin, Place},
};
use crate::{
    audit::Audit,
    gate::{Gate, OpenConnection, StreamContext, refused::Refused},
    policy::Policy,
    record::Refusal,
};

/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long an answer of ours, and the end of a connection, may take.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// How many requests a connection may make before it has shown whose it is: preflights.
const UNKNOWN_REQUESTS: usize = 64;
/// A client that has gone without a word is noticed after about a minute; one that takes no byte of
/// its answer, after five.
const ALIVE_AFTER: Duration = Duration::from_secs(30);
const ALIVE_EVERY: Duration = Duration::from_secs(10);
#[cfg(target_os = "linux")]
const TAKEN_WITHIN: Duration = Duration::from_secs(300);

/// Who serves what passes.
pub(crate) struct Service<'a> {
    pub(crate) gate: &'a Gate,
    pub(crate) policy: &'a Policy,
    pub(crate) audit: &'a Audit,
    /// The service behind the gate.
    pub(crate) name: Name,
    /// Cancelled when the server is to stop.
    pub(crate) draining: &'a CancellationToken,
}

/// A connection after its handshake.
struct Visit<'a> {
    https: &'a Https,
    service: Service<'a>,
    remote: SocketAddr,
    /// The certificate of a device, which the handshake has verified.
    device: Option<Certificate>,
    place: Place,
    is_known: bool,
    mover: AbortOnDropHandle<()>,
}

/// Whether another request may follow.
enum Then {
    Next(Sending, Receiving, Vec<Bytes>),
    End,
}

impl Https {
    /// Serves one connection to its end. Cancelling it cuts it.
    pub(crate) async fn serve(&self, service: Service<'_>, tcp: TcpStream, remote: SocketAddr) {
        let Some(place) = self.places.enter(Origin::from(remote.ip())) else {
            return self.count(Turned::Places);
        };
        let _ = tcp.set_nodelay(true);
        watch_for_death(&tcp);
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_WITHIN, self.handshake(tcp)) => shaken,
            () = service.draining.cancelled() => return,
        };
        let tls = match shaken {
            Ok(Ok(Some(tls))) => tls,
            // An authority has checked a name.
            Ok(Ok(None)) => return,
            Ok(Err(e)) => {
                debug!(%remote, "no TLS: {e}");
                return self.count(Turned::Handshake);
            }
            Err(_) => return self.count(Turned::Handshake),
        };
        let device = certificate(&tls);
        let (send, recv, outside) = pipe();
        let mover = AbortOnDropHandle::new(tokio::spawn(mover::run(tls, outside)));
        let mut visit =
            Visit { https: self, service, remote, device, place, is_known: false, mover };
        tokio::select! {
            () = Box::pin(visit.run(send, recv)) => {}
            // Dropping it cuts both sides.
            () = self.shut_out(remote.ip()) => {}
        }
        // A reset that was ordered is carried out there.
        let _ = tokio::time::timeout(TOLD_WITHIN, &mut visit.mover).await;
    }
}

impl Visit<'_> {
    async fn run(&mut self, send: PipeSending, recv: PipeReceiving) {
        let (mut send, mut recv) = (Sending::from(send), Receiving::from(recv));
        let mut heads = Heads::default();
        let mut unknown = 0;
        loop {
            let next = heads.next(&mut recv, self.is_known, self.service.draining).await;
            let (bytes, head) = match next {
                NextHead::Head(bytes) => match RequestHead::parse(&bytes) {
                    Ok(head) => (bytes, head),
                    Err(fault) => {
                        self.https.count(Turned::Head);
                        return self.tell(send, recv, &bytes, &fault.into(), &[]).await;
                    }
                },
                NextHead::Refused(refused, line) => {
                    self.https.count(Turned::Head);
                    return self.tell(send, recv, &line, &refused, &[]).await;
                }
                NextHead::End => return self.end(send, recv).await,
                NextHead::Broken => return send.reset(Code::Aborted),
            };
            if !self.is_known {
                unknown += 1;
                if unknown > UNKNOWN_REQUESTS {
                    return self.end(send, recv).await;
                }
            }
            match self.request(send, recv, &bytes, &head, &mut heads).await {
                Then::Next(same_send, same_recv, ahead) => {
                    (send, recv) = (same_send, same_recv);
                    heads.put_back(ahead);
                }
                Then::End => return,
            }
        }
    }

    /// Answers a request, or has the gate serve it.
    async fn request(
        &mut self,
        mut send: Sending,
        recv: Receiving,
        bytes: &[u8],
        head: &RequestHead,
        heads: &mut Heads,
    ) -> Then {
        let added = match cors::page(&self.https.in_force().settings.origins, head, bytes) {
            Page::Own => Vec::new(),
            Page::Allowed(origin) if head.preflight.is_some() => {
                // Before the key is looked at: a browser sends none with a preflight.
                let answer = cors::preflight(&origin, bytes);
                return match write(&mut send, &answer).await {
                    true if !head.closes && head.body == proto::http1::BodyLength::Known(0) => {
                        Then::Next(send, recv, Vec::new())
                    }
                    _ => {
                        self.end(send, recv).await;
                        Then::End
                    }
                };
            }
            Page::Allowed(origin) => cors::answer_fields(&origin),
            Page::Refused(origin) => {
                self.https.count(Turned::Origin);
                let sentence = format!(
                    "adit: the web page `{origin}` may not use this server: its owner can add it to `origins` below `[https]` in the configuration"
                );
                let refused = Refused::new(403, Refusal::Host, sentence);
                self.tell(send, recv, bytes, &refused, &[]).await;
                return Then::End;
            }
        };
        let identity = match self.identify(bytes).await {
            Ok(identity) => identity,
            Err((refused, mut fields)) => {
                fields.extend(added);
                self.tell(send, recv, bytes, &refused, &fields).await;
                return Then::End;
            }
        };
        self.is_known = true;
        self.place.is_known();
        let (service_name, begun) = match named_service(head, bytes) {
            None => (self.service.name.clone(), bytes.to_vec()),
            Some((name, bytes)) if self.service.policy.is_http(&name) => (name, bytes),
            Some((name, _)) => {
                let sentence = format!(
                    "adit: this server has no service `{name}` that speaks HTTP: `aditd status` there shows its services"
                );
                let refused = Refused::new(400, Refusal::Malformed, sentence);
                self.tell(send, recv, bytes, &refused, &added).await;
                return Then::End;
            }
        };
        let Some(serving) = self.https.callers.enter(&identity.asker, unix_now()) else {
            let sentence = format!(
                "adit: {} `{}` has too many connections",
                identity.asker.kind, identity.asker.name
            );
            let mut refused = Refused::new(429, Refusal::Limit("connections"), sentence);
            refused.answer.retry_after = Some(1);
            self.tell(send, recv, bytes, &refused, &added).await;
            return Then::End;
        };
        // The service is on this machine, and judges the names in `Host` and `Origin` as such.
        let without: Vec<&str> =
            credentials::FIELDS.into_iter().chain(["origin", "cookie"]).collect();
        let mut begun = vec![Bytes::from(forwarded(&begun, &without, "localhost"))];
        begun.extend(heads.take_rest());
        let Identity { asker, proof } = identity;
        let (not_after, slots) = (AtomicI64::new(proof.certificate_end()), Semaphore::new(1));
        let (mover, service) = (&self.mover, &self.service);
        let context = StreamContext {
            caller: proof.caller(),
            not_after: &not_after,
            asker,
            service: &service_name,
            slots: &slots,
            is_closed: &|| mover.is_finished(),
            meter: &serving.0.meter,
            draining: service.draining,
            added: &added,
        };
        match Box::pin(service.gate.run_one(context, send, recv, begun)).await {
            Some(OpenConnection { send, recv, ahead }) => Then::Next(send, recv, ahead),
            None => Then::End,
        }
    }

    /// Tells a client why it gets no other answer, and ends the connection. `line` is the beginning
    /// of its request.
    async fn tell(
        &self,
        mut send: Sending,
        recv: Receiving,
        line: &[u8],
        refused: &Refused,
        fields: &[(&'static str, String)],
    ) {
        debug!(remote = %self.remote, "refused: {}", refused.answer.sentence);
        let answer = refused.answer.render_with(line, SystemTime::now(), fields);
        if write(&mut send, &answer).await {
            self.end(send, recv).await;
        }
    }

    /// Ends the connection in order.
    async fn end(&self, send: Sending, recv: Receiving) {
        let _ = tokio::time::timeout(TOLD_WITHIN, finish(send, recv, false)).await;
    }
}

/// The service besides Ollama that a request names by `/services/NAME/` before its path, and the head
/// without that.
fn named_service(head: &RequestHead, bytes: &[u8]) -> Option<(Name, Vec<u8>)> {
    let (name, path) = head.target.strip_prefix("/services/")?.split_once('/')?;
    let name = name.parse().ok()?;
    let rest = bytes.strip_prefix(head.method.as_bytes())?.strip_prefix(b" ")?;
    let rest = rest.strip_prefix(head.target.as_bytes())?;
    Some((name, [head.method.as_bytes(), b" /", path.as_bytes(), rest].concat()))
}

async fn write(send: &mut Sending, bytes: &[u8]) -> bool {
    matches!(tokio::time::timeout(TOLD_WITHIN, send.write_all(bytes)).await, Ok(Ok(())))
}

fn certificate(tls: &TlsStream<TcpStream>) -> Option<Certificate> {
    let (_, connection) = tls.get_ref();
    Certificate::from_der(connection.peer_certificates()?.first()?).ok()
}

/// Has the kernel end a connection whose client has gone without a word.
fn watch_for_death(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let alive = TcpKeepalive::new().with_time(ALIVE_AFTER).with_interval(ALIVE_EVERY);
    #[cfg(target_os = "linux")]
    let alive = alive.with_retries(3);
    let _ = socket.set_tcp_keepalive(&alive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(TAKEN_WITHIN));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_service_and_the_service_gets_the_rest() {
        let read = |text: &str| {
            let head = RequestHead::parse(text.as_bytes()).expect("a head");
            let (name, bytes) = named_service(&head, text.as_bytes())?;
            Some((name.to_string(), String::from_utf8(bytes).expect("text")))
        };
        let rest = " HTTP/1.1\r\nHost: x\r\n\r\n";
        for (target, wanted) in [
            ("/services/vllm/v1/models?x=/services/", Some(("vllm", "/v1/models?x=/services/"))),
            ("/services/vllm/", Some(("vllm", "/"))),
            ("/services/vllm/services/db/x", Some(("vllm", "/services/db/x"))),
            ("/services/vllm", None),
            ("/services//x", None),
            ("/v1/services/vllm/x", None),
            ("/service/vllm/x", None),
        ] {
            let wanted = wanted.map(|(name, to)| (name.to_owned(), format!("GET {to}{rest}")));
            assert_eq!(read(&format!("GET {target}{rest}")), wanted, "{target}");
        }
    }
}
