//! What a device runs here over SSH: `aditd enroll-device`, which needs no invitation because sshd
//! has let its owner in, and `aditd relay`, which carries a tunnel's datagrams where no UDP port
//! can be reached.

use std::{
    io::{IsTerminal, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use common::{
    machine::{
        control,
        process::{self, unix_now},
        report::{Exit, Failure},
    },
    transport::{carrier, frame},
};
use data_encoding::BASE64;
use proto::{
    identity::Name,
    wire::{
        ADITD_PORT, DEFAULT_SERVICE, EnrollDevice, Enrolled, SSH_FAILED, SSH_MARKER, SSH_RELAY,
        SshFailed,
    },
};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;

use crate::{
    audit::{self, Event, entry::EnrolledBy},
    commands::stdio,
    config::Config,
    policy::{authorize::Question, roles::default_role},
    running::{Answer, Request},
    session::enroll_socket,
    state::{State, ca::DeviceKey, register::DeviceError},
};

/// Runs what a command over SSH does before its first word. Its failure goes to standard output too,
/// for the client; people read it on standard error.
async fn told<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let result = work.await;
    if let Err(failure) = &result
        && !std::io::stdout().is_terminal()
    {
        let mut answer = SSH_FAILED.as_bytes().to_vec();
        let framed = frame::write(&mut answer, &SshFailed::from(failure.clone())).await;
        // If nobody reads it, the exit code and standard error still say it.
        let _ = framed.and_then(|()| {
            let mut out = std::io::stdout();
            out.write_all(&answer).and_then(|()| out.flush())
        });
    }
    result
}

/// Enrolls the device whose signing request comes on standard input; its certificate goes to
/// standard output.
pub async fn enroll_device(config: Result<Config, Failure>, name: &str) -> Result<(), Failure> {
    let enrolled = told(async { enroll(&config?, name).await }).await?;
    let mut answer = SSH_MARKER.as_bytes().to_vec();
    let unsent = |e: std::io::Error| Failure::new("cannot send the certificate").because(e);
    frame::write(&mut answer, &enrolled).await.map_err(unsent)?;
    let mut out = tokio::io::stdout();
    out.write_all(&answer).await.map_err(unsent)?;
    out.flush().await.map_err(unsent)
}

async fn enroll(config: &Config, name: &str) -> Result<Enrolled, Failure> {
    let name: Name = name.parse().map_err(|why| {
        Failure::new(format!("`{name}` can't be a device's name"))
            .because(why)
            .hint("choose another with `adit enroll … --device NAME`")
            .exit(Exit::Usage)
    })?;
    let unreadable = |why: String| {
        Failure::new("cannot read the device's request").because(why).exit(Exit::Usage)
    };
    let request: EnrollDevice = frame::read(&mut tokio::io::stdin()).await.map_err(|e| {
        unreadable(e.to_string())
            .hint("this command is for `adit enroll USER@HOST`; people use `aditd invite DEVICE`")
    })?;
    let csr = BASE64.decode(request.csr.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
    match State::open(&config.state_dir) {
        Ok(state) => enroll_here(config, &state, &name, &csr).await,
        // Not this user's: but perhaps the server lets a group in that this user is of.
        Err(failure) => enroll_socket::ask(&config.enroll_socket, &name, &csr).await.unwrap_or_else(|| {
            Err(failure.hint(
                "who may enroll devices: the owner of the server's state, root, and the group that `aditd serve --enroll-group GROUP` names",
            ))
        }),
    }
}

async fn enroll_here(
    config: &Config,
    state: &State,
    name: &Name,
    csr: &[u8],
) -> Result<Enrolled, Failure> {
    let key = DeviceKey::from_csr(csr).map_err(Failure::from_error)?;
    state.ca.check_clock(unix_now())?;
    if let Some(authority) = config.authority() {
        authority.ask(Question::enrolling(name.clone(), default_role())).await?;
    }
    let now = OffsetDateTime::now_utc();
    let not_after = (now + config.device_life).unix_timestamp();
    let device =
        state.register.enroll(name, key.hash, not_after, unix_now()).map_err(not_enrolled)?;
    let issued = state
        .ca
        .issue_device(device.id, &key, now, config.device_life)
        .map_err(|e| Failure::new("cannot sign a certificate").because(e))?;
    let event = Event::Enroll {
        device: device.name.clone(),
        device_id: device.id,
        by: EnrolledBy::Ssh(process::uid()),
    };
    audit::note_or_say(&config.meters.audit, &event);
    let addresses = match &config.advertise {
        named if !named.is_empty() => named.clone(),
        _ => state.register.addresses()?.unwrap_or_default(),
    };
    let enrolled = Enrolled {
        device: device.name,
        device_id: device.id,
        certificate: BASE64.encode(&issued.certificate),
        ca: BASE64.encode(state.ca.certificate()),
        door_key: state.keys.door.clone(),
        addresses,
        services: vec![config.upstream.as_service(DEFAULT_SERVICE.parse().map_err(Failure::new)?)],
        relay_port: relay_port(config, state).await,
    };
    // The device connects as soon as it has this: the running server must know it by then.
    let _ = control::ask::<_, Answer>(&state.dir, &Request::Refresh).await;
    Ok(enrolled)
}

/// Who reads this sits at the device: names are chosen there.
pub(crate) fn not_enrolled(error: DeviceError) -> Failure {
    let (name, frees) = match &error {
        DeviceError::NameTaken(name) => {
            (name, format!("aditd device revoke {name}` and `aditd device forget {name}"))
        }
        DeviceError::NameOfRevoked(name) => (name, format!("aditd device forget {name}")),
        DeviceError::LooksLikeId(_) => {
            return Failure::from_error(error)
                .hint("choose another name with `adit enroll … --device NAME`")
                .exit(Exit::Usage);
        }
        _ => return error.into(),
    };
    let hint = format!(
        "choose another name with `adit enroll … --device NAME`; or, if this is what became of `{name}`, free the name on the server: `{frees}`"
    );
    Failure::from_error(error).hint(hint)
}

/// Where a key that may only forward finds the relay; if the server does not run now, where it will
/// be.
async fn relay_port(config: &Config, state: &State) -> Option<u16> {
    match control::ask(&state.dir, &Request::Status).await {
        Ok(Some(Answer::Status(status))) => status.relay,
        _ if config.tcp_relay => config
            .listen
            .iter()
            .find(|a| a.ip().is_loopback())
            .or(config.listen.first())
            .map(SocketAddr::port),
        _ => None,
    }
}

/// Relays between standard input and output and the server of this machine, until the stream ends.
pub async fn relay(config: Result<Config, Failure>, to: Option<SocketAddr>) -> Result<(), Failure> {
    let to = match to {
        Some(to) => to,
        None => told(async { Ok(running(&config?).await) }).await?,
    };
    let mut out = stdio::output();
    let gone = |e: std::io::Error| Failure::new("the relay has nobody to talk to").because(e);
    out.write_all(format!("{SSH_RELAY}{SSH_MARKER}").as_bytes()).await.map_err(gone)?;
    out.flush().await.map_err(gone)?;
    let end = carrier::relay(stdio::input(), out, to).await;
    if end.kind() == std::io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(gone(end)) }
}

/// Where the running server listens, as seen from here. A key that may do nothing but relay needs
/// no right to the server's state: then it is where the configuration says.
async fn running(config: &Config) -> SocketAddr {
    let told = match control::ask(&config.state_dir, &Request::Status).await {
        Ok(Some(Answer::Status(status))) => {
            status.listening.iter().filter_map(|a| a.parse().ok()).collect()
        }
        _ => config.listen.clone(),
    };
    let first = told.iter().find(|address| address.ip().is_loopback()).or(told.first());
    match first.copied() {
        Some(SocketAddr::V4(a)) if a.ip().is_unspecified() => {
            SocketAddr::from((Ipv4Addr::LOCALHOST, a.port()))
        }
        Some(SocketAddr::V6(a)) if a.ip().is_unspecified() => {
            SocketAddr::from((Ipv6Addr::LOCALHOST, a.port()))
        }
        Some(address) => address,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, ADITD_PORT)),
    }
}
