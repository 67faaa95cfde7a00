//! The connection that enrolls a device: one request, one answer. Nothing else can be reached
//! through it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::transport::{frame, splice::Sending};
use data_encoding::BASE64;
use proto::wire::{Code, EnrollAnswer, EnrollRefusal, EnrollRequest, Enrolled};
use quinn::Connection;
use tokio::time::error::Elapsed;
use tracing::warn;

use crate::{
    ingress::admission::HandshakeSlot,
    running::{Server, sessions::close},
    session::enrollment::{self, Claim},
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
        std::io::Result::Ok((Sending::new(send), frame::read::<EnrollRequest>(&mut recv).await))
    };
    let asked = tokio::select! {
        asked = tokio::time::timeout(WITHIN, asked) => asked?,
        () = slot.displaced() => return Ok(()),
        () = server.draining.cancelled() => return Ok(()),
    };
    drop(slot);
    let Ok((mut send, request)) = asked else { return Ok(()) };
    let answer = match request {
        Ok(request) => match enroll(server, request, connection.remote_address()).await {
            Ok(enrolled) => EnrollAnswer::Enrolled(Box::new(enrolled)),
            Err(why) => EnrollAnswer::Refused(why),
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

async fn enroll(
    server: &Arc<Server>,
    request: EnrollRequest,
    from: SocketAddr,
) -> Result<Enrolled, EnrollRefusal> {
    if !request.own_knock {
        warn!(%from, "refused to enroll an older adit, which could not connect afterwards");
        return Err(EnrollRefusal::BadRequest);
    }
    let decoded =
        |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| EnrollRefusal::BadRequest);
    let (token, csr) = (decoded(&request.token)?, decoded(&request.csr)?);
    let claim = Claim::Invitation { token, from };
    enrollment::enroll(server, claim, &csr).await.map_err(|why| why.refusal())
}
