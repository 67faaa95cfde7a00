//! `aditd ca …`: shows the certificate authorities, makes a new one, and ends old ones.

use clap::Subcommand;
use common::machine::{
    format::table,
    json,
    process::{day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::{
    human,
    identity::RECOVER_WITHIN,
    rotation::{CaNumber, CaState, OVERLAP},
};
use serde::Serialize;

use crate::{
    commands::{beside::Beside, in_force::in_force},
    documents::{RetiredCas, RotatedCa},
    state::{
        State,
        rotation::{CaShown, CaStatus, DeviceBehind},
    },
};

/// What can be done with the certificate authority.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print its certificate in PEM, for those who use --https without a certificate of their own
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the certificate authorities, and the devices that do not have the newest one
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a new certificate authority: connected devices get it at once, the others when they
    /// connect, and the old one stays valid until all have it
    Rotate {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End the old certificate authority, if every device has the new one
    Retire {
        /// End it although devices do not have the new one: they have 90 days to get it by proof of
        /// their keys, and may do nothing else before
        #[arg(long)]
        force: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs one command.
pub(crate) async fn run(beside: &Beside, command: Command) -> Result<(), Failure> {
    let state = State::open(&beside.dir)?;
    match command {
        Command::Show { json } => show(&state, json),
        Command::Status { json } => {
            let status = state.ca_status(unix_now())?;
            if json { json::answer(status) } else { print(&status) }
        }
        Command::Rotate { json } => rotate(&state, beside, json).await,
        Command::Retire { force, json } => retire(&state, beside, force, json).await,
    }
}

/// The certificates of the CAs that are valid.
#[derive(Serialize)]
struct Certificates {
    /// The newest first.
    cas: Vec<CaCertificate>,
}

#[derive(Serialize)]
struct CaCertificate {
    number: CaNumber,
    /// The fingerprint.
    sha256: String,
    /// The certificate.
    pem: String,
}

/// Prints the certificates of the CAs that are valid, the newest first.
fn show(state: &State, json: bool) -> Result<(), Failure> {
    let authorities = state.authorities.get();
    let valid = authorities.valid().map(|(authority, _)| CaCertificate {
        number: authority.number,
        sha256: authority.fingerprint(),
        pem: authority.pem(),
    });
    let mut cas: Vec<_> = valid.collect();
    cas.reverse();
    if json {
        return json::answer(Certificates { cas });
    }
    let pem: String = cas.iter().map(|ca| ca.pem.as_str()).collect();
    data(pem.trim_end())?;
    let fingerprints: Vec<String> =
        cas.iter().map(|ca| format!("SHA-256 fingerprint: {}", ca.sha256)).collect();
    say(typed(format!(
        "{}\nSave it in a file, and name the file to the program that uses a key: `curl --cacert FILE`.",
        fingerprints.join("\n")
    )));
    Ok(())
}

async fn rotate(state: &State, beside: &Beside, json: bool) -> Result<(), Failure> {
    let ca = beside.changes(state).rotate_ca()?;
    in_force(state).await?;
    // It was logged why it can't be read, if it can't.
    let sha256 = state.authorities.get().get(ca).map(|authority| authority.fingerprint());
    let fingerprint =
        sha256.as_ref().map(|sha256| format!(" (SHA-256 {sha256})")).unwrap_or_default();
    if json {
        json::answer(RotatedCa { ca, sha256 })?;
    }
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

async fn retire(state: &State, beside: &Beside, force: bool, json: bool) -> Result<(), Failure> {
    let retired = beside.changes(state).retire_cas(force)?;
    in_force(state).await?;
    if json {
        json::answer(RetiredCas::from(retired.clone()))?;
    }
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
        if !json {
            data(behind(&retired.without))?;
        }
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
