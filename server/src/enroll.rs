//! The enrollment side of the door: one request, one answer, one device. Nothing else can be reached from here.

use std::{sync::Arc, time::Duration};

use common::{
    frame,
    process::unix_now,
    splice::Sending,
    wire::{Code, EnrollAnswer, EnrollRefusal, EnrollRequest, Enrolled},
};
use data_encoding::BASE64;
use quinn::Connection;
use time::OffsetDateTime;
use tracing::{info, warn};

use crate::{
    audit::{Event, entry::EnrolledBy},
    ca::DeviceKey,
    gate::authorize::{Question, Refusal},
    live::close,
    register::RegisterError,
    running::Server,
};

/// The whole exchange, in time.
const WITHIN: Duration = Duration::from_secs(20);

/// Serves one enrollment and closes the connection.
pub async fn run(server: Arc<Server>, connection: Connection) {
    if tokio::time::timeout(WITHIN, exchange(&server, &connection)).await.is_err() {
        warn!(from = %connection.remote_address(), "an enrollment was not finished in time");
    }
    close(&connection, Code::Done);
}

async fn exchange(server: &Arc<Server>, connection: &Connection) {
    let Ok((send, mut recv)) = connection.accept_bi().await else {
        return;
    };
    let mut send = Sending::new(send);
    let answer = match frame::read::<EnrollRequest>(&mut recv).await {
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
                server.meters.audit.note(Event::EnrollRefused { remote: connection.remote_address(), why: why.to_string() });
                EnrollAnswer::Refused(why)
            }
        },
        Err(_) => EnrollAnswer::Refused(EnrollRefusal::BadRequest),
    };
    let mut framed = Vec::new();
    if frame::write(&mut framed, &answer).await.is_ok() && send.write_all(&framed).await.is_ok() {
        send.finish();
        send.acknowledged().await;
    }
}

async fn enroll(server: &Arc<Server>, request: EnrollRequest) -> Result<Enrolled, EnrollRefusal> {
    let bad = |_| EnrollRefusal::BadRequest;
    let token = BASE64.decode(request.token.as_bytes()).map_err(bad)?;
    let csr = BASE64.decode(request.csr.as_bytes()).map_err(bad)?;
    let key = DeviceKey::from_csr(&csr).map_err(|e| {
        warn!("{e}");
        EnrollRefusal::BadRequest
    })?;
    authorized(server, &token).await?;
    let now = OffsetDateTime::now_utc();
    let (hash, not_after) = (key.hash, (now + server.device_life).unix_timestamp());
    let failed = |_: RegisterError| EnrollRefusal::ServerFailed;
    let device =
        server.in_register(move |register| register.redeem(&token, hash, not_after, unix_now())).await.map_err(failed)??;
    // The device connects as soon as it has its certificate: the policy must know it by then.
    server.refresh().await.map_err(failed)?;
    let issued = server.state.ca.issue_device(device.id, &key, now, server.device_life).map_err(|e| {
        warn!("cannot sign a certificate: {e}");
        EnrollRefusal::ServerFailed
    })?;
    Ok(Enrolled {
        device: device.name,
        device_id: device.id,
        certificate: BASE64.encode(&issued.certificate),
        ca: BASE64.encode(server.state.ca.certificate()),
        door_key: server.state.keys.door.clone(),
        addresses: server.addresses.clone(),
        services: server.policy.services(),
    })
}

/// Asks whoever else is to be asked about the device that an invitation is for.
async fn authorized(server: &Arc<Server>, token: &[u8]) -> Result<(), EnrollRefusal> {
    let Some(authority) = server.gate.authority() else { return Ok(()) };
    let token = token.to_vec();
    let invited = server.in_register(move |register| register.invited(&token, unix_now())).await;
    let (name, role) = invited.map_err(|_| EnrollRefusal::ServerFailed)?.ok_or(EnrollRefusal::Closed)?;
    authority.ask(Question::enrolling(name, role)).await.map_err(|refusal| match refusal {
        Refusal::No => EnrollRefusal::NotAllowed,
        Refusal::Failed(_) => EnrollRefusal::NotAsked,
    })
}
