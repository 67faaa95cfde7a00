//! On whose account a request is counted: that of its user, if it has one, and its own.

use std::collections::HashMap;

use proto::identity::{DeviceId, Name, UserName};

/// Whose requests and tokens are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// One device or key.
    Device(DeviceId),
    /// All devices and keys of a user.
    User(UserName),
}

/// A device or key that belongs to a user.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Name,
    pub(super) user: UserName,
}

/// The devices and keys that belong to users.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: HashMap<DeviceId, Member>,
    of: HashMap<UserName, Vec<DeviceId>>,
}

impl Members {
    pub(super) fn add(&mut self, id: DeviceId, name: &Name, user: &UserName) {
        self.of.entry(user.clone()).or_default().push(id);
        self.all.insert(id, Member { name: name.clone(), user: user.clone() });
    }

    /// The user of a device or key.
    pub(super) fn user(&self, id: DeviceId) -> Option<&UserName> {
        self.all.get(&id).map(|member| &member.user)
    }

    pub(super) fn has(&self, user: &UserName) -> bool {
        self.of.contains_key(user)
    }

    /// All that belongs to a user, with names.
    pub(super) fn of<'m>(
        &'m self,
        user: &UserName,
    ) -> impl Iterator<Item = (DeviceId, &'m Name)> + 'm {
        let ids = self.of.get(user).into_iter().flatten();
        ids.filter_map(|id| Some((*id, &self.all.get(id)?.name)))
    }
}
