//! `aditd user …`: the people to whom devices and keys belong.

mod shown;

use clap::Subcommand;
use common::machine::{
    json,
    process::unix_now,
    report::{Failure, say},
};
use proto::{human::count, identity::Name, wire::Reason};

use self::shown::{list, show};
use crate::{
    changes::ChangedUser,
    commands::{
        beside::Beside,
        devices::with_login,
        in_force::{in_force, not_cut, refresh_after_revoking},
        status,
    },
    documents::{OneUser, UserShown, Users, View},
    state::{
        State,
        register::{Device, KnownUser, UserError},
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
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a revoked user in again, with all devices and keys that were not revoked themselves
    Restore {
        /// The user's name
        user: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give all devices and keys of a user this role, and the devices that it enrolls over SSH later
    Role {
        /// The user's name
        user: String,
        /// The role
        role: Name,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs one command.
pub(crate) async fn run(beside: &Beside, command: Command) -> Result<(), Failure> {
    let state = match (State::open(&beside.dir), &command) {
        (Err(failure), Command::Revoke { .. }) => return Err(not_cut(failure)),
        (state, _) => state?,
    };
    let changes = beside.changes(&state);
    match command {
        Command::List { json } => {
            let view = View::new(&state.register, status::live(&beside.dir).await)?;
            let users = state.register.users(unix_now())?.into_iter();
            let users: Vec<_> = users.map(|user| shown(&view, user)).collect();
            if json {
                return json::answer(Users { users });
            }
            list(&users)?;
            let is_own = |device: &Device| device.user.is_none();
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
            let one = one(beside, &state, user, 0).await?;
            if json { json::answer(one) } else { show(&one.user) }
        }
        Command::Revoke { user, reason, json } => {
            let changed = changes.revoke_user(&user, reason, beside.tokens());
            let ChangedUser { before, now } = changed.map_err(|e| match e {
                UserError::Register(e) => not_cut(e),
                other => other.into(),
            })?;
            let cut = refresh_after_revoking(&state.dir, "user").await?;
            if json {
                json::answer(one(beside, &state, now, cut).await?)?;
            }
            say_revoked(&before, cut, beside.tokens());
            Ok(())
        }
        Command::Restore { user, json } => {
            let ChangedUser { now, .. } = changes.restore_user(&user)?;
            let cut = in_force(&state).await?;
            if json {
                json::answer(one(beside, &state, now.clone(), cut).await?)?;
            }
            say(format!(
                "The user {} ({}) may connect again. A running `adit up` tries within a minute; one that has ended has to be started again. \
                 What was revoked by itself stays revoked.",
                now.name,
                belongings(&now)
            ));
            Ok(())
        }
        Command::Role { user, role, json } => {
            beside.must_know(&role)?;
            let ChangedUser { now, .. } = changes.set_user_role(&user, &role)?;
            let cut = in_force(&state).await?;
            if json {
                json::answer(one(beside, &state, now.clone(), cut).await?)?;
            }
            let all = belongings(&now);
            say(format!("What belongs to {} ({all}) has the role `{role}` now.", now.name));
            Ok(())
        }
    }
}

/// A user, and how many sessions its change has cut.
async fn one(
    beside: &Beside,
    state: &State,
    user: KnownUser,
    cut: usize,
) -> Result<OneUser, Failure> {
    let view = View::new(&state.register, status::live(&beside.dir).await)?;
    Ok(OneUser { user: shown(&view, user), cut })
}

fn shown(view: &View, user: KnownUser) -> UserShown {
    let user = view.user(user);
    UserShown { devices: user.devices.into_iter().map(with_login).collect(), ..user }
}

fn say_revoked(user: &KnownUser, cut: usize, by_token: bool) {
    let and_cut = match cut {
        0 => String::new(),
        cut => format!("; {} connected and cut", count(cut as u64, "device")),
    };
    say(format!("Revoked the user {} ({}){and_cut}.", user.name, belongings(user)));
    if by_token {
        say("Tokens of the provider that name this user do not count any more.");
    }
    if !user.invitations.is_empty() {
        let open = count(user.invitations.len() as u64, "open invitation");
        say(format!("Withdrew {open} of this user."));
    }
}

/// What a user has, in words: `2 devices, 1 key`.
fn belongings(user: &KnownUser) -> String {
    format!(
        "{}, {}",
        count(user.devices.len() as u64, "device"),
        count(user.keys.len() as u64, "key")
    )
}
