//! The changes that an owner makes, by a command or by the API: what is checked, what the register
//! has then, and what the audit log is told. A running server has to be told of each one: it is in
//! force when the server has read the register again. All of them block.

mod cas;
mod devices;
mod keys;
mod users;

pub(crate) use self::{
    devices::{Forgotten, Renamed},
    keys::MadeKey,
    users::ChangedUser,
};
use crate::{
    audit::{self, Audit, AuditSettings, Event},
    state::State,
};

/// Who writes the audit log.
#[derive(Clone, Copy)]
pub(crate) enum AuditLog<'a> {
    /// The running server.
    Server(&'a Audit),
    /// A command beside it, by these settings.
    Command(&'a AuditSettings),
}

/// Makes changes.
#[derive(Clone, Copy)]
pub(crate) struct Changes<'a> {
    pub(crate) state: &'a State,
    pub(crate) log: AuditLog<'a>,
    /// The user of this machine who makes them.
    pub(crate) uid: u32,
}

impl Changes<'_> {
    fn note(&self, event: Event) {
        match self.log {
            AuditLog::Server(audit) => audit.note(event),
            AuditLog::Command(settings) => audit::note_or_say(settings, &event),
        }
    }
}
