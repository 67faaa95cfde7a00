//! What a register keeps, and what a newer format makes of an older one.

use common::invitation::Secret;

use super::*;
use crate::roles;

#[test]
fn a_register_of_the_first_format_keeps_its_devices_and_they_may_infer() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let path = tmp.path().join(Register::FILE);
    drop(private::open_append(&path).expect("made"));
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
            (device.role, device.models, device.seen),
            (roles::default_role(), None, Some(3))
        );
    }
}

#[test]
fn a_device_has_the_role_of_its_invitation_and_can_be_given_another_and_models() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
    let (name, role) = ("laptop".parse().expect("a name"), "models".parse().expect("a name"));
    let secret = Secret::generate();
    register.invite(&name, &role, &secret, 100, 1).expect("invited");
    assert_eq!(register.invited(&secret.token(), 1).expect("read"), Some((name, role.clone())));
    assert_eq!(register.invited(&secret.token(), 100).expect("read"), None);
    let device = register
        .redeem(&secret.token(), KeyHash([1; 32]), 200, 1)
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
        "none at all is not all"
    );
    register.set_models(device.id, None).expect("set");
    assert_eq!(register.find("laptop").expect("there").models, None);
}
