//! The services that devices may use, by name.

use proto::identity::Name;

use super::{roles::default_service, upstream::Upstream};

/// All services. The first is the one of devices that name none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Services(Vec<(Name, Upstream)>);

impl Services {
    /// The service `ollama`, and others.
    pub(crate) fn new(
        default: Upstream,
        others: impl IntoIterator<Item = (Name, Upstream)>,
    ) -> Self {
        let first = [(default_service(), default)];
        let others = others.into_iter().filter(|(name, _)| *name != first[0].0);
        Self(first.iter().cloned().chain(others).collect())
    }

    /// All of them, `ollama` first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &Upstream)> {
        self.0.iter().map(|(name, upstream)| (name, upstream))
    }

    /// The one with this name.
    pub(crate) fn get(&self, name: &Name) -> Option<&Upstream> {
        self.iter().find(|(known, _)| *known == name).map(|(_, upstream)| upstream)
    }

    /// The service `ollama`.
    pub(crate) fn default_one(&self) -> &Upstream {
        &self.0[0].1
    }
}

impl Default for Services {
    fn default() -> Self {
        Self::new(Upstream::default(), [])
    }
}
