//! The enrollment side of the door: one request, one answer, one device. Nothing else can be
//! reached from here.

use std::{sync::Arc, time::Duration};

use common::{
    machine::{process::unix_now, report::Failure},
    transport::{frame, splice::Sending},
};
use data_encoding::BASE64;
use proto::{
    identity::Name,
    wire::{Code, EnrollAnswer, EnrollRefusal, EnrollRequest, Enrolled},
};
use quinn::Connection;
use time::OffsetDateTime;
use tokio::time::error::Elapsed;
use tracing::{info, warn};

use crate::{
    audit::{Event, entry::EnrolledBy},
    commands::over_ssh::not_enrolled,
    policy::{
        authorize::{Question, Refusal},
        roles::default_role,
    },
    running::{Server, sessions::close},
    state::{
        ca::DeviceKey,
        register::{Device, RegisterError},
    },
};

/// A request, and then its answer, are taken within this time.
const WITHIN: Duration = Duration::from_secs(10);

/// Serves one enrollment and closes the connection.
pub async fn run(server: Arc<Server>, connection: Connection) {
    if exchange(&server, &connection).await.is_err() {
        warn!(from = %connection.remote_address(), "an enrollment was not finished in time");
    }
    close(&connection, Code::Done);
}

/// What has been written in the register is noted in the log: only the peer's part is bounded in
/// time, the rest by itself.
async fn exchange(server: &Arc<Server>, connection: &Connection) -> Result<(), Elapsed> {
    let asked = async {
        let (send, mut recv) = connection.accept_bi().await?;
        std::io::Result::Ok((Sending::new(send), frame::read::<EnrollRequest>(&mut recv).await))
    };
    let Ok((mut send, request)) = tokio::time::timeout(WITHIN, asked).await? else { return Ok(()) };
    let answer = match request {
        Ok(request) => match enroll(server, request).await {
            Ok(enrolled) => {
                info!(device = %enrolled.device, id = %enrolled.device_id, from = %connection.remote_address(), "enrolled");
                server.meters.audit.note(Event::Enroll {
                    device: enrolled.device.clone(),
                    device_id: enrolled.device_id,
                    by: EnrolledBy::Invitation(connection.remote_address()),
                });
                EnrollAnswer::Enrolled(Box::new(enrolled))
            }
            Err(why) => {
                warn!(from = %connection.remote_address(), "an enrollment was refused: {why}");
                server.meters.audit.note(Event::EnrollRefused {
                    remote: connection.remote_address(),
                    why: why.to_string(),
                });
                EnrollAnswer::Refused(why)
            }
        },
        Err(_) => EnrollAnswer::Refused(EnrollRefusal::BadRequest),
    };
    let mut framed = Vec::new();
    let told = async {
        if frame::write(&mut framed, &answer).await.is_ok() && send.write_all(&framed).await.is_ok()
        {
            send.finish();
            send.acknowledged().await;
        }
    };
    tokio::time::timeout(WITHIN, told).await
}

async fn enroll(server: &Arc<Server>, request: EnrollRequest) -> Result<Enrolled, EnrollRefusal> {
    let bad = |_| EnrollRefusal::BadRequest;
    let token = BASE64.decode(request.token.as_bytes()).map_err(bad)?;
    let csr = BASE64.decode(request.csr.as_bytes()).map_err(bad)?;
    let key = DeviceKey::from_csr(&csr).map_err(|e| {
        warn!("{e}");
        EnrollRefusal::BadRequest
    })?;
    server.state.ca.check_clock(unix_now()).map_err(|e| {
        warn!("{e}");
        EnrollRefusal::Clock { shows: e.now }
    })?;
    authorized(server, &token).await?;
    let now = OffsetDateTime::now_utc();
    let (hash, not_after) = (key.hash, (now + server.device_life).unix_timestamp());
    let failed = |_: RegisterError| EnrollRefusal::ServerFailed;
    let device = server
        .in_register(move |register| register.redeem(&token, hash, not_after, unix_now()))
        .await
        .map_err(failed)??;
    issue(server, device, &key, now).await.map_err(|e| {
        warn!("{e}");
        EnrollRefusal::ServerFailed
    })
}

/// Enrolls a device without an invitation: who asks has been judged.
pub(crate) async fn for_member(
    server: &Arc<Server>,
    user: u32,
    name: Name,
    csr: Vec<u8>,
) -> Result<Enrolled, Failure> {
    let key = DeviceKey::from_csr(&csr).map_err(Failure::from_error)?;
    server.state.ca.check_clock(unix_now())?;
    if let Some(authority) = server.gate.authority() {
        authority.ask(Question::enrolling(name.clone(), default_role())).await?;
    }
    let now = OffsetDateTime::now_utc();
    let (hash, not_after) = (key.hash, (now + server.device_life).unix_timestamp());
    let register = server.state.register.clone();
    let made =
        tokio::task::spawn_blocking(move || register.enroll(&name, hash, not_after, unix_now()));
    let device =
        made.await.map_err(|e| Failure::new("cannot enroll").because(e))?.map_err(not_enrolled)?;
    let (name, id) = (device.name.clone(), device.id);
    let enrolled = issue(server, device, &key, now).await?;
    server.meters.audit.note(Event::Enroll {
        device: name,
        device_id: id,
        by: EnrolledBy::Ssh(user),
    });
    Ok(enrolled)
}

async fn issue(
    server: &Server,
    device: Device,
    key: &DeviceKey,
    now: OffsetDateTime,
) -> Result<Enrolled, Failure> {
    // The device connects as soon as it has its certificate: the policy must know it by then.
    server.refresh().await?;
    let issued = server.state.ca.issue_device(device.id, key, now, server.device_life);
    let issued = issued.map_err(|e| Failure::new("cannot sign a certificate").because(e))?;
    Ok(Enrolled {
        device: device.name,
        device_id: device.id,
        certificate: BASE64.encode(&issued.certificate),
        ca: BASE64.encode(server.state.ca.certificate()),
        door_key: server.state.keys.door.clone(),
        addresses: server.open.addresses.clone(),
        services: server.policy.services(),
        relay_port: server.open.relay,
    })
}

/// Asks whoever else is to be asked about the device that an invitation is for.
async fn authorized(server: &Arc<Server>, token: &[u8]) -> Result<(), EnrollRefusal> {
    let Some(authority) = server.gate.authority() else { return Ok(()) };
    let token = token.to_vec();
    let invited = server.in_register(move |register| register.invited(&token, unix_now())).await;
    let (name, role) =
        invited.map_err(|_| EnrollRefusal::ServerFailed)?.ok_or(EnrollRefusal::Closed)?;
    authority.ask(Question::enrolling(name, role)).await.map_err(|refusal| match refusal {
        Refusal::No => EnrollRefusal::NotAllowed,
        Refusal::Failed(_) => EnrollRefusal::NotAsked,
    })
}
