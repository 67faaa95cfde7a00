//! How one state of the register differs from an earlier one, as events. Without IO: whoever has
//! changed the register, the difference is the same.

use proto::{
    identity::{DeviceId, Name, UserName},
    rotation::CaRecord,
    wire::Reason,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;

use crate::{
    audit::entry::Subject,
    state::register::{Device, Key, Snapshot},
};

/// One difference, as an event.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    event: &'static str,
    #[serde(flatten)]
    who: Option<Subject>,
    #[serde(flatten)]
    more: Value,
}

/// The differences between two states, for devices and keys.
pub(super) fn changes(before: &Snapshot, after: &Snapshot) -> Vec<Change> {
    let mut all = Vec::new();
    let old: HashMap<DeviceId, &Device> = before.devices().map(|d| (d.id, d)).collect();
    for device in after.devices() {
        of_device(old.get(&device.id).copied(), device, &mut all);
    }
    let now: HashMap<DeviceId, &Device> = after.devices().map(|d| (d.id, d)).collect();
    let gone = old.values().filter(|device| !now.contains_key(&device.id));
    all.extend(gone.map(|device| change("forget", device.subject(), json!({}))));
    let old: HashMap<DeviceId, &Key> = before.keys().map(|k| (k.id, k)).collect();
    for key in after.keys() {
        of_key(old.get(&key.id).copied(), key, &mut all);
    }
    let cas = |snapshot: &Snapshot| snapshot.cas().all().to_vec();
    of_cas(&cas(before), &cas(after), &mut all);
    let was = revoked(before);
    let is = revoked(after);
    let of_user = |event, more| Change { event, who: None, more };
    for (user, reason) in is.iter().filter(|(user, _)| !was.contains_key(*user)) {
        all.push(of_user("user_revoke", json!({"user": user, "reason": reason})));
    }
    for user in was.keys().filter(|user| !is.contains_key(*user)) {
        all.push(of_user("user_restore", json!({"user": user})));
    }
    all
}

fn of_cas(old: &[CaRecord], new: &[CaRecord], all: &mut Vec<Change>) {
    let of_ca = |event, ca: &CaRecord| Change { event, who: None, more: json!({"ca": ca.number}) };
    for ca in new {
        let before = old.iter().find(|before| before.number == ca.number);
        match before.map(|before| before.retired) {
            None => all.push(of_ca("ca_rotate", ca)),
            Some(None) if ca.retired.is_some() => all.push(of_ca("ca_retire", ca)),
            Some(_) => {}
        }
    }
}

fn revoked(snapshot: &Snapshot) -> HashMap<&UserName, Option<&Reason>> {
    snapshot.revoked_users().collect()
}

fn change(event: &'static str, who: Subject, more: Value) -> Change {
    Change { event, who: Some(who), more }
}

fn of_device(old: Option<&Device>, new: &Device, all: &mut Vec<Change>) {
    let mut add = |event, more| all.push(change(event, new.subject(), more));
    let Some(old) = old else { return add("enroll", json!({"role": new.role})) };
    if old.name != new.name {
        add("rename", json!({"before": old.name}));
    }
    role(&old.role, &new.role, &mut add);
    if old.user != new.user {
        add("assign", json!({"before": old.user}));
    }
    if old.models != new.models {
        add("models", json!({"models": new.models}));
    }
    match (old.revoked, new.revoked) {
        (None, Some(_)) => add("revoke", json!({"reason": new.reason})),
        (Some(_), None) => add("restore", json!({})),
        _ => {}
    }
    match (old.held, new.held) {
        (None, Some(_)) => add("held_back", json!({})),
        (Some(_), None) => add("confirm", json!({})),
        _ => {}
    }
}

fn of_key(old: Option<&Key>, new: &Key, all: &mut Vec<Change>) {
    let mut add = |event, more| all.push(change(event, new.subject(), more));
    let newest =
        |key: &Key| key.secrets.first().map(|secret| (secret.prefix.to_string(), secret.expires));
    let (prefix, expires) = newest(new).unzip();
    let secret = json!({"role": new.role, "prefix": prefix, "expires": expires.flatten()});
    let Some(old) = old else { return add("key_create", secret) };
    role(&old.role, &new.role, &mut add);
    if old.user != new.user {
        add("assign", json!({"before": old.user}));
    }
    if old.models != new.models {
        add("models", json!({"models": new.models}));
    }
    if old.revoked.is_none() && new.revoked.is_some() {
        add("revoke", json!({"reason": null}));
    } else if newest(old).map(|(prefix, _)| prefix) != prefix {
        add("key_rotate", secret);
    }
}

fn role(old: &Name, new: &Name, add: &mut impl FnMut(&'static str, Value)) {
    if old != new {
        add("role", json!({"role": new, "before": old}));
    }
}

#[cfg(test)]
mod tests {
    use proto::{identity::KeyHash, invitation::Secret};

    use super::*;
    use crate::state::register::{Register, default_role};

    #[test]
    fn each_change_of_the_register_is_one_event() {
        let dir = tempfile::tempdir().expect("a directory");
        let register = Register::open(&dir.path().join(Register::FILE)).expect("opened");
        let name: Name = "laptop".parse().expect("a name");
        let mut before = register.snapshot().expect("read");
        let mut told = |register: &Register| {
            let after = register.snapshot().expect("read");
            let events = changes(&before, &after);
            before = after;
            let events =
                events.into_iter().map(|change| serde_json::to_value(change).expect("JSON"));
            events.collect::<Vec<_>>()
        };
        let secret = Secret::generate();
        register.invite(&name, &default_role(), None, &secret, 100, 1).expect("invited");
        assert!(told(&register).is_empty(), "an invitation is no device");
        let key = KeyHash([1; 32]);
        let device =
            register.redeem(&*secret.token(), key, 200, 1).expect("read").expect("redeemed");
        let only = |events: Vec<Value>| {
            assert_eq!(events.len(), 1, "{events:?}");
            let event = events.into_iter().next().expect("one");
            assert_eq!(event["device_id"], device.id.to_string(), "{event}");
            event
        };
        let event = only(told(&register));
        assert_eq!((&event["event"], &event["device"]), (&"enroll".into(), &"laptop".into()));
        register.set_role(device.id, &"models".parse().expect("a name")).expect("changed");
        let event = only(told(&register));
        assert_eq!(
            (&event["event"], &event["role"], &event["before"]),
            (&"role".into(), &"models".into(), &"infer".into())
        );
        register.seen(device.id, 5).expect("noted");
        assert!(told(&register).is_empty(), "nothing that may do more or less");
        register.rename(device.id, &"desk".parse().expect("a name"), 5).expect("renamed");
        let event = only(told(&register));
        assert_eq!(
            (&event["event"], &event["device"], &event["before"]),
            (&"rename".into(), &"desk".into(), &"laptop".into())
        );
        register.revoke(device.id, Some(&"left".parse().expect("a reason")), 6).expect("revoked");
        let event = only(told(&register));
        assert_eq!((&event["event"], &event["reason"]), (&"revoke".into(), &"left".into()));
        register.restore(device.id).expect("restored");
        assert_eq!(only(told(&register))["event"], "restore");
        register.revoke(device.id, None, 7).expect("revoked");
        assert_eq!(only(told(&register))["event"], "revoke");
        register.forget(device.id, false).expect("forgotten");
        assert_eq!(only(told(&register))["event"], "forget");
        assert!(register.rotate_ca(1, &[], 8).expect("rotated"));
        let rotated = told(&register);
        assert_eq!(rotated, [json!({"event": "ca_rotate", "ca": 2})]);
        register.retire_cas(&[1], 9).expect("retired");
        assert_eq!(told(&register), [json!({"event": "ca_retire", "ca": 1})]);
    }
}
