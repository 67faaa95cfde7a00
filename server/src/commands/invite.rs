//! `aditd invite`: prints one code on standard output, and everything else on standard error.

use std::{path::Path, time::Duration};

use clap::Args;
use common::machine::{
    control, format, json,
    network::own_network_or_example,
    owner::become_owner_of,
    process::{self, unix_now},
    report::{Exit, Failure, data, say, typed},
};
use proto::{
    human,
    identity::{Name, UserName},
    invitation::is_loopback,
};
use time::{OffsetDateTime, macros::format_description};

use crate::{
    commands::beside::Beside,
    config::{AdvertiseFlags, Flags, SYSTEM_FILE},
    documents::{CodeShown, Invitations},
    policy::roles,
    running::{Answer, NOWHERE, Request},
    serve::started,
    state::{
        State,
        codes::{MadeCode, Opens, SIGN_IN},
        register::Invited,
    },
};

/// Flags of `invite`.
#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// Give the invited device this name
    #[arg(required_unless_present_any = ["list", "sso"])]
    device: Option<Name>,
    /// Make a code with which people sign in at the provider of `[oidc]`, on any number of devices;
    /// DEVICE is the code's own name then
    #[arg(long, conflicts_with_all = ["role", "user"])]
    sso: bool,
    /// List the open invitations; `aditd device revoke DEVICE` withdraws one
    #[arg(long, conflicts_with_all = ["device", "sso", "ttl", "qr", "role", "user", "advertise"])]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Let the code expire after this time, at most 7d; with --sso at most 365d [default: 10m; with
    /// --sso 30d]
    #[arg(long, value_name = "TIME", value_parser = process::parse_time)]
    ttl: Option<Duration>,
    /// Also show the code as a QR code
    #[arg(long)]
    qr: bool,
    /// Give the device this role: infer, models, admin, or a role of your configuration
    #[arg(long, value_name = "ROLE", default_value = roles::DEFAULT)]
    role: Name,
    /// Say whose the device is: what one user's devices and keys ask for is counted together
    #[arg(long, value_name = "USER")]
    user: Option<UserName>,
    #[command(flatten)]
    advertise: AdvertiseFlags,
}

/// Makes an invitation, or lists the open ones. Works with and without a running server.
pub(crate) async fn run(flags: &Flags, invite: Invite) -> Result<(), Failure> {
    let named_sso = || invite.sso.then(|| SIGN_IN.parse().expect("a name"));
    let Some(device) = invite.device.clone().or_else(named_sso) else {
        let dir = flags.state_dir()?;
        become_owner_of(&dir)?;
        return list(&State::open(&dir)?, invite.json);
    };
    let opens = match invite.sso {
        true => Opens::SignIn,
        false => Opens::Enrollment { role: invite.role.clone(), user: invite.user.clone() },
    };
    let life = opens.life(invite.ttl);
    let life =
        life.map_err(|what| Failure::new(what).hint("for example `--ttl 1h`").exit(Exit::Usage))?;
    let named = invite.advertise.named()?;
    let beside = Beside::resolve(flags).await?;
    beside.must_know(&invite.role)?;
    if invite.sso && !beside.signs_in() {
        return Err(Failure::new("this server has no provider at which people sign in")
            .hint("name one in its configuration, as `[oidc]`, and run `aditd reload`: see docs/sign-in.md")
            .exit(Exit::Usage));
    }
    let state = State::open(&beside.dir)?;
    state.authorities.get().check_clock(unix_now())?;
    let addresses = match named {
        named if !named.is_empty() => named,
        _ => beside.addresses(state.register.addresses()?),
    };
    if addresses.is_empty() {
        return Err(Failure::new("the server does not know where devices reach it")
            .source(NOWHERE)
            .hint("see this machine's addresses with `ip address`; when its network is up, run this again")
            .hint("or name an address: `--advertise HOST:11435`, here or with `aditd serve`"));
    }
    let freed = state.register.freed_name(&device)?;
    let made = beside.changes(&state).invite(device, opens, life, addresses)?;
    // The server also notices by itself within a moment; this is faster.
    let running = control::ask::<_, Answer>(&state.dir, &Request::Refresh).await;
    if invite.json {
        json::answer(CodeShown::from(&made))?;
    }
    let MadeCode { invitation, invited, withdrew } = made;
    let (device, code) = (invited.name, invitation.code());
    if !invite.json {
        data(code.as_str())?;
    }
    let life = human::time(life);
    if invite.sso {
        say(typed(format!(
            "This code works on any number of devices and expires in {life}. It admits nobody by itself: people sign in. \
             On each device run `adit enroll --sso` and paste the code. To end the code: `aditd device revoke {device}`."
        )));
    } else {
        say(format!(
            "This code works once and expires in {life}. On the device run `adit enroll` and paste the code."
        ));
    }
    if withdrew {
        say(format!("An older invitation for `{}` has been withdrawn.", device));
    }
    if let Some(uid) = freed.and_then(|freed| freed.uid) {
        say(format!(
            "Note: `{device}` was the name of a device of another user (uid {uid}); the device that enrolls with this code gets the name."
        ));
    }
    if invite.qr {
        say(qr(&code)?);
    }
    if invitation.addresses.iter().all(|address| is_loopback(address)) {
        say(typed(format!(
            "Note: the server has no address that other machines reach, only\n      \
             {}: this code works on this machine alone.\n      \
             {},\n      \
             and make a new code.",
            invitation.addresses.join(", "),
            to_be_reached(&state.dir)
        )));
    }
    if matches!(running, Ok(None)) {
        say(typed(format!(
            "Note: aditd is not running here; the code works when it is: start it with `{}`.",
            started::command(&state.dir)
        )));
    }
    Ok(())
}

/// How the server is started so that other machines of this network reach it.
fn to_be_reached(dir: &Path) -> String {
    let network = own_network_or_example();
    match started::unit_restart(dir) {
        Some(restart) => format!(
            "For other machines of this network, put these lines into {}:\n      \
             listen = [\"0.0.0.0:11435\"]\n      \
             allow_from = [\"{network}\"]\n      \
             then run `{restart}`",
            SYSTEM_FILE
        ),
        None => format!(
            "For other machines of this network, start it again:\n      \
             `aditd serve --listen 0.0.0.0:11435 --allow-from {network}`"
        ),
    }
}

fn list(state: &State, json: bool) -> Result<(), Failure> {
    let invitations = state.register.invitations(unix_now())?;
    if json {
        return json::answer(Invitations { invitations });
    }
    if invitations.is_empty() {
        say(typed("No invitation is open: invite a device with `aditd invite NAME`."));
        return Ok(());
    }
    data(table(&invitations))
}

/// The table of invitations for people.
pub(crate) fn table(invitations: &[Invited]) -> String {
    let rows = invitations.iter().map(|Invited { name, role, user, sso, expires }| {
        let until =
            OffsetDateTime::from_unix_timestamp(*expires).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let until = until
            .format(format_description!("[year]-[month]-[day] [hour]:[minute]"))
            .unwrap_or_default();
        let user = user.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        match sso {
            true => [name.to_string(), "by sign-in".to_owned(), "by sign-in".to_owned(), until],
            false => [name.to_string(), role.to_string(), user, until],
        }
    });
    format::table(["NAME", "ROLE", "USER", "UNTIL (UTC)"], rows)
}

fn qr(code: &str) -> Result<String, Failure> {
    // Upper case fits into QR's alphanumeric mode; codes are case-insensitive.
    let qr = qrcode::QrCode::new(code.to_ascii_uppercase())
        .map_err(|e| Failure::new("the code does not fit into a QR code").source(e))?;
    Ok(qr.render::<qrcode::render::unicode::Dense1x2>().build())
}
