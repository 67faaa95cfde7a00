//! `aditd user …`: the people to whom devices and keys belong.

mod shown;

use clap::Subcommand;
use common::machine::{
    format::to_json,
    process::{self, unix_now},
    report::{Failure, data, say},
};
use proto::{human::count, identity::Name, wire::Reason};

use self::shown::{Listing, Single, list, show, shown};
use crate::{
    audit::{self, AuditSettings, Event},
    commands::{
        beside::Beside,
        devices::{in_force, not_cut, refresh_after_revoking},
    },
    state::{
        State,
        register::{KnownUser, UserError},
    },
};

/// What can be done to users.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List all users
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one user, and the devices and keys that belong to it
    Show {
        /// The user's name
        user: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a user's access at once: all devices, keys and running answers; nothing new is enrolled
    Revoke {
        /// The user's name
        user: String,
        /// Tell the user why, in at most 200 characters
        #[arg(long, value_name = "TEXT")]
        reason: Option<Reason>,
    },
    /// Let a revoked user in again, with all devices and keys that were not revoked themselves
    Restore {
        /// The user's name
        user: String,
    },
    /// Give all devices and keys of a user this role, and the devices that it enrolls over SSH later
    Role {
        /// The user's name
        user: String,
        /// The role
        role: Name,
    },
}

/// Runs one command.
pub(crate) async fn run(beside: &Beside, command: Command) -> Result<(), Failure> {
    let (dir, audit) = (&*beside.dir, beside.audit());
    let state = match (State::open(dir), &command) {
        (Err(failure), Command::Revoke { .. }) => return Err(not_cut(failure)),
        (state, _) => state?,
    };
    match command {
        Command::List { json } => {
            let users = shown(state.register.users(unix_now())?, beside).await;
            if json {
                return data(to_json(&Listing { schema: 1, users })?);
            }
            list(&users)?;
            let is_own = |device: &crate::state::register::Device| device.user.is_none();
            let own = state.register.devices()?.into_iter().filter(is_own).count();
            if own > 0 {
                say(format!(
                    "{} without a user: each counts as one; `aditd device user DEVICE USER` changes that.",
                    count(own as u64, "device")
                ));
            }
            Ok(())
        }
        Command::Show { user, json } => {
            let user = state.register.find_user(&user, unix_now())?;
            let user = shown(vec![user], beside).await.remove(0);
            if json { data(to_json(&Single { schema: 1, user })?) } else { show(&user) }
        }
        Command::Revoke { user, reason } => {
            revoke(&state, audit, &user, reason, beside.tokens()).await
        }
        Command::Restore { user } => restore(&state, audit, &user).await,
        Command::Role { user, role } => {
            beside.must_know(&role)?;
            let user = state.register.find_user(&user, unix_now())?;
            state.register.set_user_role(&user.name, &role)?;
            let event = Event::UserRole {
                user: user.name.clone(),
                role: role.clone(),
                before: user.role.clone(),
                uid: process::uid(),
            };
            audit::note_or_say(audit, &event);
            in_force(&state).await?;
            let all = belongings(&user);
            say(format!("What belongs to {} ({all}) has the role `{role}` now.", user.name));
            Ok(())
        }
    }
}

async fn revoke(
    state: &State,
    audit: &AuditSettings,
    name: &str,
    reason: Option<Reason>,
    tokens: bool,
) -> Result<(), Failure> {
    let user = match state.register.find_user(name, unix_now()) {
        Err(UserError::Register(e)) => return Err(not_cut(e)),
        // The register does not know who comes with a token of the provider.
        Err(UserError::Unknown { text, known }) if tokens => match text.parse() {
            Ok(name) => KnownUser::new(name),
            Err(_) => return Err(UserError::Unknown { text, known }.into()),
        },
        found => found?,
    };
    if user.revoked.is_some() {
        return Err(UserError::AlreadyRevoked(user.name).into());
    }
    state.register.revoke_user(&user.name, reason.as_ref(), unix_now()).map_err(not_cut)?;
    let event = Event::UserRevoke { user: user.name.clone(), reason, uid: process::uid() };
    audit::note_or_say(audit, &event);
    let cut = refresh_after_revoking(&state.dir, "user").await?;
    let and_cut = match cut {
        0 => String::new(),
        cut => format!("; {} connected and cut", count(cut as u64, "device")),
    };
    say(format!("Revoked the user {} ({}){and_cut}.", user.name, belongings(&user)));
    if tokens {
        say("Tokens of the provider that name this user do not count any more.");
    }
    if !user.invitations.is_empty() {
        let open = count(user.invitations.len() as u64, "open invitation");
        say(format!("Withdrew {open} of this user."));
    }
    Ok(())
}

async fn restore(state: &State, audit: &AuditSettings, name: &str) -> Result<(), Failure> {
    let user = state.register.find_user(name, unix_now())?;
    if user.revoked.is_none() {
        return Err(UserError::NotRevoked(user.name).into());
    }
    state.register.restore_user(&user.name)?;
    let event = Event::UserRestore { user: user.name.clone(), uid: process::uid() };
    audit::note_or_say(audit, &event);
    in_force(state).await?;
    say(format!(
        "The user {} ({}) may connect again. A running `adit up` tries within a minute; one that has ended has to be started again. \
         What was revoked by itself stays revoked.",
        user.name,
        belongings(&user)
    ));
    Ok(())
}

/// What a user has, in words: `2 devices, 1 key`.
fn belongings(user: &KnownUser) -> String {
    format!(
        "{}, {}",
        count(user.devices.len() as u64, "device"),
        count(user.keys.len() as u64, "key")
    )
}
