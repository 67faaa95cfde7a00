//! `aditd device …`: lists devices, changes what they may do, and ends their access.

mod shown;

use clap::Subcommand;
use common::machine::{
    control, json,
    process::unix_now,
    report::{Failure, data, say},
};
use proto::{
    identity::{Name, UserName},
    ollama::model::ModelPattern,
    wire::Reason,
};
use serde::Serialize;

pub(super) use self::shown::with_login;
use self::shown::{list, show};
use crate::{
    changes::{Changes, Forgotten, Renamed},
    commands::{
        beside::Beside,
        in_force::{in_force, in_force_after, not_cut, refresh_after_revoking},
        invite, models, status,
    },
    documents::{Devices, ForgottenDevice, OneDevice, View, Withdrawn},
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
        /// Print JSON
        #[arg(long)]
        json: bool,
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
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a device's access and its running answers, at once; or withdraw an unused invitation
    Revoke {
        /// The device's name or id
        device: String,
        /// Tell the device's user why, in at most 200 characters
        #[arg(long, value_name = "TEXT")]
        reason: Option<Reason>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a revoked device in again, with the key that it had
    Restore {
        /// The device's name or id
        device: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a device in that is held back since the register was restored
    Confirm {
        /// The device's name or id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        device: Option<String>,
        /// Let all of them in: only if none of them should stay out
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a device another name
    Rename {
        /// The device's name or id
        device: String,
        /// The new name
        name: Name,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a revoked device; over SSH, only the user who enrolled it can use its name again
    Forget {
        /// The device's name or id
        device: String,
        /// Let any user use the name again; also works after the device was forgotten
        #[arg(long)]
        free_name: bool,
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
    let (changes, on) = (beside.changes(&state), Shows { beside, state: &state });
    match command {
        Command::List { json } => list_all(&on, json).await,
        Command::Show { device, json } => {
            let one = on.one(state.register.find(&device)?, 0).await?;
            if json { json::answer(&one) } else { show(&one, beside) }
        }
        Command::Role { device, role, json } => {
            beside.must_know(&role)?;
            let device = changes.set_role(&device, &role)?;
            on.in_force(&device, json).await?;
            say(format!("{} {} has the role `{role}` now.", device.name, device.id));
            Ok(())
        }
        Command::Models { device, models, all: false, json } if models.is_empty() => {
            let device = state.register.find(&device)?;
            if json {
                return json::answer(Models { models: device.models });
            }
            data(models::listed(device.models.as_deref(), &device.role))
        }
        Command::Models { device, models, all, json } => {
            let device = changes.set_models(&device, (!all).then_some(models.as_slice()))?;
            on.in_force(&device, json).await?;
            say(format!(
                "{} {} may now {}.",
                device.name,
                device.id,
                models::allowed(&models, all)
            ));
            if let Some(note) = models::missing(&beside.dir, &models).await {
                say(note);
            }
            Ok(())
        }
        Command::User { device, user, none: _, json } => {
            let device = changes.assign(&device, user.as_ref())?;
            on.in_force(&device, json).await?;
            say(match user {
                Some(user) => {
                    format!("{} {} belongs to the user `{user}` now.", device.name, device.id)
                }
                None => format!("{} {} counts as a user of its own now.", device.name, device.id),
            });
            Ok(())
        }
        Command::Revoke { device, reason, json } => {
            revoke(&on, &changes, &device, reason, json).await
        }
        Command::Restore { device, json } => restore(&on, &changes, &device, json).await,
        Command::Confirm { device, all: _, json } => {
            confirm(&on, &changes, device.as_deref(), json).await
        }
        Command::Rename { device, name, json } => {
            let Renamed { before, device } = changes.rename(&device, &name)?;
            if before == device.name {
                if json {
                    json::answer(on.one(device.clone(), 0).await?)?;
                }
                say(format!("{} {} has that name already.", device.name, device.id));
                return Ok(());
            }
            on.in_force(&device, json).await?;
            say(format!(
                "{before} {} is `{name}` now. Settings below `[devices.{before}]` of the configuration do not follow.",
                device.id
            ));
            Ok(())
        }
        Command::Forget { device, free_name, json } => forget(&changes, &device, free_name, json),
    }
}

/// The models that a device may use; null if its role decides.
#[derive(Serialize)]
pub(super) struct Models {
    pub(super) models: Option<Vec<ModelPattern>>,
}

/// How devices are shown after a change.
struct Shows<'a> {
    beside: &'a Beside,
    state: &'a State,
}

impl Shows<'_> {
    /// A device, and how many sessions its change has cut.
    async fn one(&self, device: Device, cut: usize) -> Result<OneDevice, Failure> {
        let request = Request::Tokens { device: device.id };
        let tokens_today = match control::ask(&self.beside.dir, &request).await {
            Ok(Some(Answer::Tokens(today))) => today,
            _ => None,
        };
        let device = with_login(self.view().await?.device(device));
        Ok(OneDevice { device, tokens_today, cut })
    }

    async fn view(&self) -> Result<View, Failure> {
        Ok(View::new(&self.state.register, status::live(&self.beside.dir).await)?)
    }

    /// Makes the running server apply a change, and prints the device as it is then.
    async fn in_force(&self, device: &Device, json: bool) -> Result<(), Failure> {
        let cut = in_force(self.state).await?;
        self.print(device, cut, json).await
    }

    async fn print(&self, device: &Device, cut: usize, json: bool) -> Result<(), Failure> {
        if json { json::answer(self.one(device.clone(), cut).await?) } else { Ok(()) }
    }
}

async fn list_all(on: &Shows<'_>, json: bool) -> Result<(), Failure> {
    let (register, view) = (&on.state.register, on.view().await?);
    let devices = register.devices()?.into_iter().map(|device| with_login(view.device(device)));
    let devices: Vec<_> = devices.collect();
    if json {
        return json::answer(Devices { devices });
    }
    list(&devices, on.beside)?;
    if devices.iter().any(|device| device.to_confirm.is_some()) {
        say(shown::to_confirm(register.history()?.lost));
    }
    // Programs that read the table expect only devices in it.
    let open = register.invitations(unix_now())?;
    if !open.is_empty() {
        say(format!("Open invitations:\n{}", invite::table(&open)));
    }
    Ok(())
}

async fn revoke(
    on: &Shows<'_>,
    changes: &Changes<'_>,
    name: &str,
    reason: Option<Reason>,
    json: bool,
) -> Result<(), Failure> {
    let device = match changes.revoke(name, reason) {
        Err(DeviceError::Unknown { .. }) if changes.withdraw(name).map_err(not_cut)? => {
            in_force(on.state).await?;
            if json {
                json::answer(Withdrawn { withdrawn: name.to_owned() })?;
            }
            say(format!("The invitation for `{name}` is withdrawn."));
            return Ok(());
        }
        Err(DeviceError::Register(e)) => return Err(not_cut(e)),
        revoked => revoked?,
    };
    let cut = refresh_after_revoking(&on.state.dir, "device").await?;
    on.print(&device, cut, json).await?;
    let and_cut = if cut > 0 { "; it was connected and has been cut" } else { "" };
    say(format!("Revoked {} {}{and_cut}.", device.name, device.id));
    Ok(())
}

async fn restore(
    on: &Shows<'_>,
    changes: &Changes<'_>,
    name: &str,
    json: bool,
) -> Result<(), Failure> {
    let device = changes.restore(name)?;
    let cut = in_force(on.state).await?;
    on.print(&device, cut, json).await?;
    // It is not let in while its user is revoked.
    if let Some(user) = &device.user {
        on.state.register.must_not_be_revoked(user)?;
    }
    say(format!(
        "{} {} may connect again. A running `adit up` tries within a minute; one that has ended has to be started again.",
        device.name, device.id
    ));
    Ok(())
}

/// Lets devices in that were held back after a restore; `None` for all of them.
async fn confirm(
    on: &Shows<'_>,
    changes: &Changes<'_>,
    name: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    let confirmed = changes.confirm(name)?;
    let cut = match confirmed.is_empty() {
        true => 0,
        false => in_force_after(on.state, &told_confirmed(&confirmed)).await?,
    };
    match name {
        _ if !json => {}
        Some(name) => json::answer(on.one(on.state.register.find(name)?, cut).await?)?,
        None => {
            let view = on.view().await?;
            let devices = confirmed.iter().map(|device| with_login(view.device(device.clone())));
            json::answer(Devices { devices: devices.collect() })?;
        }
    }
    if confirmed.is_empty() {
        say(match name {
            Some(name) => format!("`{name}` is not held back: nothing is to be confirmed."),
            None => "No device is held back: nothing is to be confirmed.".to_owned(),
        });
    }
    for device in confirmed {
        say(format!("{} {} may connect again.", device.name, device.id));
    }
    Ok(())
}

/// What stays done if the running server cannot be told.
fn told_confirmed(confirmed: &[Device]) -> String {
    let names: Vec<_> = confirmed.iter().map(|device| format!("`{}`", device.name)).collect();
    let are = if names.len() == 1 { "is" } else { "are" };
    format!("{} {are} confirmed in the register", names.join(", "))
}

fn forget(changes: &Changes<'_>, device: &str, free_name: bool, json: bool) -> Result<(), Failure> {
    let Forgotten { name, id, name_is_free } = changes.forget(device, free_name)?;
    if json {
        json::answer(ForgottenDevice { forgotten: name.clone(), name_is_free })?;
    }
    if let Some(id) = id {
        say(format!("Forgot {name} {id}."));
    }
    if name_is_free {
        say(format!("Any user may have the name `{name}` now."));
    }
    Ok(())
}
