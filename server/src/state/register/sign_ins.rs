//! The sign-ins with which devices enrolled: who that is at the provider, and with what the provider
//! is asked again. Refresh tokens are secrets, which no backup has.

use proto::{
    identity::{DeviceId, KeyHash, Name, UserName},
    wire::EnrollRefusal,
};
use rusqlite::{OptionalExtension, Transaction, params};
use zeroize::Zeroizing;

use super::{
    Device, DeviceError, Register, RegisterError, User,
    devices::{DeviceSignIn, NewDevice, all_devices, default_role, insert_device},
    names, users,
};

/// The change to the format that knows sign-ins.
pub(super) const CHANGE: &str = "
    ALTER TABLE invitation ADD COLUMN sso INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE sign_in (
        device          TEXT PRIMARY KEY,
        issuer          TEXT NOT NULL,
        subject         TEXT NOT NULL,
        refresh_token   TEXT,
        asked           INTEGER,
        ended           INTEGER
    ) STRICT;
";
/// A process that asks the provider has this long, in seconds, before another one may ask. A refresh
/// token may be good for one question.
const ASKING: i64 = 60;

/// Somebody who has signed in at the provider.
#[derive(Clone)]
pub(crate) struct SignedIn {
    /// The provider.
    pub issuer: String,
    /// Who that is there.
    pub subject: String,
    pub user: UserName,
    /// The role of the person's groups; `None` if groups decide nothing.
    pub role: Option<Name>,
    /// With what the provider is asked again.
    pub refresh_token: Option<Zeroizing<String>>,
}

/// With what the provider is asked whether a sign-in still counts.
pub(crate) struct StoredSignIn {
    pub issuer: String,
    pub subject: String,
    pub refresh_token: Option<Zeroizing<String>>,
}

/// What a renewal has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Renewed {
    pub before: Device,
    pub after: Device,
}

impl Register {
    /// Enrolls a device whose person has signed in, with a code that opens sign-ins. The same key of
    /// the same person is the same device, also after its sign-in has ended.
    ///
    /// # Errors
    /// The name is not available, the key is another person's, or the user is revoked.
    pub(crate) fn enroll_signed_in(
        &self,
        token: &[u8],
        name: &Name,
        person: &SignedIn,
        key: KeyHash,
        not_after: i64,
        now: i64,
    ) -> Result<Result<Device, EnrollRefusal>, DeviceError> {
        self.change(|t| {
            if !is_open(t, token, now)? {
                return Ok(Ok(Err(EnrollRefusal::Closed)));
            }
            if let Some(revoked) = users::refuses(t, Some(&person.user), None)? {
                return Ok(Err(DeviceError::UserRevoked(revoked)));
            }
            let devices = all_devices(t)?;
            if let Some(device) = devices.iter().find(|device| device.key == key) {
                return again(t, device, person, not_after);
            }
            if let Err(why) = is_free(t, &devices, name, now)? {
                return Ok(Err(why));
            }
            let role = match &person.role {
                Some(role) => role.clone(),
                None => users::role(t, Some(&person.user))?.unwrap_or_else(default_role),
            };
            let new = NewDevice { name, role: &role, uid: None, user: Some(&person.user) };
            let device = insert_device(t, new, key, not_after, now)?;
            store(t, device.id, person)?;
            Ok(Ok(Ok(Device { sign_in: Some(DeviceSignIn { ended: None }), ..device })))
        })?
    }

    /// Whether the code with this token opens sign-ins now; `None` if it is no open code.
    pub(crate) fn opens_sign_in(
        &self,
        token: &[u8],
        now: i64,
    ) -> Result<Option<bool>, RegisterError> {
        self.read(|t| {
            t.query_row(
                "SELECT sso FROM invitation WHERE token = ?1 AND expires > ?2",
                params![proto::crypto::sha256(token), now],
                |row| row.get(0),
            )
            .optional()
        })
    }

    /// Whether a device with this key may have this name, whoever signs in on it: before anybody does.
    ///
    /// # Errors
    /// The name is not available.
    pub(crate) fn name_before_sign_in(
        &self,
        name: &Name,
        key: KeyHash,
        now: i64,
    ) -> Result<Result<(), DeviceError>, RegisterError> {
        self.read(|t| {
            let devices = all_devices(t)?;
            // The same key is the same device, and keeps its name.
            if devices.iter().any(|device| device.key == key) {
                return Ok(Ok(()));
            }
            is_free(t, &devices, name, now)
        })
    }

    /// Takes the right to ask the provider about a device. `None` if it has not signed in, or if
    /// another process asks at this moment.
    pub(crate) fn take_sign_in(
        &self,
        id: DeviceId,
        now: i64,
    ) -> Result<Option<StoredSignIn>, RegisterError> {
        self.change(|t| {
            let taken = t.execute(
                "UPDATE sign_in SET asked = ?2 WHERE device = ?1
                 AND (asked IS NULL OR asked <= ?3 OR asked > ?2)",
                params![id.to_string(), now, now - ASKING],
            )?;
            if taken == 0 {
                return Ok(None);
            }
            t.query_row(
                "SELECT issuer, subject, refresh_token FROM sign_in WHERE device = ?1",
                params![id.to_string()],
                |row| {
                    Ok(StoredSignIn {
                        issuer: row.get(0)?,
                        subject: row.get(1)?,
                        refresh_token: row.get::<_, Option<String>>(2)?.map(Zeroizing::new),
                    })
                },
            )
            .optional()
        })
    }

    /// It is not known whether the sign-in counts: the provider may be asked again, with the refresh
    /// token that it has given meanwhile, if it has. That changes nothing if the person has signed in
    /// again since the question, or if the sign-in has ended.
    pub(crate) fn leave_sign_in(
        &self,
        id: DeviceId,
        refresh_token: Option<&Zeroizing<String>>,
    ) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE sign_in SET asked = NULL, refresh_token = coalesce(?2, refresh_token)
                 WHERE device = ?1 AND asked IS NOT NULL AND ended IS NULL",
                params![id.to_string(), refresh_token.map(|token| token.as_str())],
            )
        })
        .map(drop)
    }

    /// The provider has said that the sign-in counts, and who that is now. `None` if there is no such
    /// device any more.
    ///
    /// # Errors
    /// The user is revoked.
    pub(crate) fn confirm_sign_in(
        &self,
        id: DeviceId,
        person: &SignedIn,
    ) -> Result<Option<Renewed>, DeviceError> {
        self.change(|t| {
            let Some(before) = all_devices(t)?.into_iter().find(|device| device.id == id) else {
                return Ok(Ok(None));
            };
            if let Some(revoked) = users::refuses(t, Some(&person.user), None)? {
                return Ok(Err(DeviceError::UserRevoked(revoked)));
            }
            let role = person.role.clone().unwrap_or_else(|| before.role.clone());
            t.execute(
                "UPDATE device SET role = ?2, user = ?3 WHERE id = ?1",
                params![id.to_string(), role.as_str(), person.user.as_str()],
            )?;
            store(t, id, person)?;
            let user = Some(person.user.clone());
            let sign_in = Some(DeviceSignIn { ended: None });
            let after = Device { role, user, sign_in, ..before.clone() };
            Ok(Ok(Some(Renewed { before, after })))
        })?
    }

    /// The provider has said that the sign-in has ended. Returns whether that is new.
    pub(crate) fn end_sign_in(&self, id: DeviceId, now: i64) -> Result<bool, RegisterError> {
        let ended = self.change(|t| {
            t.execute(
                "UPDATE sign_in SET ended = ?2, asked = NULL, refresh_token = NULL
                 WHERE device = ?1 AND ended IS NULL",
                params![id.to_string(), now],
            )
        })?;
        Ok(ended > 0)
    }
}

/// Whether a new device may have this name.
fn is_free(
    t: &Transaction<'_>,
    devices: &[Device],
    name: &Name,
    now: i64,
) -> rusqlite::Result<Result<(), DeviceError>> {
    if names::is_of_key(t, name)? {
        return Ok(Err(DeviceError::NameOfKey(name.clone())));
    }
    let has = devices.iter().find(|device| device.name == *name);
    names::check(t, name, User::NOBODY, has, now)
}

/// Enrolls a device again that has this key already.
fn again(
    t: &Transaction<'_>,
    device: &Device,
    person: &SignedIn,
    not_after: i64,
) -> rusqlite::Result<Result<Result<Device, EnrollRefusal>, DeviceError>> {
    let stored = t
        .query_row(
            "SELECT issuer, subject FROM sign_in WHERE device = ?1",
            params![device.id.to_string()],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
        )
        .optional()?;
    if device.revoked.is_some() {
        return Ok(Err(DeviceError::AlreadyRevoked(device.name.clone())));
    }
    // With another issuer the same subject may be somebody else.
    let is_same = stored.is_some_and(|(issuer, subject)| {
        (issuer == person.issuer && subject == person.subject)
            || device.user.as_ref() == Some(&person.user)
    });
    if !is_same {
        return Ok(Err(DeviceError::OfAnotherPerson(device.name.clone())));
    }
    let role = person.role.clone().unwrap_or_else(|| device.role.clone());
    t.execute(
        "UPDATE device SET role = ?2, user = ?3, not_after = ?4 WHERE id = ?1",
        params![device.id.to_string(), role.as_str(), person.user.as_str(), not_after],
    )?;
    store(t, device.id, person)?;
    Ok(Ok(Ok(Device {
        role,
        user: Some(person.user.clone()),
        not_after,
        sign_in: Some(DeviceSignIn { ended: None }),
        ..device.clone()
    })))
}

/// Stores who has signed in. An answer without a refresh token leaves the one that
/// is there, but never one of another provider or person.
fn store(t: &Transaction<'_>, id: DeviceId, person: &SignedIn) -> rusqlite::Result<()> {
    t.execute(
        "INSERT INTO sign_in (device, issuer, subject, refresh_token) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (device) DO UPDATE SET issuer = ?2, subject = ?3, asked = NULL, ended = NULL,
         refresh_token = CASE WHEN issuer = ?2 AND subject = ?3
             THEN coalesce(?4, refresh_token) ELSE ?4 END",
        params![
            id.to_string(),
            person.issuer,
            person.subject,
            person.refresh_token.as_ref().map(|token| token.as_str())
        ],
    )
    .map(drop)
}

fn is_open(t: &Transaction<'_>, token: &[u8], now: i64) -> rusqlite::Result<bool> {
    t.prepare_cached("SELECT 1 FROM invitation WHERE token = ?1 AND expires > ?2 AND sso")?
        .exists(params![proto::crypto::sha256(token), now])
}

#[cfg(test)]
mod tests {
    use proto::invitation::Secret;

    use super::*;

    const NOW: i64 = 1_000;

    fn register() -> (tempfile::TempDir, Register, Vec<u8>) {
        let tmp = tempfile::tempdir().expect("tempdir");
        let register = Register::open(&tmp.path().join("register.sqlite")).expect("opened");
        let secret = Secret::generate();
        register.invite_sign_in(&name("sso"), &secret, 2_000, NOW).expect("invited");
        (tmp, register, secret.token().to_vec())
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn person(subject: &str, role: Option<&str>, refresh_token: Option<&str>) -> SignedIn {
        SignedIn {
            issuer: "https://a.example".into(),
            subject: subject.into(),
            user: format!("{subject}@example.com").parse().expect("a user"),
            role: role.map(name),
            refresh_token: refresh_token.map(|token| token.to_owned().into()),
        }
    }

    #[test]
    fn one_code_enrolls_many_devices_and_nobody_without_a_sign_in() {
        let (_tmp, register, token) = register();
        let enroll = |device: &str, who: &str, key: u8, now| {
            let person = person(who, Some("admin"), Some("r"));
            register.enroll_signed_in(&token, &name(device), &person, KeyHash([key; 32]), 9, now)
        };
        let first = enroll("laptop", "alice", 1, NOW).expect("enrolled").expect("open");
        let other = enroll("desktop", "bob", 2, NOW).expect("enrolled").expect("open");
        assert_ne!(first.id, other.id);
        assert_eq!(
            (first.role.as_str(), first.user),
            ("admin", Some(person("alice", None, None).user))
        );
        let again = enroll("another", "alice", 1, NOW).expect("enrolled").expect("open");
        assert_eq!((again.id, again.name), (first.id, first.name), "the same key");
        let taken = enroll("laptop", "bob", 3, NOW);
        assert!(matches!(taken, Err(DeviceError::NameTaken(_))), "{taken:?}");
        let before = |device: &str, key: u8| {
            register.name_before_sign_in(&name(device), KeyHash([key; 32]), NOW).expect("read")
        };
        assert!(matches!(before("laptop", 3), Err(DeviceError::NameTaken(_))));
        assert!(matches!(before("sso", 3), Err(DeviceError::NameInvited(_))));
        assert!(before("laptop", 1).is_ok(), "the same key");
        assert!(before("third", 3).is_ok());
        let stolen = enroll("third", "bob", 1, NOW);
        assert!(matches!(stolen, Err(DeviceError::OfAnotherPerson(_))), "{stolen:?}");
        let invited = enroll("sso", "bob", 4, NOW);
        assert!(matches!(invited, Err(DeviceError::NameInvited(_))), "{invited:?}");
        assert_eq!(enroll("late", "bob", 5, 2_000).expect("read"), Err(EnrollRefusal::Closed));
        // As an ordinary code it enrolls nobody.
        let redeemed = register.redeem(&token, KeyHash([6; 32]), 9, NOW).expect("read");
        assert_eq!(redeemed, Err(EnrollRefusal::SignIn));
        assert_eq!(register.opens_sign_in(&token, NOW).expect("read"), Some(true));
        assert!(register.withdraw("sso", NOW).expect("withdrawn"));
        assert_eq!(register.opens_sign_in(&token, NOW).expect("read"), None);
        assert_eq!(enroll("more", "eve", 7, NOW).expect("read"), Err(EnrollRefusal::Closed));
    }

    #[test]
    fn a_revoked_user_enrolls_nothing_and_is_not_renewed() {
        let (_tmp, register, token) = register();
        let alice = person("alice", None, Some("r"));
        let enroll = |key: u8, device: &str| {
            register.enroll_signed_in(&token, &name(device), &alice, KeyHash([key; 32]), 9, NOW)
        };
        let device = enroll(1, "laptop").expect("enrolled").expect("open");
        assert_eq!(device.role, default_role());
        register.revoke_user(&alice.user, None, NOW).expect("revoked");
        assert!(matches!(enroll(2, "other"), Err(DeviceError::UserRevoked(_))));
        let confirmed = register.confirm_sign_in(device.id, &alice);
        assert!(matches!(confirmed, Err(DeviceError::UserRevoked(_))), "{confirmed:?}");
    }

    #[test]
    fn one_process_asks_at_a_time_and_tokens_are_kept_until_the_sign_in_ends() {
        let (_tmp, register, token) = register();
        let alice = person("alice", Some("infer"), Some("first"));
        let key = KeyHash([1; 32]);
        let device = register.enroll_signed_in(&token, &name("laptop"), &alice, key, 9, NOW);
        let device = device.expect("enrolled").expect("open");
        let take = |now| {
            let taken = register.take_sign_in(device.id, now).expect("read");
            taken.map(|stored| stored.refresh_token.map(|token| token.to_string()))
        };
        assert_eq!(take(NOW), Some(Some("first".into())));
        assert_eq!(take(NOW + 59), None, "another process asks");
        let leave = |token: Option<&str>| {
            let token = token.map(|token| Zeroizing::new(token.to_owned()));
            register.leave_sign_in(device.id, token.as_ref()).expect("left");
        };
        leave(None);
        assert_eq!(take(NOW + 59), Some(Some("first".into())));
        assert_eq!(take(NOW + 119), Some(Some("first".into())), "the other process has ended");
        leave(Some("rotated"));
        assert_eq!(take(NOW + 119), Some(Some("rotated".into())), "the provider gave another");
        leave(None);
        assert_eq!(take(NOW + 119), Some(Some("rotated".into())), "it is kept");
        let confirm = |role, refresh| {
            let person = person("alice", Some(role), refresh);
            register.confirm_sign_in(device.id, &person).expect("confirmed").expect("there")
        };
        let Renewed { before, after } = confirm("admin", None);
        assert_eq!((before.role.as_str(), after.role.as_str()), ("infer", "admin"));
        leave(Some("of the question before"));
        assert_eq!(take(NOW + 120), Some(Some("rotated".into())), "the provider gave no other");
        confirm("admin", Some("second"));
        assert_eq!(take(NOW + 120), Some(Some("second".into())));
        let judged = || register.snapshot().expect("read").judge(device.id, key).map(drop);
        assert_eq!(judged(), Ok(()));
        assert!(register.end_sign_in(device.id, NOW).expect("ended"));
        assert!(!register.end_sign_in(device.id, NOW).expect("ended"), "that is not new");
        assert_eq!(judged(), Err(proto::wire::Code::SignedOut));
        assert_eq!(take(NOW + 300), Some(None));
        leave(Some("late"));
        assert_eq!(take(NOW + 360), Some(None), "what has ended gets no token");
        let again = register.enroll_signed_in(&token, &name("x"), &alice, key, 9, NOW);
        assert_eq!(again.expect("enrolled").expect("open").id, device.id);
        assert_eq!(judged(), Ok(()));
        let elsewhere =
            SignedIn { issuer: "https://other".to_owned(), ..person("alice", Some("infer"), None) };
        let moved = register.enroll_signed_in(&token, &name("x"), &elsewhere, key, 9, NOW);
        assert_eq!(moved.expect("enrolled").expect("open").id, device.id);
        assert_eq!(take(NOW + 380), Some(None), "no provider gets the token of another");
        register.revoke(device.id, None, NOW).expect("revoked");
        register.forget(device.id, false).expect("forgotten");
        assert_eq!(take(NOW + 400), None);
    }
}
