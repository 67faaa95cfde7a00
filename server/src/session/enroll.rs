//! The connection that enrolls a device: one request, one answer; between them a person signs in, if
//! the code only opens a sign-in. Nothing else can be reached through it.

use std::{sync::Arc, time::Duration};

use common::{
    machine::report::Failure,
    transport::{frame, splice::Sending},
};
use data_encoding::BASE64;
use proto::wire::{Code, EnrollAnswer, EnrollRefusal, EnrollRequest};
use quinn::Connection;
use tokio::time::error::Elapsed;
use tracing::warn;
use zeroize::Zeroizing;

use crate::{
    ingress::admission::HandshakeSlot,
    running::{Server, sessions::close},
    session::{
        enrolling::Enrolling,
        enrollment::{self, Claim, EnrollingKey, NotEnrolled},
        sign_in,
    },
    state::{ca::DeviceKey, register::DeviceError},
};

/// How long the request may take, and then how long its answer may take to be read.
const WITHIN: Duration = Duration::from_secs(10);

/// Serves one enrollment and closes the connection. The slot is held until the request has come.
pub(crate) async fn run(server: Arc<Server>, connection: Connection, slot: HandshakeSlot) {
    if exchange(&server, &connection, slot).await.is_err() {
        warn!(from = %connection.remote_address(), "an enrollment was not finished in time");
    }
    close(&connection, Code::Done);
}

/// A change of the register is always noted in the audit log: only the peer's part has a time limit
/// here.
async fn exchange(
    server: &Arc<Server>,
    connection: &Connection,
    slot: HandshakeSlot,
) -> Result<(), Elapsed> {
    let asked = async {
        let (send, mut recv) = connection.accept_bi().await?;
        let request = frame::read::<EnrollRequest>(&mut recv).await;
        std::io::Result::Ok((Sending::new(send), recv, request))
    };
    let asked = tokio::select! {
        asked = tokio::time::timeout(WITHIN, asked) => asked?,
        () = slot.displaced() => return Ok(()),
        () = server.draining.cancelled() => return Ok(()),
    };
    let ca = slot.ca();
    drop(slot);
    let Ok((send, recv, request)) = asked else { return Ok(()) };
    let mut device = Enrolling { send, recv, from: connection.remote_address(), ca };
    let answer = match request {
        Ok(request) => device.enroll(server, request).await,
        Err(_) => EnrollAnswer::Refused(EnrollRefusal::BadRequest),
    };
    let told = async {
        if device.tell(&answer).await.is_ok() {
            device.send.finish();
            device.send.acknowledged().await;
        }
    };
    tokio::time::timeout(WITHIN, told).await
}

impl Enrolling {
    async fn enroll(&mut self, server: &Arc<Server>, request: EnrollRequest) -> EnrollAnswer {
        let storage = request.key_storage;
        match self.claim(server, request).await {
            Ok((claim, csr)) => {
                let is_sign_in = matches!(claim, Claim::SignIn { .. });
                let key = EnrollingKey { csr: &csr, storage };
                match enrollment::enroll(server, claim, key).await {
                    Ok(enrolled) => EnrollAnswer::Enrolled(Box::new(enrolled)),
                    // The person can choose another name, so the whole reason is told; not what the
                    // register's file has.
                    Err(why @ NotEnrolled::Register(DeviceError::Register(_))) => {
                        EnrollAnswer::Refused(why.refusal())
                    }
                    Err(why @ NotEnrolled::Register(_)) if is_sign_in => {
                        EnrollAnswer::Failed(Box::new(Failure::from(why)))
                    }
                    Err(why @ NotEnrolled::KeyInFile(_)) => {
                        EnrollAnswer::Failed(Box::new(Failure::from(why)))
                    }
                    Err(why) => EnrollAnswer::Refused(why.refusal()),
                }
            }
            Err(answer) => answer,
        }
    }

    /// The right by which the device is enrolled, and its signing request.
    ///
    /// # Errors
    /// The answer, if it has none.
    async fn claim(
        &mut self,
        server: &Arc<Server>,
        request: EnrollRequest,
    ) -> Result<(Claim, Vec<u8>), EnrollAnswer> {
        let from = self.from;
        let bad = || EnrollAnswer::Refused(EnrollRefusal::BadRequest);
        if !request.own_knock {
            warn!(%from, "refused to enroll an older adit, which could not connect afterwards");
            return Err(bad());
        }
        let decoded = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| bad());
        let token = Zeroizing::new(decoded(&request.token)?);
        let csr = decoded(&request.csr)?;
        match request.sign_in {
            None => Ok((Claim::Invitation { token, from, ca: self.ca }, csr)),
            Some(wanted) => {
                let key = DeviceKey::from_csr(&csr).map_err(|_| bad())?.hash;
                Ok((sign_in::run(server, self, token, key, wanted).await?, csr))
            }
        }
    }
}
