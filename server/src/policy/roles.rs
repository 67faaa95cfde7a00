//! Roles: which routes and models a device may use. Three are built in, others come from the
//! configuration.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use proto::{
    identity::Name,
    ollama::{
        model::ModelPattern,
        route::{Api, ApiRoute, Pattern, RouteClass, Target, named},
    },
    wire::DEFAULT_SERVICE,
};
use serde::Deserialize;
use toml::Spanned;

use crate::limits::LimitSettings;

/// The role of a device for which none was chosen.
pub(crate) const DEFAULT: &str = "infer";
const BUILT_IN: [&str; 3] = [DEFAULT, "models", "admin"];

/// A role in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoleFile {
    /// The routes that it allows. Built-in roles have their own.
    pub allow: Option<Spanned<Vec<Pattern>>>,
    /// The only models that it allows.
    pub models: Option<Vec<ModelPattern>>,
    /// The only services that it allows. Without it, a built-in role allows all, and another one the
    /// service `ollama`.
    pub services: Option<Spanned<Vec<Name>>>,
    /// Whether its devices must keep their keys in hardware.
    #[serde(default)]
    pub hardware_key: bool,
    /// The limits of devices with this role.
    #[serde(default)]
    pub limits: LimitSettings,
}

/// A device in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceFile {
    /// The only models that it may use.
    pub models: Option<Vec<ModelPattern>>,
    /// The limits of this device.
    #[serde(default)]
    pub limits: LimitSettings,
}

/// An invalid role in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRole {
    /// It sets the routes of a built-in role.
    #[error("the role `{0}` is built in: give your own role another name")]
    BuiltIn(Name, usize),
    /// It has no routes.
    #[error(
        "the role `{0}` has no `allow`: name its routes, like allow = [\"GET /api/tags\", \"POST /api/chat\"]"
    )]
    NoRoutes(Name),
}

/// All roles, and the restrictions of single devices.
#[derive(Debug)]
pub(crate) struct Rules {
    roles: BTreeMap<Name, Role>,
    devices: HashMap<Name, Vec<ModelPattern>>,
}

#[derive(Debug)]
struct Role {
    allow: Allow,
    models: Option<Vec<ModelPattern>>,
    services: Option<Vec<Name>>,
    hardware_key: bool,
}

#[derive(Debug)]
enum Allow {
    Everything,
    /// The routes of some classes, in each API.
    Classes {
        ollama: Vec<Pattern>,
        openai: Vec<Pattern>,
    },
    Routes(Vec<Pattern>),
}

impl Allow {
    fn classes(classes: &[RouteClass]) -> Self {
        let [ollama, openai] = [Api::Ollama, Api::OpenAi].map(|api| named(api, classes));
        Self::Classes { ollama, openai }
    }
}

/// Where a list of models was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// `[roles.NAME]` in the configuration.
    Role,
    /// `[devices.NAME]` in the configuration.
    Device,
    /// The device's list in the register, by `aditd device models`.
    Register,
    /// The answer of `authorize`.
    Authorize,
    /// `[roles.NAME]` in the configuration, of the token of a request in a tunnel.
    Token(Name),
}

/// The route that a request asks for, before its body is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestedRoute<'a> {
    /// The method.
    pub method: &'a str,
    /// The method that a CORS preflight asks about.
    pub preflight: Option<&'a str>,
    /// The path.
    pub target: Target<'a>,
    /// The route of that method and path.
    pub route: ApiRoute,
    /// The service, and whose routes it has.
    pub service: &'a Name,
    pub api: Api,
}

impl Default for Rules {
    fn default() -> Self {
        Self::new(BTreeMap::new(), BTreeMap::new()).expect("the built-in roles are good")
    }
}

impl Rules {
    /// The built-in roles, and those of the configuration.
    ///
    /// # Errors
    /// An invalid role.
    pub(crate) fn new(
        roles: BTreeMap<Name, RoleFile>,
        devices: BTreeMap<Name, DeviceFile>,
    ) -> Result<Self, BadRole> {
        use RouteClass::{Embed, Generate, List, Models};
        let allows = [
            Allow::classes(&[List, Generate, Embed]),
            Allow::classes(&[List, Generate, Embed, Models]),
            Allow::Everything,
        ];
        let name = |text: &str| text.parse().expect("a role's name is a name");
        let built_in = BUILT_IN.into_iter().zip(allows).map(|(text, allow)| {
            (name(text), Role { allow, models: None, services: None, hardware_key: false })
        });
        let mut all: BTreeMap<Name, Role> = built_in.collect();
        for (name, RoleFile { allow, models, services, hardware_key, limits: _ }) in roles {
            let services = services.map(Spanned::into_inner);
            match (all.get_mut(&name), allow) {
                (Some(_), Some(allow)) => return Err(BadRole::BuiltIn(name, allow.span().start)),
                (Some(role), None) => {
                    (role.models, role.services) = (models, services);
                    role.hardware_key = hardware_key;
                }
                (None, Some(allow)) => {
                    // Routes that the owner has chosen for Ollama may mean more elsewhere.
                    let services = services.or_else(|| Some(vec![default_service()]));
                    let allow = Allow::Routes(allow.into_inner());
                    all.insert(name, Role { allow, models, services, hardware_key });
                }
                (None, None) => return Err(BadRole::NoRoutes(name)),
            }
        }
        let devices =
            devices.into_iter().filter_map(|(name, device)| Some((name, device.models?))).collect();
        Ok(Self { roles: all, devices })
    }

    /// The names of all roles.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.roles.keys()
    }

    /// Whether there is such a role.
    pub(crate) fn knows(&self, role: &Name) -> bool {
        self.roles.contains_key(role)
    }

    /// Whether a role may do everything.
    pub(crate) fn is_unlimited(&self, role: &Name) -> bool {
        self.roles.get(role).is_some_and(|role| matches!(role.allow, Allow::Everything))
    }

    /// Whether the devices of a role must keep their keys in hardware.
    pub(crate) fn wants_hardware_key(&self, role: &Name) -> bool {
        self.roles.get(role).is_some_and(|role| role.hardware_key)
    }

    /// Whether a role allows a service, whatever is asked of it.
    pub(crate) fn may_use(&self, role: &Name, service: &Name) -> bool {
        self.roles.get(role).is_some_and(|role| role.may_use(service))
    }

    /// Whether a role allows a route.
    pub(crate) fn may(&self, role: &Name, requested: RequestedRoute<'_>) -> bool {
        self.roles.get(role).is_some_and(|role| role.may(requested))
    }

    /// The roles that allow a route, those with the fewest rights first.
    pub(crate) fn that_may(&self, requested: RequestedRoute<'_>) -> Vec<&Name> {
        let mut all: Vec<_> = self
            .roles
            .iter()
            .filter(|(_, role)| role.may(requested))
            .map(|(name, _)| name)
            .collect();
        all.sort_by_key(|name| {
            match BUILT_IN.iter().position(|built_in| *built_in == name.as_str()) {
                Some(at) if at + 1 < BUILT_IN.len() => at,
                None => BUILT_IN.len(),
                Some(_) => usize::MAX,
            }
        });
        all
    }

    /// The lists of models that restrict a role and the device of this name, and where they were set.
    /// A model must be in all of them.
    pub(crate) fn lists<'a>(
        &'a self,
        device: Option<&Name>,
        role: &Name,
    ) -> impl Iterator<Item = (Whose, &'a [ModelPattern])> {
        let of_role = self.roles.get(role).and_then(|role| role.models.as_deref());
        let of_device = device.and_then(|device| self.devices.get(device)).map(Vec::as_slice);
        of_role
            .map(|list| (Whose::Role, list))
            .into_iter()
            .chain(of_device.map(|list| (Whose::Device, list)))
    }
}

impl Role {
    fn may_use(&self, service: &Name) -> bool {
        self.services.as_ref().is_none_or(|services| services.contains(service))
    }

    fn may(&self, requested: RequestedRoute<'_>) -> bool {
        let patterns = match (&self.allow, requested.api) {
            _ if !self.may_use(requested.service) => return false,
            (Allow::Everything, _) => return true,
            (Allow::Classes { ollama, .. }, Api::Ollama) => ollama,
            (Allow::Classes { openai, .. }, Api::OpenAi) => openai,
            (Allow::Routes(patterns), _) => patterns,
        };
        patterns.iter().any(|p| p.means(requested.method, requested.preflight, requested.target))
    }
}

/// The service of devices that name none.
pub(crate) fn default_service() -> Name {
    DEFAULT_SERVICE.parse().expect("the default service's name is a name")
}

/// A list for a sentence: `a`, `b` or `c`.
pub(crate) fn either<T: fmt::Display>(names: &[T]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [most @ .., last] => {
            let most: Vec<_> = most.iter().map(|name| format!("`{name}`")).collect();
            format!("{} or `{last}`", most.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ollama::route::route;

    fn that_may(rules: &Rules, method: &str, path: &str) -> String {
        that_may_at(rules, ("ollama", Api::Ollama), method, path)
    }

    fn that_may_at(rules: &Rules, (service, api): (&str, Api), method: &str, path: &str) -> String {
        let (target, service) = (Target::new(path), &service.parse().expect("a name"));
        let route = route(api, method, target);
        either(&rules.that_may(RequestedRoute {
            method,
            preflight: None,
            target,
            route,
            service,
            api,
        }))
    }

    #[derive(Deserialize)]
    struct File {
        roles: BTreeMap<Name, RoleFile>,
    }

    fn rules(roles: &str) -> Result<Rules, BadRole> {
        Rules::new(toml::from_str::<File>(roles).expect("toml").roles, BTreeMap::new())
    }

    #[test]
    fn each_route_of_ollama_belongs_to_the_roles_that_need_it() {
        let rules = Rules::default();
        for (requests, roles) in [
            (
                "HEAD /, GET /, GET /api/version, HEAD /api/tags, GET /api/ps, POST /api/show, POST /api/generate, POST /api/chat, \
                 POST /api/embed, POST /api/embeddings, GET /v1/models, GET /v1/models/x, POST /v1/chat/completions, \
                 POST /v1/completions, POST /v1/embeddings, POST /v1/responses, POST /v1/messages, POST /v1/audio/transcriptions",
                "`infer`, `models` or `admin`",
            ),
            (
                "POST /api/pull, POST /api/push, POST /api/create, POST /api/copy, DELETE /api/delete, POST /api/blobs/sha256:00, \
                 HEAD /api/blobs/sha256:00",
                "`models` or `admin`",
            ),
            (
                "GET /debug/pprof/, POST /api/me, POST /api/signout, GET /api/experimental/x, GET /api/chat, POST /api/tags, \
                 POST //api/chat, POST /api/%63hat, DELETE /, PUT /api/delete, GET /api/blobs/sha256:00, POST /api/chat/",
                "`admin`",
            ),
        ] {
            for request in requests.split(", ") {
                let (method, path) = request.split_once(' ').expect("both");
                assert_eq!(that_may(&rules, method, path), roles, "{request}");
            }
        }
    }

    #[test]
    fn a_role_of_the_configuration_allows_its_routes_and_no_others() {
        let rules = rules(
            "roles.tags.allow = ['GET /api/tags', 'POST /v1/*']\nroles.infer.models = ['llama3*']",
        )
        .expect("good");
        assert_eq!(that_may(&rules, "GET", "/api/tags"), "`infer`, `models`, `tags` or `admin`");
        assert_eq!(that_may(&rules, "POST", "/v1/images/generations"), "`tags` or `admin`");
        assert_eq!(
            rules
                .lists(Some(&"x".parse().expect("name")), &crate::state::register::default_role())
                .count(),
            1
        );
        assert_eq!(
            rules.lists(Some(&"x".parse().expect("name")), &"tags".parse().expect("name")).count(),
            0
        );
    }

    #[test]
    fn a_role_may_use_the_services_that_it_names() {
        let rules = rules(
            "roles.models.services = ['ollama']\nroles.both.allow = ['POST /v1/*']\nroles.both.services = ['ollama', 'vllm']\n\
             roles.old.allow = ['POST /v1/*']",
        )
        .expect("good");
        let of = |service, path| that_may_at(&rules, service, "POST", path);
        let (ollama, vllm) = (("ollama", Api::Ollama), ("vllm", Api::OpenAi));
        assert_eq!(of(ollama, "/v1/completions"), "`infer`, `models`, `both`, `old` or `admin`");
        assert_eq!(of(vllm, "/v1/completions"), "`infer`, `both` or `admin`");
        assert_eq!(of(vllm, "/rerank"), "`infer` or `admin`");
        assert_eq!(of(ollama, "/rerank"), "`admin`");
        assert_eq!(that_may_at(&rules, vllm, "GET", "/metrics"), "`admin`");
        let name = |text: &str| text.parse::<Name>().expect("a name");
        for (role, service, is_allowed) in [
            ("infer", "db", true),
            ("models", "db", false),
            ("old", "vllm", false),
            ("old", "ollama", true),
            ("both", "vllm", true),
            ("gone", "ollama", false),
        ] {
            assert_eq!(rules.may_use(&name(role), &name(service)), is_allowed, "{role} {service}");
        }
    }

    #[test]
    fn an_invalid_role_is_refused() {
        assert!(matches!(rules("roles.infer.allow = ['/*']"), Err(BadRole::BuiltIn(..))));
        assert!(matches!(rules("roles.mine.models = ['x']"), Err(BadRole::NoRoutes(_))));
    }
}
