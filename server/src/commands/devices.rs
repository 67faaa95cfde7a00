//! `aditd device …`: lists devices, changes what they may do, and ends their access.

mod changes;
mod shown;

use std::path::Path;

use clap::Subcommand;
use common::machine::{
    control,
    format::to_json,
    process::{self, unix_now},
    report::{Exit, Failure, data, say},
};
use proto::{
    identity::{Name, UserName},
    ollama::model::ModelPattern,
    wire::Reason,
};

use serde_json::json;

use self::shown::{Listing, Single, list, show, shown};
use crate::{
    audit::{self, AuditSettings, Event},
    commands::{beside::Beside, invite, models},
    running::{Answer, Request},
    state::{
        State,
        register::{Device, DeviceError},
    },
};

/// What can be done to devices.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List all devices
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one device and its session
    Show {
        /// The device's name or id
        device: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a device another role: infer, models, admin, or a role of your configuration
    Role {
        /// The device's name or id
        device: String,
        /// The role
        role: Name,
    },
    /// Let a device use only these models; without any, show which it may use. The limits of its
    /// role still apply
    Models {
        /// The device's name or id
        device: String,
        /// Models, for example `llama3.2:1b` or `llama3*`
        #[arg(conflicts_with = "all", value_name = "MODEL")]
        models: Vec<ModelPattern>,
        /// Let the device use all models that its role allows
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whose a device is: what one user's devices and keys ask for is counted together
    User {
        /// The device's name or id
        device: String,
        /// The user's name, for example `alice`
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        user: Option<UserName>,
        /// Let it count as a user of its own
        #[arg(long)]
        none: bool,
    },
    /// End a device's access and its running answers, at once; or withdraw an unused invitation
    Revoke {
        /// The device's name or id
        device: String,
        /// Tell the device's user why, in at most 200 characters
        #[arg(long, value_name = "TEXT")]
        reason: Option<Reason>,
    },
    /// Let a revoked device in again, with the key that it had
    Restore {
        /// The device's name or id
        device: String,
    },
    /// Let a device in that is held back since the register was restored
    Confirm {
        /// The device's name or id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        device: Option<String>,
        /// Let all of them in: only if none of them should stay out
        #[arg(long)]
        all: bool,
    },
    /// Give a device another name
    Rename {
        /// The device's name or id
        device: String,
        /// The new name
        name: Name,
    },
    /// Remove a revoked device; over SSH, only the user who enrolled it can use its name again
    Forget {
        /// The device's name or id
        device: String,
        /// Let any user use the name again; also works after the device was forgotten
        #[arg(long)]
        free_name: bool,
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
        Command::Role { device, role } => {
            beside.must_know(&role)?;
            let device = enrolled(&state, &device)?;
            state.register.set_role(device.id, &role)?;
            audit::note_or_say(
                audit,
                &Event::Role {
                    device: device.subject(),
                    role: role.clone(),
                    before: device.role.clone(),
                    uid: process::uid(),
                },
            );
            in_force(&state).await?;
            say(format!("{} {} has the role `{role}` now.", device.name, device.id));
            Ok(())
        }
        Command::Models { device, models, all: false, json } if models.is_empty() => {
            let device = state.register.find(&device)?;
            if json {
                let models = device.models;
                return data(to_json(&json!({"schema": 1, "models": models}))?);
            }
            data(models::listed(device.models.as_deref(), &device.role))
        }
        Command::Models { device, models, all, json: _ } => {
            let device = enrolled(&state, &device)?;
            state.register.set_models(device.id, (!all).then_some(models.as_slice()))?;
            let named = (!all).then(|| models.iter().map(ToString::to_string).collect());
            audit::note_or_say(
                audit,
                &Event::Models { device: device.subject(), models: named, uid: process::uid() },
            );
            in_force(&state).await?;
            say(format!(
                "{} {} may now {}.",
                device.name,
                device.id,
                models::allowed(&models, all)
            ));
            if let Some(note) = models::missing(dir, &models).await {
                say(note);
            }
            Ok(())
        }
        Command::User { device, user, none: _ } => {
            changes::user(&state, audit, &device, user.as_ref()).await
        }
        Command::List { json } => {
            let devices = shown(&state.register, state.register.devices()?, beside).await;
            if json {
                return data(to_json(&Listing { schema: 1, devices })?);
            }
            list(&devices)?;
            let lost = state.register.history()?.lost;
            if devices.iter().any(|device| device.to_confirm.is_some()) {
                say(shown::to_confirm(lost));
            }
            // Programs that read the table expect only devices in it.
            let open = state.register.invitations(unix_now())?;
            if !open.is_empty() {
                say(format!("Open invitations:\n{}", invite::table(&open)));
            }
            Ok(())
        }
        Command::Show { device, json } => {
            let device =
                shown(&state.register, vec![state.register.find(&device)?], beside).await.remove(0);
            let tokens_today = match control::ask(dir, &Request::Tokens { device: device.id }).await
            {
                Ok(Some(Answer::Tokens(today))) => today,
                _ => None,
            };
            if json {
                data(to_json(&Single { schema: 1, device, tokens_today })?)
            } else {
                show(&device, tokens_today)
            }
        }
        Command::Revoke { device, reason } => revoke(&state, audit, &device, reason).await,
        Command::Restore { device } => changes::restore(&state, audit, &device).await,
        Command::Confirm { device, all: _ } => {
            changes::confirm(&state, audit, device.as_deref()).await
        }
        Command::Rename { device, name } => changes::rename(&state, audit, &device, &name).await,
        Command::Forget { device, free_name } => forget(&state, audit, &device, free_name),
    }
}

/// Finds a device whose rights can be changed.
fn enrolled(state: &State, name: &str) -> Result<Device, DeviceError> {
    let device = state.register.find(name)?;
    if device.revoked.is_some() {
        Err(DeviceError::AlreadyRevoked(device.name))
    } else {
        Ok(device)
    }
}

/// Makes the running server apply the register now: access that was removed ends at once.
pub(crate) async fn in_force(state: &State) -> Result<(), Failure> {
    refresh(&state.dir).await.map(drop).map_err(|why| {
        not_told("the register is changed, but the running server could not be told", why)
    })
}

async fn revoke(
    state: &State,
    audit: &AuditSettings,
    name: &str,
    reason: Option<Reason>,
) -> Result<(), Failure> {
    let device = match state.register.find(name) {
        Err(DeviceError::Unknown { .. })
            if state.register.withdraw(name, unix_now()).map_err(not_cut)? =>
        {
            audit::note_or_say(
                audit,
                &Event::Withdraw { device: name.to_owned(), uid: process::uid() },
            );
            in_force(state).await?;
            say(format!("The invitation for `{name}` is withdrawn."));
            return Ok(());
        }
        Err(DeviceError::Register(e)) => return Err(not_cut(e)),
        found => found?,
    };
    if device.revoked.is_some() {
        return Err(DeviceError::AlreadyRevoked(device.name).into());
    }
    state.register.revoke(device.id, reason.as_ref(), unix_now()).map_err(not_cut)?;
    let event = Event::Revoke { device: device.subject(), reason, uid: process::uid() };
    audit::note_or_say(audit, &event);
    let cut = refresh_after_revoking(&state.dir, "device").await?;
    let and_cut = if cut > 0 { "; it was connected and has been cut" } else { "" };
    say(format!("Revoked {} {}{and_cut}.", device.name, device.id));
    Ok(())
}

fn forget(
    state: &State,
    audit: &AuditSettings,
    device: &str,
    free_name: bool,
) -> Result<(), Failure> {
    let name = match (state.register.find(device), device.parse::<Name>()) {
        // The device was forgotten before.
        (Err(DeviceError::Unknown { .. }), Ok(name))
            if free_name && state.register.freed_name(&name)?.is_some() =>
        {
            name
        }
        (found, _) => {
            let device = found?;
            if device.revoked.is_none() {
                return Err(DeviceError::StillEnrolled(device.name).into());
            }
            state.register.forget(device.id)?;
            let event = Event::Forget { device: device.subject(), uid: process::uid() };
            audit::note_or_say(audit, &event);
            say(format!("Forgot {} {}.", device.name, device.id));
            device.name
        }
    };
    if free_name && let Some(freed) = state.register.free_name(&name)? {
        let (device, device_uid) = (name.clone(), freed.uid);
        audit::note_or_say(audit, &Event::FreeName { device, device_uid, uid: process::uid() });
        say(format!("Any user may have the name `{name}` now."));
    }
    Ok(())
}

/// How to cut everybody off when the register cannot be read or written. A restart would not do
/// it: a server that cannot read its register continues with what it knows, or does not start.
const STOP: &str = "to cut every device off now: `sudo systemctl stop aditd` if it is a service, else `pkill -x aditd`";

pub(crate) fn not_cut(error: impl Into<Failure>) -> Failure {
    error.into().hint(STOP)
}

/// As [`refresh`], after this `kind` of thing was revoked.
pub(super) async fn refresh_after_revoking(dir: &Path, kind: &str) -> Result<usize, Failure> {
    refresh(dir).await.map_err(|why| {
        let what = format!(
            "the {kind} is revoked in the register, but the running server could not be told"
        );
        not_told(&what, why)
    })
}

/// Makes the running server apply the register now. Returns how many sessions it has cut; 0 if no
/// server runs.
async fn refresh(dir: &Path) -> Result<usize, Failure> {
    match control::ask(dir, &Request::Refresh).await? {
        None => Ok(0),
        Some(Answer::Refreshed { cut }) => Ok(cut),
        Some(Answer::Failed(why)) => Err(why),
        Some(_) => Err(Failure::new("the server gave an unexpected answer")),
    }
}

/// The error when the register is changed, but the running server may not know it yet.
fn not_told(what: &str, why: Failure) -> Failure {
    let hint = "the server also reads the register by itself, four times a second, if it can";
    // The hints of the server are for its own log; this command has done its part.
    Failure::new(what).caused_by(why.without_hints()).hint(hint).hint(STOP).exit(Exit::Failed)
}
