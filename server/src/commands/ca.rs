//! `aditd ca …`: shows the certificate authorities, makes a new one, and ends old ones.

use clap::Subcommand;
use common::machine::{
    format::{table, to_json},
    process::{self, day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::{
    human,
    identity::RECOVER_WITHIN,
    rotation::{CaState, OVERLAP},
};
use time::OffsetDateTime;

use crate::{
    audit::{self, AuditSettings, Event},
    commands::{beside::Beside, devices::in_force},
    state::{
        State,
        rotation::{CaShown, CaStatus, DeviceBehind},
    },
};

/// What can be done with the certificate authority.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print its certificate in PEM, for those who use --https without a certificate of their own
    Show,
    /// List the certificate authorities, and the devices that do not have the newest one
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a new certificate authority: connected devices get it at once, the others when they
    /// connect, and the old one stays valid until all have it
    Rotate,
    /// End the old certificate authority, if every device has the new one
    Retire {
        /// End it although devices do not have the new one: they have 90 days to get it by proof of
        /// their keys, and may do nothing else before
        #[arg(long)]
        force: bool,
    },
}

/// Runs one command.
pub(crate) async fn run(beside: &Beside, command: Command) -> Result<(), Failure> {
    let state = State::open(&beside.dir)?;
    match command {
        Command::Show => show(&state),
        Command::Status { json } => {
            let status = state.ca_status(unix_now())?;
            if json { data(to_json(&status)?) } else { print(&status) }
        }
        Command::Rotate => rotate(&state, beside).await,
        Command::Retire { force } => retire(&state, beside.audit(), force).await,
    }
}

/// Prints the certificates of the CAs that are valid, the newest first.
fn show(state: &State) -> Result<(), Failure> {
    let authorities = state.authorities.get();
    let mut valid: Vec<_> = authorities.valid().map(|(authority, _)| authority).collect();
    valid.reverse();
    let pem: Vec<String> = valid.iter().map(|authority| authority.pem()).collect();
    data(pem.concat().trim_end())?;
    let fingerprints: Vec<String> = valid
        .iter()
        .map(|authority| format!("SHA-256 fingerprint: {}", authority.fingerprint()))
        .collect();
    say(typed(format!(
        "{}\nSave it in a file, and name the file to the program that uses a key: `curl --cacert FILE`.",
        fingerprints.join("\n")
    )));
    Ok(())
}

async fn rotate(state: &State, beside: &Beside) -> Result<(), Failure> {
    let ca = state.rotate_ca(OffsetDateTime::now_utc())?;
    audit::note_or_say(beside.audit(), &Event::CaRotate { ca, uid: process::uid() });
    in_force(state).await?;
    // It was logged why it can't be read, if it can't.
    let fingerprint = state.authorities.get().get(ca).map(|authority| authority.fingerprint());
    let fingerprint = fingerprint.map(|sha256| format!(" (SHA-256 {sha256})")).unwrap_or_default();
    say(typed(format!(
        "CA {ca} signs now{fingerprint}.\nConnected devices get it at once, the others when they connect: \
         `aditd ca status` lists those that do not have it.\nThe old one stays valid until all have it, at least \
         {} hours.\nMake a new backup of the keys: `aditd backup FILE --with-ca-key`",
        OVERLAP / 3600
    )));
    if beside.https_is_on() {
        say(typed(
            "If HTTPS uses a certificate of this CA: give the output of `aditd ca show` to the programs that trust it by a file. Then \
             end the old one yourself, `aditd ca retire`: aditd cannot count these programs.",
        ));
    }
    Ok(())
}

async fn retire(state: &State, audit: &AuditSettings, force: bool) -> Result<(), Failure> {
    let retired = state.retire_cas(force, unix_now())?;
    for ca in &retired.numbers {
        let without = retired.without.iter().filter(|device| device.ca <= *ca).count();
        audit::note_or_say(audit, &Event::CaRetire { ca: *ca, without, uid: process::uid() });
    }
    in_force(state).await?;
    let numbers: Vec<_> = retired.numbers.iter().map(|ca| format!("CA {ca}")).collect();
    say(format!("Ended: {}. Its private key is removed.", numbers.join(", ")));
    if retired.invitations > 0 {
        say(typed(format!(
            "{} ended, because the code names the old one: make a new one with `aditd invite NAME`.",
            match retired.invitations {
                1 => "1 open invitation has".to_owned(),
                several => format!("{several} open invitations have"),
            }
        )));
    }
    if !retired.without.is_empty() {
        data(behind(&retired.without))?;
        say(format!(
            "These devices get the new one by proof of their keys when they connect within {} days. After that they have to enroll again.",
            RECOVER_WITHIN / 86_400
        ));
    }
    Ok(())
}

fn print(status: &CaStatus) -> Result<(), Failure> {
    let rows = status.cas.iter().map(|ca| {
        [
            format!("CA {}", ca.number),
            state_of(ca),
            ca.since.map_or_else(|| "-".to_owned(), day),
            until(ca),
            ca.devices.to_string(),
            ca.codes.to_string(),
            ca.sha256.clone(),
        ]
    });
    data(table(["CA", "STATE", "SINCE", "UNTIL", "DEVICES", "CODES", "SHA-256"], rows))?;
    if status.cas.len() == 1 {
        return Ok(());
    }
    let (have, all) = (status.up_to_date, status.up_to_date + status.behind.len());
    say(format!(
        "{have} of {} {} the newest one.",
        human::count(all as u64, "device"),
        if all == 1 { "has" } else { "have" }
    ));
    if !status.behind.is_empty() {
        say(format!("These do not:\n{}", behind(&status.behind)));
    }
    Ok(())
}

fn state_of(ca: &CaShown) -> String {
    match ca.state {
        CaState::Current => "current",
        CaState::Old => "old, valid",
        CaState::Retired => "retired",
    }
    .to_owned()
}

fn until(ca: &CaShown) -> String {
    let shown = |time: Option<i64>| time.map_or_else(|| "-".to_owned(), day);
    match ca.state {
        CaState::Current => shown(ca.certificate_until),
        CaState::Old => format!("all have a newer one, {} at the earliest", shown(ca.retires_from)),
        CaState::Retired => {
            format!("{}; renewals until {}", shown(ca.retired), shown(ca.recovers_until))
        }
    }
}

fn behind(devices: &[DeviceBehind]) -> String {
    let rows = devices.iter().map(|device| {
        [
            device.name.to_string(),
            device.id.to_string(),
            format!("CA {}", device.ca),
            device.seen.map_or_else(|| "never".to_owned(), day),
        ]
    });
    table(["NAME", "ID", "HAS", "SEEN"], rows)
}
