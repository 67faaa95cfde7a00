//! On whose account a request is counted: that of its user, if it has one, and its own.

use std::collections::{HashMap, HashSet};

use proto::{
    crypto::sha256,
    identity::{DeviceId, Name, UserName},
};

/// Whose requests and tokens are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// One device or key.
    Device(DeviceId),
    /// All devices, keys and tokens of a user.
    User(UserName),
}

/// By which id the tokens of a person are counted whom `authorize` names, and who is not the user of
/// the device or key.
pub(super) fn granted_id(user: &UserName) -> DeviceId {
    let hash = sha256(format!("authorize\n{user}").as_bytes());
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]).into()
}

/// A device, a key or the tokens of a user.
#[derive(Debug)]
struct Member {
    /// The name in the configuration; tokens have none there.
    name: Option<Name>,
    user: UserName,
}

/// The devices, keys and tokens that belong to users.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: HashMap<DeviceId, Member>,
    of: HashMap<UserName, Vec<DeviceId>>,
}

impl Members {
    pub(super) fn add(&mut self, id: DeviceId, name: &Name, user: &UserName) {
        self.insert(id, Member { name: Some(name.clone()), user: user.clone() });
    }

    /// The tokens of a user count by this id.
    pub(super) fn add_tokens(&mut self, id: DeviceId, user: &UserName) {
        self.insert(id, Member { name: None, user: user.clone() });
    }

    /// What is there already stays.
    fn insert(&mut self, id: DeviceId, member: Member) {
        if !self.all.contains_key(&id) {
            self.of.entry(member.user.clone()).or_default().push(id);
            self.all.insert(id, member);
        }
    }

    /// Those who have come with a token. They are in no register.
    pub(super) fn with_tokens(&self) -> impl Iterator<Item = (DeviceId, &UserName)> {
        let tokens = self.all.iter().filter(|(_, member)| member.name.is_none());
        tokens.map(|(id, member)| (*id, &member.user))
    }

    pub(super) fn ids(&self) -> HashSet<DeviceId> {
        self.all.keys().copied().collect()
    }

    /// The user of a device, key or token.
    pub(super) fn user(&self, id: DeviceId) -> Option<&UserName> {
        self.all.get(&id).map(|member| &member.user)
    }

    pub(super) fn has(&self, user: &UserName) -> bool {
        self.of.contains_key(user)
    }

    /// All that belongs to a user, with the names in the configuration: `""` for tokens.
    pub(super) fn of<'m>(
        &'m self,
        user: &UserName,
    ) -> impl Iterator<Item = (DeviceId, &'m str)> + 'm {
        let ids = self.of.get(user).into_iter().flatten();
        ids.filter_map(|id| {
            let name = self.all.get(id)?.name.as_ref();
            Some((*id, name.map_or("", Name::as_str)))
        })
    }
}
