//! What the register says of users themselves: who is revoked, and which role was chosen.

use std::collections::{HashMap, HashSet};

use proto::{
    identity::{Name, UserName},
    wire::Reason,
};
use rusqlite::{Transaction, params};

use super::{Register, RegisterError, User, parsed, user_errors::UserError};

/// The change to the format that knows users.
pub(super) const CHANGE: &str = "
    ALTER TABLE device ADD COLUMN user TEXT;
    ALTER TABLE invitation ADD COLUMN user TEXT;
    CREATE TABLE user (
        name        TEXT PRIMARY KEY,
        role        TEXT,
        revoked     INTEGER,
        reason      TEXT
    ) STRICT;
";

/// The revocation of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RevokedUser {
    /// Why, in the owner's words.
    pub reason: Option<Reason>,
}

/// The users who are revoked, in memory.
#[derive(Debug, Default)]
pub(super) struct RevokedUsers(HashMap<UserName, RevokedUser>);

impl RevokedUsers {
    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&UserName, &RevokedUser)> {
        self.0.iter()
    }

    /// The revocation of this user, if there is one.
    pub(super) fn of(&self, user: Option<&UserName>) -> Option<&RevokedUser> {
        self.0.get(user?)
    }
}

/// What the register says of a user itself.
#[derive(Debug, Clone)]
pub(super) struct UserRow {
    pub(super) name: UserName,
    pub(super) role: Option<Name>,
    pub(super) revoked: Option<i64>,
    pub(super) reason: Option<Reason>,
}

impl Register {
    /// The users who are revoked.
    pub(crate) fn revoked_users(&self) -> Result<HashSet<UserName>, RegisterError> {
        Ok(self.read(revoked)?.0.into_keys().collect())
    }

    /// What the register says of its users themselves.
    pub(super) fn user_rows(&self) -> Result<Vec<UserRow>, RegisterError> {
        self.read(rows)
    }
}

/// The users who are revoked.
pub(super) fn revoked(t: &Transaction<'_>) -> rusqlite::Result<RevokedUsers> {
    let revoked = rows(t)?.into_iter().filter(|user| user.revoked.is_some());
    Ok(RevokedUsers(revoked.map(|user| (user.name, RevokedUser { reason: user.reason })).collect()))
}

/// The role of devices that this user enrolls over SSH, if one was chosen.
pub(super) fn role(t: &Transaction<'_>, user: Option<&UserName>) -> rusqlite::Result<Option<Name>> {
    let all = rows(t)?;
    Ok(all.into_iter().find(|row| Some(&row.name) == user).and_then(|row| row.role))
}

/// Why nothing may be added for this user: it is revoked. Neither may a login that has enrolled a
/// device of a revoked user, by whatever name it goes now; but that of the server's owner may.
pub(super) fn refuses(
    t: &Transaction<'_>,
    user: Option<&UserName>,
    login: Option<User>,
) -> rusqlite::Result<Option<UserError>> {
    let revoked = revoked(t)?;
    let refused = |user: &UserName| {
        let RevokedUser { reason } = revoked.of(Some(user))?;
        Some(UserError::Revoked { user: user.clone(), reason: reason.clone() })
    };
    if let Some(why) = user.and_then(refused) {
        return Ok(Some(why));
    }
    let Some(login) = login.filter(|login| !login.is_owner && !revoked.0.is_empty()) else {
        return Ok(None);
    };
    let theirs = "SELECT DISTINCT user FROM device WHERE uid = ?1 AND user IS NOT NULL";
    let mut query = t.prepare_cached(theirs)?;
    let users = query.query_map([login.uid], |row| parsed(row.get(0)?))?;
    let users = users.collect::<rusqlite::Result<Vec<UserName>>>()?;
    Ok(users.iter().find_map(refused))
}

/// A register that replaces another keeps what that one knew of its users.
pub(super) fn keep(t: &Transaction<'_>, known: &[UserRow]) -> rusqlite::Result<()> {
    for UserRow { name, role, revoked, reason } in known {
        t.execute(
            "INSERT OR REPLACE INTO user (name, role, revoked, reason) VALUES (?1, ?2, ?3, ?4)",
            params![
                name.as_str(),
                role.as_ref().map(Name::as_str),
                revoked,
                reason.as_ref().map(ToString::to_string)
            ],
        )?;
    }
    Ok(())
}

pub(super) fn rows(t: &Transaction<'_>) -> rusqlite::Result<Vec<UserRow>> {
    let mut query = t.prepare_cached("SELECT name, role, revoked, reason FROM user")?;
    let text = |text: Option<String>| text.map(parsed);
    query
        .query_map([], |row| {
            Ok(UserRow {
                name: parsed(row.get(0)?)?,
                role: row.get::<_, Option<String>>(1)?.map(parsed).transpose()?,
                revoked: row.get(2)?,
                reason: text(row.get(3)?).transpose()?,
            })
        })?
        .collect()
}
