//! Who may do what. The only maker of permits: whatever needs permission takes one.

pub mod authorize;
pub mod roles;
pub mod upstream;

use std::sync::{Arc, PoisonError, RwLock};

use proto::{
    identity::{Certificate, DeviceId, Name},
    ollama::{model::ModelPattern, route::RouteClass},
    wire::{Code, DEFAULT_SERVICE, Service, ServiceKind},
};

use crate::{
    policy::{
        roles::{RequestedRoute, Rules, Whose, either},
        upstream::Upstream,
    },
    state::register::{Snapshot, default_role},
};

/// How long after its certificate's end a device may still prove its key to get a new one, in
/// seconds: 90 days.
pub const RECOVER_WITHIN: i64 = 90 * 24 * 3600;

/// The rules in force: what the register says now, and the services there are.
pub struct Policy {
    snapshot: RwLock<Arc<Snapshot>>,
    rules: RwLock<Arc<Rules>>,
    service: Name,
    upstream: Upstream,
}

/// A device whose certificate and standing are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Its id.
    pub id: DeviceId,
    /// What it is called.
    pub name: Name,
    /// The user of this machine who enrolled it over SSH.
    pub uid: Option<u32>,
}

/// Permission to reach one service, for one stream. Only [`Policy::permit`] makes one.
#[derive(Debug)]
pub struct Permit {
    upstream: Upstream,
}

impl Permit {
    /// What may be reached.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }
}

/// A device may use the route of one request; whether it may use the model too is another question.
/// Only [`Policy::route`] makes one.
#[derive(Debug)]
pub struct RoutePermit {
    device: Name,
    role: Name,
    lists: Vec<(Whose, Vec<ModelPattern>)>,
}

/// Permission to forward one request. Only [`RoutePermit`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPermit {
    /// The role that it was given for.
    pub role: Name,
}

/// Why a device may not make a request, in words for the person who made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is not, or no longer, enrolled.
    #[error("adit: {}", .0.sentence())]
    Device(Code),
    /// Its role has no such route.
    #[error("adit: device `{device}` has the role `{role}`, which may not {request}; {cure}")]
    Role {
        /// The device.
        device: Name,
        /// Its role.
        role: Name,
        /// Method and path.
        request: String,
        /// What would be needed.
        cure: String,
    },
    /// It may not use the model.
    #[error(
        "adit: device `{device}` (role `{role}`) may not use the model `{model}`, only {models}; the owner of the server can change \
         that: {cure}"
    )]
    Model {
        /// The device.
        device: Name,
        /// Its role.
        role: Name,
        /// The model.
        model: String,
        /// Those that it may.
        models: String,
        /// Where that is said.
        cure: String,
    },
    /// It may use some models only, and which one a request is about can't be told.
    #[error(
        "adit: device `{device}` (role `{role}`) may use only {models}, and this request {why}; the owner of the server can change \
         that: {cure}"
    )]
    NoModel {
        /// The device.
        device: Name,
        /// Its role.
        role: Name,
        /// Those that it may.
        models: String,
        /// Why not.
        why: &'static str,
        /// Where that is said.
        cure: String,
    },
}

impl RoutePermit {
    /// Whether it depends on the model.
    pub fn needs_model(&self) -> bool {
        !self.lists.is_empty()
    }

    /// The device's role.
    pub fn role(&self) -> &Name {
        &self.role
    }

    /// Permission for a request that is about these models, and no others.
    ///
    /// # Errors
    /// [`Denied::Model`].
    pub fn with_models(self, models: &[String]) -> Result<RequestPermit, Denied> {
        let lacks =
            |list: &[ModelPattern], model: &str| !list.iter().any(|pattern| pattern.means(model));
        for model in models {
            let without: Vec<_> = self
                .lists
                .iter()
                .filter(|(_, list)| lacks(list, model))
                .map(|(whose, _)| *whose)
                .collect();
            if !without.is_empty() {
                let (cure, models) = (self.cure(&without, "MODEL…"), self.models());
                let model = model.chars().take(100).collect();
                return Err(Denied::Model {
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

    /// What a device is told that may use some models, and whose request does not say which.
    pub fn no_model(&self, why: &'static str) -> Denied {
        let all: Vec<_> = self.lists.iter().map(|(whose, _)| *whose).collect();
        let cure = self.cure(&all, "--all");
        Denied::NoModel {
            device: self.device.clone(),
            role: self.role.clone(),
            models: self.models(),
            why,
            cure,
        }
    }

    /// What has to be changed: each of these lists.
    fn cure(&self, lists: &[Whose], models: &str) -> String {
        let Self { device, role, .. } = self;
        let one = |whose: &Whose| match whose {
            Whose::Role => format!("`models` of `[roles.{role}]` in the configuration"),
            Whose::Device => format!("`models` of `[devices.{device}]` in the configuration"),
            Whose::Register => format!("`aditd device models {device} {models}`"),
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
    /// The rules for one service.
    pub fn new(snapshot: Snapshot, rules: Arc<Rules>, upstream: Upstream) -> Self {
        let service = DEFAULT_SERVICE.parse().expect("the default service's name is a name");
        Self {
            snapshot: RwLock::new(Arc::new(snapshot)),
            rules: RwLock::new(rules),
            service,
            upstream,
        }
    }

    /// What the register says now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a newer look at the register in force.
    pub fn update(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    /// The roles in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other roles in force.
    pub fn set_rules(&self, rules: Arc<Rules>) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// What a device may use.
    pub fn services(&self) -> Vec<Service> {
        vec![self.upstream.as_service(self.service.clone())]
    }

    /// What the bytes of a service are, if there is one of that name.
    pub fn kind(&self, service: &Name) -> Option<ServiceKind> {
        (*service == self.service).then_some(self.upstream.kind)
    }

    /// Whether the holder of this certificate, which TLS has verified, is in good standing.
    ///
    /// # Errors
    /// [`Code::Revoked`] for a device that was revoked or is not in the register.
    pub fn admit(&self, certificate: &Certificate) -> Result<Admitted, Code> {
        let id = certificate.device.ok_or(Code::Revoked)?;
        let snapshot = self.snapshot();
        let device = snapshot.admits(id, certificate.key).ok_or(Code::Revoked)?;
        Ok(Admitted { id, name: device.name.clone(), uid: device.uid })
    }

    /// Permission for one stream of a device to one service, asked anew for every stream.
    ///
    /// # Errors
    /// [`Code::Revoked`] or [`Code::UnknownService`].
    pub fn permit(&self, certificate: &Certificate, service: &Name) -> Result<Permit, Code> {
        self.admit(certificate)?;
        if *service != self.service {
            return Err(Code::UnknownService);
        }
        Ok(Permit { upstream: self.upstream })
    }

    /// The role of the holder of this certificate; the default one if it has none any more.
    pub fn role(&self, certificate: &Certificate) -> Name {
        let snapshot = self.snapshot();
        let device = certificate.device.and_then(|id| snapshot.admits(id, certificate.key));
        device.map_or_else(default_role, |device| device.role.clone())
    }

    /// Permission to use the route of one request, asked anew for every request and whenever the rules
    /// change.
    ///
    /// # Errors
    /// [`Denied::Device`] or [`Denied::Role`].
    pub fn route(
        &self,
        certificate: &Certificate,
        wish: RequestedRoute<'_>,
    ) -> Result<RoutePermit, Denied> {
        let id = certificate.device.ok_or(Denied::Device(Code::Revoked))?;
        let (snapshot, rules) = (self.snapshot(), self.rules());
        let device = snapshot.admits(id, certificate.key).ok_or(Denied::Device(Code::Revoked))?;
        if !rules.may(&device.role, wish) {
            return Err(role_denied(&rules, &device.name, &device.role, wish));
        }
        let own = device.models.as_deref().map(|list| (Whose::Register, list));
        let lists = rules
            .lists(&device.name, &device.role)
            .chain(own)
            .map(|(whose, list)| (whose, list.to_vec()))
            .collect();
        Ok(RoutePermit { device: device.name.clone(), role: device.role.clone(), lists })
    }
}

fn role_denied(rules: &Rules, device: &Name, role: &Name, wish: RequestedRoute<'_>) -> Denied {
    let path: String = wish.target.path.chars().take(100).collect();
    let those = rules.that_may(wish);
    // The highest of all rights is no cure for a path that is written wrongly.
    let is_unknown = those.len() == 1 && wish.route.class == RouteClass::Other;
    let doubt = if is_unknown { ", for no other has this route (is the path right?)" } else { "" };
    let needed = match those.first() {
        Some(first) => format!(
            "that needs the role {}{doubt}: the owner of the server can run `aditd device role {device} {first}`",
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
        device: device.clone(),
        role: role.clone(),
        request: format!("{} {path}", wish.method),
        cure,
    }
}
