//! Checks without a connection: what the head alone decides, and what a change of the rules does to
//! a running request.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
};

use common::transport::splice::ByteCounters;
use proto::{
    identity::{Certificate, KeyHash, Name},
    invitation::Secret,
    ollama::route::Api,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    policy::{Caller, Policy, roles::Rules, services::Services},
    record::{Asker, CallerKind, CarrierKind, Nobody},
    state::register::Register,
};

/// A gate and one device.
struct Bench {
    register: Register,
    _dir: tempfile::TempDir,
    policy: Arc<Policy>,
    gate: Gate,
    certificate: Certificate,
    not_after: AtomicI64,
    name: Name,
    slots: Semaphore,
    meter: ByteCounters,
    draining: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let register = Register::open(&dir.path().join(Register::FILE)).expect("opened");
        let (name, role) = ("laptop".parse().expect("a name"), "infer".parse().expect("a name"));
        let secret = Secret::generate();
        register.invite(&name, &role, None, &secret, 100, 1).expect("invited");
        let key = KeyHash([1; 32]);
        let device =
            register.redeem(&*secret.token(), key, 200, 1).expect("read").expect("redeemed");
        let rules = Arc::new(Rules::new(BTreeMap::new(), BTreeMap::new()).expect("rules"));
        let snapshot = register.snapshot().expect("read");
        let policy = Arc::new(Policy::new(snapshot, rules, Services::default()));
        Self {
            register,
            _dir: dir,
            gate: Gate::new(policy.clone(), Arc::new(Nobody), Arc::new(Nobody)),
            policy,
            certificate: Certificate {
                device: Some(device.id),
                key,
                not_before: 0,
                not_after: i64::MAX,
            },
            not_after: AtomicI64::new(i64::MAX),
            name,
            slots: Semaphore::new(1),
            meter: ByteCounters::default(),
            draining: CancellationToken::new(),
        }
    }

    fn with_context<R>(&self, then: impl FnOnce(&StreamContext<'_>) -> R) -> R {
        then(&self.context())
    }

    fn context(&self) -> StreamContext<'_> {
        StreamContext {
            caller: Caller::Device(&self.certificate),
            not_after: &self.not_after,
            asker: Asker {
                has_signed_in: false,
                id: self.certificate.device.expect("a device"),
                name: self.name.clone(),
                remote: ([127, 0, 0, 1], 1).into(),
                carrier: CarrierKind::Local,
                uid: None,
                kind: CallerKind::Device,
                user: None,
            },
            service: &self.name,
            slots: &self.slots,
            is_closed: &|| false,
            meter: &self.meter,
            draining: &self.draining,
            added: &[],
        }
    }

    fn update(&self) {
        self.policy.update(self.register.snapshot().expect("read"));
        self.gate.judge_again();
    }

    /// The result of the checks that need only the head.
    fn route_permit(&self, request: &str) -> Result<RoutePermit, (u16, Refusal)> {
        let (head, route) = parsed(request);
        let route_permit =
            self.with_context(|context| self.gate.route_permit(context, None, &head, route));
        let route_permit = route_permit.and_then(|own| own.map_err(Refused::from));
        route_permit.map_err(|refused| (refused.answer.status, refused.why))
    }

    fn judged(&self, request: &str, models: Option<Vec<String>>) -> Judged {
        let (head, route) = parsed(request);
        let route_permit = self.route_permit(request).expect("it may");
        let request_permit =
            route_permit.with_models(models.as_deref().unwrap_or_default()).expect("it may");
        Judged {
            head,
            route,
            models,
            request_permit,
            raw_head: Bytes::new(),
            own_role: "infer".parse().expect("a name"),
            authority: None,
            grant: Arc::default(),
            narrowed: None,
        }
    }
}

fn parsed(request: &str) -> (RequestHead, ApiRoute) {
    let bytes = format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let bytes = match request.split_once('@') {
        Some((request, host)) => format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        None => bytes,
    };
    let head = RequestHead::parse(bytes.as_bytes()).expect("a head");
    let route = route(Api::Ollama, &head.method, Target::new(&head.target));
    (head, route)
}

#[test]
fn a_head_is_judged_by_certificate_host_and_route_in_this_order() {
    let bench = Bench::new();
    for (request, expected) in [
        ("POST /api/chat", None),
        ("GET /v1/models", None),
        ("POST /api/chat@10.0.0.1:11434", None),
        ("POST /api/chat@evil.example", Some((403, Refusal::Host))),
        ("DELETE /api/delete@evil.example", Some((403, Refusal::Host))),
        ("DELETE /api/delete", Some((403, Refusal::Role))),
        ("POST /api//chat", Some((403, Refusal::Role))),
    ] {
        assert_eq!(bench.route_permit(request).err(), expected, "{request}");
    }
    bench.not_after.store(1, Relaxed);
    let expired = Some((503, Refusal::Certificate));
    assert_eq!(bench.route_permit("DELETE /api/delete@evil.example").err(), expired);
}

#[tokio::test]
async fn a_request_that_runs_is_refused_when_a_change_forbids_it_and_not_before() {
    let bench = Bench::new();
    let models = |name: &str| Some(vec![name.to_owned()]);
    let id = bench.certificate.device.expect("a device");
    let context = bench.context();
    let mut chat = bench.judged("POST /api/chat", models("a"));
    let mut list = bench.judged("GET /api/tags", None);
    let mut unread = bench.judged("POST /api/chat", None);
    // A change that forbids nothing.
    bench.register.set_models(id, Some(&["a".parse().expect("a pattern")])).expect("set");
    bench.update();
    assert!(chat.again(&bench.gate, &context, false).await.is_ok());
    assert!(list.again(&bench.gate, &context, false).await.is_ok());
    let refused =
        unread.again(&bench.gate, &context, false).await.expect_err("nobody knows its model");
    assert_eq!(refused.why, Refusal::Model);
    bench.register.set_models(id, Some(&["b".parse().expect("a pattern")])).expect("set");
    bench.update();
    let refused = chat.again(&bench.gate, &context, false).await.expect_err("another model");
    assert_eq!((refused.answer.status, refused.why), (403, Refusal::Model));
    bench.register.revoke(id, None, 1).expect("revoked");
    bench.update();
    let refused = list.again(&bench.gate, &context, false).await.expect_err("revoked");
    assert_eq!((refused.answer.status, refused.why), (503, Refusal::Certificate));
}
