//! Who may do what. Only this module makes permits; every action that needs permission takes one.

pub(crate) mod authorize;
mod caller;
mod denied;
pub(crate) mod roles;
pub(crate) mod services;
pub(crate) mod upstream;

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use proto::{
    identity::{Certificate, DeviceId, Name, UserName},
    ollama::{
        model::ModelPattern,
        route::{Api, RouteClass},
    },
    wire::{Code, Revocation, Service},
};

use self::caller::Registered;
pub(crate) use self::{
    caller::Caller,
    denied::{Denied, INVALID_KEY},
};
use crate::{
    jwt::{JwtSettings, TokenHolder, Tokens},
    policy::{
        authorize::Grant,
        roles::{RequestedRoute, Rules, Whose, either},
        services::Services,
        upstream::{UnixJoins, Upstream},
    },
    record::CallerKind,
    state::register::{Device, Snapshot},
};

/// The rules in force: the current register, and the services.
pub(crate) struct Policy {
    snapshot: RwLock<Arc<Snapshot>>,
    rules: RwLock<Arc<Rules>>,
    /// What judges tokens, if they count.
    tokens: watch::Sender<Option<Arc<Tokens>>>,
    services: Services,
    joins: Arc<UnixJoins>,
}

/// A device that is enrolled, or a key that is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub kind: CallerKind,
    pub id: DeviceId,
    pub name: Name,
    /// The user of this machine who enrolled a device over SSH.
    pub uid: Option<u32>,
    /// The person to whom it belongs, if that is known.
    pub user: Option<UserName>,
    /// Whether the person had to sign in at the provider to enroll a device.
    pub has_signed_in: bool,
}

/// Permission to reach one service, for one stream. Only [`Policy::permit`] makes one.
#[derive(Debug)]
pub(crate) struct Permit {
    upstream: Upstream,
    joins: Arc<UnixJoins>,
}

impl Permit {
    /// The service that may be reached.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Whose the tasks are that its connection may need.
    fn joins(&self) -> &UnixJoins {
        &self.joins
    }
}

/// Permission of a device to use the route of one request. Whether it may use the model is checked
/// separately. Only [`Policy::route`] makes one.
#[derive(Debug)]
pub(crate) struct RoutePermit {
    kind: CallerKind,
    device: Name,
    role: Name,
    lists: Vec<(Whose, Vec<ModelPattern>)>,
}

/// Permission to forward one request. Only [`RoutePermit`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestPermit {
    /// The role of the device.
    pub role: Name,
}

impl RoutePermit {
    /// Whether permission depends on the model.
    pub(crate) fn needs_model(&self) -> bool {
        !self.lists.is_empty()
    }

    /// Permission for a request that names exactly these models.
    ///
    /// # Errors
    /// [`Denied::Model`].
    pub(crate) fn with_models(self, models: &[String]) -> Result<RequestPermit, Denied> {
        let lacks =
            |list: &[ModelPattern], model: &str| !list.iter().any(|pattern| pattern.means(model));
        for model in models {
            let without: Vec<_> = self
                .lists
                .iter()
                .filter(|(_, list)| lacks(list, model))
                .map(|(whose, _)| whose)
                .collect();
            if !without.is_empty() {
                let (cure, models) = (self.cure(&without, "MODEL…"), self.models());
                let model = model.chars().take(100).collect();
                return Err(Denied::Model {
                    kind: self.kind,
                    device: self.device,
                    role: self.role,
                    model,
                    models,
                    cure,
                });
            }
        }
        Ok(RequestPermit { role: self.role })
    }

    /// The refusal of a request whose model is unknown, for a device that may use only some models.
    pub(crate) fn no_model(&self, why: &'static str) -> Denied {
        let all: Vec<_> = self.lists.iter().map(|(whose, _)| whose).collect();
        let cure = self.cure(&all, "--all");
        Denied::NoModel {
            kind: self.kind,
            device: self.device.clone(),
            role: self.role.clone(),
            models: self.models(),
            why,
            cure,
        }
    }

    /// The settings that have to change: each of these lists.
    fn cure(&self, lists: &[&Whose], models: &str) -> String {
        let Self { kind, device, role, .. } = self;
        let one = |whose: &&Whose| match whose {
            Whose::Token(role) => format!("`models` of `[roles.{role}]` in the configuration"),
            Whose::Role => format!("`models` of `[roles.{role}]` in the configuration"),
            Whose::Device => format!("`models` of `[devices.{device}]` in the configuration"),
            Whose::Register => format!("`aditd {kind} models {device} {models}`"),
            Whose::Authorize => "what `authorize` answers".to_owned(),
        };
        lists.iter().map(one).collect::<Vec<_>>().join(", and ")
    }

    fn models(&self) -> String {
        let lists: Vec<_> = self
            .lists
            .iter()
            .map(|(_, list)| if list.is_empty() { "none".to_owned() } else { either(list) })
            .collect();
        lists.join(" and of those ")
    }
}

impl Policy {
    /// The rules for these services.
    pub(crate) fn new(snapshot: Snapshot, rules: Arc<Rules>, services: Services) -> Self {
        Self {
            snapshot: RwLock::new(Arc::new(snapshot)),
            rules: RwLock::new(rules),
            tokens: watch::Sender::default(),
            services,
            joins: Arc::default(),
        }
    }

    /// The current state of the register.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a newer state of the register in force.
    pub(crate) fn update(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other roles in force.
    pub(crate) fn set_rules(&self, rules: Arc<Rules>) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// What judges tokens, if they count.
    pub(crate) fn tokens(&self) -> Option<Arc<Tokens>> {
        self.tokens.borrow().clone()
    }

    /// [`Policy::tokens`], if they also narrow what devices may.
    pub(crate) fn narrowing_tokens(&self) -> Option<Arc<Tokens>> {
        self.tokens().filter(|tokens| tokens.settings().tunnel)
    }

    /// Puts other settings of tokens in force. Unchanged ones keep their keys.
    pub(crate) fn set_tokens(&self, settings: Option<JwtSettings>) {
        let now = self.tokens();
        if now.as_ref().map(|now| now.settings()) != settings.as_ref() {
            self.tokens.send_replace(settings.map(Tokens::new).map(Arc::new));
        }
    }

    /// Keeps the keys of the provider fresh for as long as it is polled.
    pub(crate) async fn follow_tokens(&self) {
        let mut changes = self.tokens.subscribe();
        loop {
            let tokens = changes.borrow_and_update().clone();
            let follow = async {
                match &tokens {
                    Some(tokens) => tokens.follow().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = follow => {}
                // The sender lives as long as `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// The services that a device with this role may use.
    pub(crate) fn services_of(&self, role: &Name) -> Vec<Service> {
        let rules = self.rules();
        let may_use = self.services.iter().filter(|(name, _)| rules.may_use(role, name));
        may_use.map(|(name, upstream)| upstream.as_service(name.clone())).collect()
    }

    /// Whether there is a service with this name that speaks HTTP.
    pub(crate) fn is_http(&self, service: &Name) -> bool {
        self.services.get(service).is_some_and(|upstream| upstream.kind.is_http())
    }

    /// Whose routes a service has.
    pub(crate) fn api(&self, service: &Name) -> Api {
        self.services.get(service).map_or_else(Api::default, |upstream| upstream.kind.api())
    }

    /// Checks that the holder of this certificate, which TLS has verified, is enrolled.
    ///
    /// # Errors
    /// [`Code::Revoked`] for a device that was revoked or is not in the register; [`Code::Held`] for
    /// one that the owner has to confirm.
    pub(crate) fn admit(&self, certificate: &Certificate) -> Result<Admitted, Code> {
        self.admit_caller(Caller::Device(certificate)).map_err(|denied| match denied {
            Denied::Device(code) => code,
            _ => Code::Revoked,
        })
    }

    /// Checks that a caller is enrolled, or that its key is valid.
    ///
    /// # Errors
    /// [`Denied::Device`], [`Denied::Revoked`], [`Denied::User`], [`Denied::Key`], [`Denied::NoTokens`]
    /// or [`Denied::Token`].
    pub(crate) fn admit_caller(&self, caller: Caller<'_>) -> Result<Admitted, Denied> {
        let (snapshot, tokens) = (self.snapshot(), self.tokens());
        let Registered { kind, id, name, uid, user, has_signed_in, .. } =
            caller.registered(&snapshot, tokens.as_deref())?;
        Ok(Admitted { kind, id, name: name.clone(), uid, user: user.cloned(), has_signed_in })
    }

    /// Checks that a device keeps its key as its role wants.
    ///
    /// # Errors
    /// [`Code::KeyInFile`].
    pub(crate) fn must_keep_key(&self, certificate: &Certificate) -> Result<(), Code> {
        let snapshot = self.snapshot();
        let device = certificate.device.and_then(|id| snapshot.admits(id, certificate.key));
        let is_in_file = |device: &Device| {
            !device.key_storage.is_hardware() && self.rules().wants_hardware_key(&device.role)
        };
        if device.is_some_and(is_in_file) { Err(Code::KeyInFile) } else { Ok(()) }
    }

    /// The revocation of the holder of this certificate, or of its user.
    pub(crate) fn revocation(&self, certificate: &Certificate) -> Option<Revocation> {
        self.snapshot().revocation(certificate.device?, certificate.key)
    }

    /// Permission for one stream to one service. Checked again for every stream.
    ///
    /// # Errors
    /// [`Code::Revoked`] or [`Code::UnknownService`].
    pub(crate) fn permit(&self, caller: Caller<'_>, service: &Name) -> Result<Permit, Code> {
        let (snapshot, tokens) = (self.snapshot(), self.tokens());
        caller.registered(&snapshot, tokens.as_deref()).map_err(|_| Code::Revoked)?;
        let upstream = self.services.get(service).ok_or(Code::UnknownService)?;
        Ok(Permit { upstream: upstream.clone(), joins: self.joins.clone() })
    }

    /// [`Policy::permit`] for a stream whose requests are not judged one by one: the role of the
    /// caller must allow the service.
    ///
    /// # Errors
    /// Also [`Code::Denied`].
    pub(crate) fn permit_unread(&self, caller: Caller<'_>, service: &Name) -> Result<Permit, Code> {
        let permit = self.permit(caller, service)?;
        match self.rules().may_use(&self.role(caller), service) {
            true => Ok(permit),
            false => Err(Code::Denied),
        }
    }

    /// The role of a caller; the default role if it may do nothing any more.
    pub(crate) fn role(&self, caller: Caller<'_>) -> Name {
        caller.role(&self.snapshot(), self.tokens().as_deref())
    }

    /// Permission to use the route of one request. Checked for every request, and again whenever
    /// the rules change. A role that `authorize` has granted counts in place of the caller's own;
    /// its list of models counts beside the others. `narrowed` is the token of a request in a tunnel:
    /// what its role may not, the request may not either, whatever was granted.
    ///
    /// # Errors
    /// As [`Policy::admit_caller`], or [`Denied::Role`], [`Denied::Granted`] or [`Denied::Narrowed`].
    pub(crate) fn route(
        &self,
        caller: Caller<'_>,
        narrowed: Option<&TokenHolder>,
        requested: RequestedRoute<'_>,
        grant: &Grant,
    ) -> Result<RoutePermit, Denied> {
        let (snapshot, rules, tokens) = (self.snapshot(), self.rules(), self.tokens());
        let mut caller = caller.registered(&snapshot, tokens.as_deref())?;
        if let Some(role) = &grant.role {
            if !rules.knows(role) {
                return Err(Denied::Granted { role: role.clone() });
            }
            caller.role = role;
        }
        if rules.knows(caller.role) && !rules.may_use(caller.role, requested.service) {
            let may_use = self.services.iter().filter(|(name, _)| rules.may_use(caller.role, name));
            let names: Vec<_> = may_use.map(|(name, _)| name).collect();
            return Err(Denied::Service {
                kind: caller.kind,
                device: caller.name.clone(),
                role: caller.role.clone(),
                service: requested.service.clone(),
                services: if names.is_empty() { "none".to_owned() } else { either(&names) },
            });
        }
        if !rules.may(caller.role, requested) {
            return Err(role_denied(&rules, &caller, requested));
        }
        let own = caller.models.map(|list| (Whose::Register, list));
        let granted = grant.models.as_deref().map(|list| (Whose::Authorize, list));
        // A person's name may be that of a device by chance.
        let name = (caller.kind != CallerKind::Token).then_some(caller.name);
        let mut lists: Vec<_> = rules
            .lists(name, caller.role)
            .chain(own)
            .chain(granted)
            .map(|(whose, list)| (whose, list.to_vec()))
            .collect();
        // Where the settings do not have it so any more, a token narrows nothing.
        if let Some(holder) = narrowed
            && let Some(tokens) = self.narrowing_tokens().as_deref()
        {
            let role = Caller::Token(holder).registered(&snapshot, Some(tokens))?.role;
            if !rules.may(role, requested) {
                let request = named(requested);
                return Err(Denied::Narrowed { role: role.clone(), request });
            }
            let of_token = rules.lists(None, role);
            lists.extend(of_token.map(|(_, list)| (Whose::Token(role.clone()), list.to_vec())));
        }
        let (device, role) = (caller.name.clone(), caller.role.clone());
        Ok(RoutePermit { kind: caller.kind, device, role, lists })
    }
}

fn role_denied(rules: &Rules, caller: &Registered<'_>, requested: RequestedRoute<'_>) -> Denied {
    let Registered { kind, name: device, role, .. } = *caller;
    let those = rules.that_may(requested);
    // For an unknown path, the role with all rights is no solution: the path is probably wrong.
    let is_unknown = those.len() == 1 && requested.route.class == RouteClass::Other;
    let doubt = if is_unknown { ", for no other has this route (is the path right?)" } else { "" };
    let needed = match those.first() {
        Some(first) if kind == CallerKind::Token => format!(
            "that needs the role {}{doubt}: the owner of the server can give `{first}` to a group of yours in `roles` below `[jwt]`",
            either(&those)
        ),
        Some(first) => format!(
            "that needs the role {}{doubt}: the owner of the server can run `aditd {kind} role {device} {first}`",
            either(&those)
        ),
        None => "no role may".to_owned(),
    };
    let cure = if rules.knows(role) {
        needed
    } else {
        format!("that role is not in the server's configuration; {needed}")
    };
    Denied::Role {
        kind,
        device: device.clone(),
        role: role.clone(),
        request: named(requested),
        cure,
    }
}

/// A request in a sentence: its method and path.
fn named(requested: RequestedRoute<'_>) -> String {
    let path: String = requested.target.path.chars().take(100).collect();
    format!("{} {path}", requested.method)
}
