//! What a register keeps, and how an older format is converted.

use proto::{identity::Name, invitation::Secret};

use super::*;

#[test]
fn devices_of_a_register_of_the_first_format_are_kept_with_the_role_infer() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let path = tmp.path().join(Register::FILE);
    drop(files::open_append(&path).expect("made"));
    let db = Connection::open(&path).expect("opened");
    db.execute_batch(SCHEMA).expect("made");
    db.execute_batch(
        "INSERT INTO device VALUES ('d7c4-91ae', 'laptop', zeroblob(32), 1, 2, NULL, 3);
         INSERT INTO invitation VALUES (x'00', zeroblob(32), 'desk', 9, NULL, NULL);
         PRAGMA user_version = 1",
    )
    .expect("filled");
    drop(db);
    for _ in 0..2 {
        let register = Register::open(&path).expect("opened");
        let device = register.find("laptop").expect("there");
        assert_eq!(
            (device.role, device.models, device.seen, device.uid),
            (default_role(), None, Some(3), None)
        );
    }
}

#[test]
fn devices_keys_and_users_of_each_older_format_are_kept() {
    let secret = ApiKey::generate();
    for format in 1..SCHEMA_VERSION {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join(Register::FILE);
        drop(files::open_append(&path).expect("made"));
        let db = Connection::open(&path).expect("opened");
        for change in &CHANGES[..format as usize] {
            db.execute_batch(change).expect("made");
        }
        db.execute_batch(
            "INSERT INTO device (id, name, key, enrolled, not_after)
             VALUES ('d7c4-91ae', 'laptop', zeroblob(32), 1, 2)",
        )
        .expect("filled");
        let (has_keys, has_users) = (format >= 6, format >= 8);
        if has_keys {
            db.execute_batch(
                "INSERT INTO api_key (id, name, role, user, created)
                 VALUES ('1111-2222', 'ci', 'models', 'alice', 1)",
            )
            .expect("filled");
            let (prefix, hash) = (secret.prefix(), secret.hash());
            let values = params![prefix.as_str(), hash.as_bytes()];
            let insert = "INSERT INTO api_secret VALUES (?1, ?2, '1111-2222', 1, 50)";
            db.execute(insert, values).expect("filled");
        }
        if has_users {
            db.execute_batch(
                "UPDATE device SET user = 'alice';
                 INSERT INTO user VALUES ('mallory', NULL, 7, 'left')",
            )
            .expect("filled");
        }
        db.pragma_update(None, "user_version", format).expect("filled");
        drop(db);
        let (alice, mallory): (UserName, UserName) =
            ("alice".parse().expect("a user"), "mallory".parse().expect("a user"));
        for _ in 0..2 {
            let register = Register::open(&path).expect("opened");
            let device = register.find("laptop").expect("there");
            assert_eq!(device.standing(), Standing::Admitted, "format {format}");
            assert_eq!(device.user, has_users.then(|| alice.clone()), "format {format}");
            let snapshot = register.snapshot().expect("read");
            let key = snapshot.key_of(&secret, 49).map(|(key, _)| (key.role.as_str(), &key.user));
            let expected = has_keys.then(|| ("models", Some(alice.clone())));
            assert_eq!(key, expected.as_ref().map(|(role, user)| (*role, user)), "format {format}");
            assert!(snapshot.key_of(&secret, 50).is_none(), "it ends when it was said");
            let revoked = snapshot.revoked_user(Some(&mallory)).is_some();
            assert_eq!(revoked, has_users, "format {format}");
        }
        // Users work there, also for what is older than they are.
        let register = Register::open(&path).expect("opened");
        let device = register.find("laptop").expect("there");
        register.set_user(device.id, Some(&alice)).expect("set");
        register.revoke_user(&alice, None, 9).expect("revoked");
        let snapshot = register.snapshot().expect("read");
        assert_eq!(snapshot.judge(device.id, device.key).err(), Some(Code::Revoked));
        if has_keys {
            let (key, _) = snapshot.key_of(&secret, 49).expect("there");
            assert!(snapshot.revoked_user(key.user.as_ref()).is_some(), "format {format}");
        }
    }
}

#[test]
fn an_enrollment_that_is_repeated_has_the_role_that_the_device_has_by_now() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
    let named = |text: &str| -> Name { text.parse().expect("a name") };
    let (secret, key) = (Secret::generate(), KeyHash([1; 32]));
    register.invite(&named("laptop"), &named("infer"), None, &secret, 100, 1).expect("invited");
    let token = secret.token();
    let role = || register.invited(&*token, 1).expect("read").expect("open").role;
    let device = register.redeem(&*token, key, 200, 1).expect("read").expect("redeemed");
    assert_eq!(role(), named("infer"));
    register.set_role(device.id, &named("models")).expect("set");
    assert_eq!(role(), named("models"));

    // The same key under another name is another device.
    let login = User { uid: 1000, is_owner: false };
    let role = |name: &str| {
        let name = named(name);
        register.role_for(key, None, |device| device.is_enrolled_as(&name, login)).expect("read")
    };
    assert_eq!((role("laptop"), role("other")), (Some(named("models")), None));
}

#[test]
fn a_device_has_the_role_of_its_invitation_and_can_be_given_another_and_models() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
    let (name, role) = ("laptop".parse().expect("a name"), "models".parse().expect("a name"));
    let secret = Secret::generate();
    register.invite(&name, &role, None, &secret, 100, 1).expect("invited");
    assert_eq!(
        register.invited(&*secret.token(), 1).expect("read"),
        Some(Invited { name, role: role.clone(), user: None, sso: false, expires: 100 })
    );
    assert_eq!(register.invited(&*secret.token(), 100).expect("read"), None);
    let device = register
        .redeem(&*secret.token(), KeyHash([1; 32]), 200, 1)
        .expect("read")
        .expect("redeemed");
    assert_eq!((&device.role, &device.models), (&role, &None));
    let models = ["llama3*".parse().expect("a pattern"), "x:1b".parse().expect("a pattern")];
    register.set_models(device.id, Some(&models)).expect("set");
    register.set_role(device.id, &"admin".parse().expect("a name")).expect("set");
    let now = register.find("laptop").expect("there");
    assert_eq!((now.role.as_str(), now.models.as_deref()), ("admin", Some(&models[..])));
    register.set_models(device.id, Some(&[])).expect("set");
    assert_eq!(
        register.find("laptop").expect("there").models,
        Some(vec![]),
        "an empty list allows no model"
    );
    register.set_models(device.id, None).expect("set");
    assert_eq!(register.find("laptop").expect("there").models, None);
}

fn register() -> (tempfile::TempDir, Register) {
    let tmp = tempfile::tempdir().expect("tempdir");
    let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
    (tmp, register)
}

const ALICE: User = User { uid: 1000, is_owner: false };
const BOB: User = User { uid: 1001, is_owner: false };

fn name(text: &str) -> Name {
    text.parse().expect(text)
}

#[test]
fn a_name_that_looks_like_an_id_is_given_to_no_device() {
    let (_tmp, register) = register();
    let laptop =
        register.enroll(&name("laptop"), ALICE, None, KeyHash([1; 32]), 200, 1).expect("enrolled");
    let decoy = name(&laptop.id.to_string());
    let secret = Secret::generate();
    let invited = register.invite(&decoy, &default_role(), None, &secret, 100, 1);
    assert!(matches!(invited, Err(DeviceError::LooksLikeId(_))), "{invited:?}");
    let enrolled = register.enroll(&decoy, ALICE, None, KeyHash([2; 32]), 200, 1);
    assert!(matches!(enrolled, Err(DeviceError::LooksLikeId(_))), "{enrolled:?}");
    assert_eq!(register.find(decoy.as_str()).expect("found").name, laptop.name);
}

#[test]
fn what_is_the_id_of_one_device_and_the_name_of_another_is_refused() {
    let (_tmp, register) = register();
    let laptop =
        register.enroll(&name("laptop"), ALICE, None, KeyHash([1; 32]), 200, 1).expect("enrolled");
    let other =
        register.enroll(&name("desk"), ALICE, None, KeyHash([2; 32]), 200, 1).expect("enrolled");
    // An older version allowed such a name.
    let rename = "UPDATE device SET name = ?1 WHERE id = ?2";
    let (id, decoy) = (laptop.id.to_string(), other.id.to_string());
    register.change(|t| t.execute(rename, params![id, decoy])).expect("renamed");
    let found = register.find(&id);
    assert!(
        matches!(&found, Err(DeviceError::Ambiguous { name, id, .. }) if *name == laptop.name && *id == other.id),
        "{found:?}"
    );
    assert_eq!(register.find("laptop").expect("found").id, laptop.id);
    assert_eq!(register.find(&decoy).expect("found").id, other.id);
}

#[test]
fn only_open_invitations_count_and_few_used_ones_are_kept() {
    let (_tmp, register) = register();
    let invite = |i: i64| {
        let (secret, name) = (Secret::generate(), name(&format!("device-{i}")));
        register.invite(&name, &default_role(), None, &secret, 100, 1).map(|_| secret)
    };
    let redeem = |secret: &Secret| {
        register.redeem(&*secret.token(), KeyHash([1; 32]), 200, 1).expect("read")
    };
    let mut used = Vec::new();
    for i in 0..3 * MOST_INVITATIONS {
        let secret = invite(i).expect("invited");
        redeem(&secret).expect("redeemed");
        used.push(secret);
    }
    let newest = used.last().expect("one");
    redeem(newest).expect("a device whose answer was lost asks again");
    assert!(register.snapshot().expect("read").invitations.len() <= MOST_INVITATIONS as usize + 1);
    for i in 0..MOST_INVITATIONS {
        invite(1000 + i).expect("so many may be open");
    }
    let refused = invite(2000).err();
    assert!(matches!(refused, Some(DeviceError::TooManyInvitations)), "{refused:?}");
}

#[test]
fn the_name_of_a_forgotten_device_is_reserved_for_its_user_until_the_owner_frees_it() {
    let (_tmp, register) = register();
    let name = name("alice-laptop");
    let enroll = |user, key| register.enroll(&name, user, None, KeyHash([key; 32]), 200, 1);
    let forget = |device: Device| {
        register.revoke(device.id, None, 2).expect("revoked");
        register.forget(device.id, false).expect("forgotten");
    };
    let first = enroll(ALICE, 1).expect("enrolled");
    assert_eq!(first.uid, Some(ALICE.uid));
    assert_eq!(enroll(ALICE, 1).expect("the same key").id, first.id);
    assert!(enroll(BOB, 1).is_err(), "a key that somebody else holds too");
    forget(first);
    let refused = enroll(BOB, 2).expect_err("it was alice's");
    assert!(
        matches!(&refused, DeviceError::NameOfAnother { uid: Some(uid), .. } if *uid == ALICE.uid),
        "{refused:?}"
    );
    forget(enroll(ALICE, 3).expect("it is hers"));
    let had = register.free_name(&name).expect("freed");
    assert_eq!(had, Some(super::names::FreedName { uid: Some(ALICE.uid) }));
    let bobs = enroll(BOB, 4).expect("the owner has freed it");
    assert_eq!((bobs.uid, register.freed_name(&name).expect("read")), (Some(BOB.uid), None));
}

#[test]
fn an_invited_name_can_only_be_used_with_its_code() {
    let (_tmp, register) = register();
    let (name, secret) = (name("alice-laptop"), Secret::generate());
    register.invite(&name, &default_role(), None, &secret, 100, 1).expect("invited");
    let refused = register.enroll(&name, BOB, None, KeyHash([2; 32]), 200, 1);
    assert!(matches!(refused, Err(DeviceError::NameInvited(_))), "{refused:?}");
    let device = register.redeem(&*secret.token(), KeyHash([1; 32]), 200, 1).expect("read");
    assert_eq!(device.expect("redeemed").uid, None);
}

/// A register of format 3 with these devices: id, and when it was revoked.
fn before_own_knocks(path: &Path, devices: &[(&str, &str)]) -> Register {
    drop(files::open_append(path).expect("made"));
    let db = Connection::open(path).expect("opened");
    for change in &CHANGES[..3] {
        db.execute_batch(change).expect("made");
    }
    for (id, revoked) in devices {
        db.execute_batch(&format!(
            "INSERT INTO device (id, name, key, enrolled, not_after, revoked)
             VALUES ('{id}', '{id}', zeroblob(32), 1, 2, {revoked})"
        ))
        .expect("filled");
    }
    db.pragma_update(None, "user_version", 3).expect("filled");
    drop(db);
    Register::open(path).expect("opened")
}

#[test]
fn the_shared_knock_is_accepted_until_all_devices_have_their_own_or_a_revoked_one_knows_it() {
    let (a, b) = ("0000-000a", "0000-000b");
    type Step = fn(&Register, DeviceId, DeviceId);
    let cases: [(&str, Step, bool); 6] = [
        ("nothing has happened", |_, _, _| {}, true),
        ("one has its own", |r, a, _| r.has_own_knock(a).expect("noted"), true),
        (
            "both have their own",
            |r, a, b| {
                r.has_own_knock(a).expect("noted");
                r.has_own_knock(b).expect("noted");
            },
            false,
        ),
        ("one is revoked", |r, a, _| r.revoke(a, None, 9).expect("revoked"), false),
        (
            "one with its own is revoked",
            |r, a, _| {
                r.has_own_knock(a).expect("noted");
                r.revoke(a, None, 9).expect("revoked");
            },
            false,
        ),
        (
            "one is revoked that never had the shared one",
            |r, _, _| {
                let name = "new".parse().expect("a name");
                let new = r.enroll(&name, ALICE, None, KeyHash([1; 32]), 9, 9).expect("enrolled");
                r.revoke(new.id, None, 9).expect("revoked");
            },
            true,
        ),
    ];
    for (what, step, accepted) in cases {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join(Register::FILE);
        let register = before_own_knocks(&path, &[(a, "NULL"), (b, "NULL"), ("0000-000c", "7")]);
        step(&register, a.parse().expect("an id"), b.parse().expect("an id"));
        let now = common::machine::process::unix_now();
        assert_eq!(
            register.snapshot().expect("read").accepts_shared_knock(now),
            accepted,
            "{what}"
        );
    }
}

#[test]
fn a_register_in_which_nobody_needs_the_shared_knock_does_not_accept_it() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let fresh = Register::open(&tmp.path().join("fresh")).expect("opened");
    fresh
        .enroll(&"new".parse().expect("a name"), ALICE, None, KeyHash([1; 32]), 9, 9)
        .expect("enrolled");
    assert!(!fresh.snapshot().expect("read").accepts_shared_knock(0));
    let all_revoked = before_own_knocks(&tmp.path().join("old"), &[("0000-000a", "7")]);
    assert!(!all_revoked.snapshot().expect("read").accepts_shared_knock(0));
}

#[test]
fn the_invitation_of_a_revoked_device_can_not_be_used() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
    let secret = Secret::generate();
    let name = "laptop".parse().expect("a name");
    register.invite(&name, &default_role(), None, &secret, 100, 1).expect("invited");
    let device = register
        .redeem(&*secret.token(), KeyHash([1; 32]), 200, 1)
        .expect("read")
        .expect("redeemed");
    let knock = secret.knock_key().knock();
    assert!(register.snapshot().expect("read").invites(&knock, 1).is_some());
    register.revoke(device.id, None, 2).expect("revoked");
    assert!(register.snapshot().expect("read").invites(&knock, 2).is_none());
}

#[test]
fn a_code_is_of_the_ca_that_it_names_and_ends_with_it_alone() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
    assert!(register.rotate_ca(1, &[], 1).expect("rotated"));
    let invite = |name: &str, ca| {
        let name = name.parse().expect("a name");
        let invited = Invited { name, role: default_role(), user: None, sso: false, expires: 100 };
        register.add_invitation(&invited, &Secret::generate(), ca, 1)
    };
    // Its process had not heard of the second CA yet.
    invite("old", 1).expect("invited");
    invite("new", 2).expect("invited");
    let codes = || {
        let snapshot = register.snapshot().expect("read");
        [1, 2].map(|number| snapshot.codes_of(number, 1))
    };
    assert_eq!(codes(), [1, 1]);
    assert_eq!(register.retire_cas(&[2, 3], 2).expect("written"), 0, "2 is the newest one");
    assert_eq!(codes(), [1, 1]);
    assert_eq!(register.retire_cas(&[1], 2).expect("written"), 1);
    assert_eq!(codes(), [0, 1]);
    assert!(matches!(invite("late", 1), Err(DeviceError::CaEnded)));
    assert!(matches!(invite("late", 3), Err(DeviceError::CaEnded)));
    assert_eq!(codes(), [0, 1]);
}
